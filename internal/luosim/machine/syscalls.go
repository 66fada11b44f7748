// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/luo"
	"github.com/holdfast-project/holdfast/internal/luosim/notify"
)

// verdict is what becomes of a call that was caught.
type verdict struct {
	kind  int
	value int64
	err   unix.Errno
}

const (
	proceed  = iota // the kernel does it
	answered        // with value or err
	gone            // it was answered already, or is never answered
)

var cont = verdict{kind: proceed}

func gives(value int64) verdict { return verdict{kind: answered, value: value} }

// result is an error, or 0.
func result(err unix.Errno) verdict { return verdict{kind: answered, err: err} }

// handler decides on a system call.
type handler struct {
	notify.Rule
	do func(*boot, *call) verdict
}

// none stands for an argument that a call doesn't have.
const none = -1

// handlers are all system calls that are caught.
var handlers = slices.Concat(compatHandlers, archHandlers, []handler{
	// The device and the other files that only the emulated machine has.
	{rule(unix.SYS_OPENAT), func(b *boot, c *call) verdict { return b.openFile(c, 0, 1, uint64(uint32(c.Args[2]))) }},
	{rule(unix.SYS_OPENAT2), (*boot).openat2},
	{rule(unix.SYS_FACCESSAT), func(b *boot, c *call) verdict { return b.access(c, 0, 1, 2) }},
	{rule(unix.SYS_FACCESSAT2), func(b *boot, c *call) verdict { return b.access(c, 0, 1, 2) }},
	{rule(unix.SYS_READLINKAT), func(b *boot, c *call) verdict { return b.readlink(c, 0, 1, 2) }},
	{rule(sysNewfstatat), func(b *boot, c *call) verdict { return b.stat(c, 0, 1, 2, c.argInt(3)) }},
	{rule(unix.SYS_STATX), (*boot).statx},

	// Sessions and the device, opened.
	{rule(unix.SYS_IOCTL, liveUpdateIoctl), (*boot).ioctl},
	{rule(unix.SYS_IOCTL, notify.Condition{Argument: 1, Mask: luo.DeviceNumbers, Value: luo.DeviceNumber}), (*boot).ioctl},
	{rule(unix.SYS_IOCTL, notify.Condition{Argument: 1, Mask: luo.SessionNumbers, Value: luo.SessionNumber}), (*boot).ioctl},
	{rule(unix.SYS_FSTAT), (*boot).fstat},
	{rule(unix.SYS_FSTATFS), (*boot).fstatfs},
	{rule(unix.SYS_LSEEK), (*boot).lseek},
	{rule(unix.SYS_EPOLL_CTL), (*boot).epollCtl},
	{rule(unix.SYS_PPOLL), (*boot).poll},

	// What a preserved file doesn't allow.
	{rule(unix.SYS_FTRUNCATE), (*boot).ftruncate},
	{rule(unix.SYS_TRUNCATE), (*boot).truncate},
	{rule(unix.SYS_FALLOCATE), (*boot).fallocate},
	{rule(unix.SYS_WRITE), func(b *boot, c *call) verdict { return b.write(c, plain, none) }},
	{rule(unix.SYS_PWRITE64), func(b *boot, c *call) verdict { return b.write(c, plain, 3) }},
	{rule(unix.SYS_WRITEV), func(b *boot, c *call) verdict { return b.write(c, vector, none) }},
	{rule(unix.SYS_PWRITEV), func(b *boot, c *call) verdict { return b.write(c, vector, 3) }},
	{rule(unix.SYS_PWRITEV2), (*boot).pwritev2},
	{rule(unix.SYS_SENDFILE), (*boot).sendfile},
	{rule(unix.SYS_SPLICE), (*boot).splice},
	{rule(unix.SYS_COPY_FILE_RANGE), (*boot).copyFileRange},
	{rule(unix.SYS_FCNTL, notify.Condition{Argument: 1, Mask: ^uint32(0), Value: unix.F_ADD_SEALS}), (*boot).addSeals},

	// The update.
	{rule(unix.SYS_KEXEC_FILE_LOAD), (*boot).kexecFileLoad},
	{rule(unix.SYS_KEXEC_LOAD), (*boot).kexecLoad},
	{rule(unix.SYS_REBOOT), (*boot).reboot},
	{rule(unix.SYS_UNAME), (*boot).uname},

	// What would get past all of this.
	{rule(unix.SYS_IO_URING_SETUP), (*boot).ioUring},
	{rule(unix.SYS_SECCOMP,
		notify.Condition{Argument: 0, Mask: ^uint32(0), Value: 1}, // SECCOMP_SET_MODE_FILTER
		notify.Condition{Argument: 1, Mask: unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, Value: 0, Not: true},
	), (*boot).ownListener},
})

// compatHandlers are for the calls of 32-bit programs that would have to be emulated. All that it takes is to keep them
// off the real machine.
var compatHandlers = []handler{
	{compat(compatOpen), func(b *boot, c *call) verdict { return b.compatOpen(c, none, 0) }},
	{compat(compatOpenat), func(b *boot, c *call) verdict { return b.compatOpen(c, 0, 1) }},
	{compat(compatIoctl, liveUpdateIoctl), (*boot).compatCall},
	{compat(compatReboot), (*boot).compatCall},
	{compat(compatKexecLoad), (*boot).compatCall},
}

var liveUpdateIoctl = notify.Condition{Argument: 1, Mask: 0xff00, Value: luo.IoctlType << 8}

func compat(number uintptr, when ...notify.Condition) notify.Rule {
	return notify.Rule{Compat: true, Number: number, When: when}
}

func (b *boot) compatOpen(c *call, dirArg, pathArg int) verdict {
	if b.target(c, dirArg, pathArg) == "" {
		return cont
	}
	return b.compatCall(c)
}

func (b *boot) compatCall(c *call) verdict {
	b.say("compat", "%s is a 32-bit program, which isn't emulated: its calls for live update and kexec fail (ENOSYS)", c.who())
	return result(unix.ENOSYS)
}

func rule(number uintptr, when ...notify.Condition) notify.Rule {
	return notify.Rule{Number: number, When: when}
}

func rules() []notify.Rule {
	var all []notify.Rule
	for _, h := range handlers {
		all = append(all, h.Rule)
	}
	return all
}

type callKey struct {
	compat bool
	number int32
}

var byNumber = func() map[callKey]func(*boot, *call) verdict {
	m := map[callKey]func(*boot, *call) verdict{}
	for _, h := range handlers {
		m[callKey{h.Compat, int32(h.Number)}] = h.do
	}
	return m
}()
