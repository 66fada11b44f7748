// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"golang.org/x/sys/unix"
)

// Flags of kexec_file_load() (include/uapi/linux/kexec.h).
const (
	kexecUnload   = 0x1
	kexecOnCrash  = 0x2
	kexecNoInitrd = 0x4
	kexecKnown    = 0x3f
)

// kexecFileLoad is kexec_file_load() (kernel/kexec_file.c), but for the image: that may be any file.
func (b *boot) kexecFileLoad(c *call) verdict {
	flags := c.Args[4]
	if flags&^kexecKnown != 0 {
		return result(unix.EINVAL)
	}
	crash := flags&kexecOnCrash != 0
	if flags&kexecUnload != 0 {
		if !crash {
			b.loaded = false
		}
		return gives(0)
	}
	if !c.isReadable(c.argInt(0)) {
		return result(unix.EBADF)
	}
	if flags&kexecNoInitrd == 0 && !c.isReadable(c.argInt(1)) {
		return result(unix.EBADF)
	}
	if n := c.Args[2]; n > 0 {
		var last [1]byte
		if err := c.Read(c.Args[3]+n-1, last[:]); err != 0 {
			return result(err)
		}
		if last[0] != 0 {
			return result(unix.EINVAL)
		}
	}
	if !crash {
		b.loaded, b.handover = true, true
	}
	return gives(0)
}

func (c *call) isReadable(fd int32) bool {
	own, err := c.File(fd)
	if err != 0 {
		return false
	}
	defer unix.Close(own)
	flags, ctlErr := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
	return ctlErr == nil && flags&unix.O_ACCMODE != unix.O_WRONLY
}

// kexecLoad is kexec_load(): a kernel that it loads is handed nothing over.
func (b *boot) kexecLoad(c *call) verdict {
	if segments, flags := c.Args[1], c.Args[3]; flags&1 == 0 { // KEXEC_ON_CRASH
		b.loaded, b.handover = segments > 0, false
	}
	return gives(0)
}

// reboot is the system call (kernel/reboot.c).
func (b *boot) reboot(c *call) verdict {
	if uint32(c.Args[0]) != unix.LINUX_REBOOT_MAGIC1 {
		return result(unix.EINVAL)
	}
	switch uint32(c.Args[1]) {
	case 672274793, 85072278, 369367448, 537993216: // LINUX_REBOOT_MAGIC2 to 2C (include/uapi/linux/reboot.h)
	default:
		return result(unix.EINVAL)
	}
	switch uint32(c.Args[2]) {
	case unix.LINUX_REBOOT_CMD_KEXEC:
		if !b.loaded {
			return result(unix.EINVAL)
		}
		if err := b.kernel.Freeze(); err != 0 {
			return result(err)
		}
		b.end(endKexec)
	case unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_RESTART2:
		b.end(endRestart)
	case unix.LINUX_REBOOT_CMD_HALT, unix.LINUX_REBOOT_CMD_POWER_OFF:
		b.end(endPowerOff)
	case unix.LINUX_REBOOT_CMD_CAD_ON, unix.LINUX_REBOOT_CMD_CAD_OFF:
		return gives(0)
	default:
		return result(unix.EINVAL)
	}
	return verdict{kind: gone}
}

func (b *boot) ioUring(c *call) verdict {
	b.say("io_uring", "%s wants io_uring, whose operations can't be seen from outside: it is told that this kernel has none (ENOSYS)", c.who())
	return result(unix.ENOSYS)
}

func (b *boot) ownListener(c *call) verdict {
	b.say("listener", "%s wants a seccomp listener of its own, and a process can have only one: it is refused (EBUSY)", c.who())
	return result(unix.EBUSY)
}
