// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadKernel is kexec_file_load in its ways. What it loads it unloads again, for the next sequence.
func loadKernel(r *runner, o op) (string, error) {
	none := ^uintptr(0)
	kernel, initrd, flags := none, none, uintptr(unix.KEXEC_FILE_NO_INITRAMFS)
	words := []byte("x\x00")
	cmdline := uintptr(unsafe.Pointer(&words[0]))
	if o.N > 2 {
		fd, err := unix.Open(r.kernel, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "open", err
		}
		defer unix.Close(fd)
		kernel = uintptr(fd)
	}
	switch o.N {
	case 1:
		flags = 1 << 20
	case 2:
		flags = unix.KEXEC_FILE_UNLOAD
	case 3:
		flags = 0 // and no initrd
	case 4:
		words[1] = 'y'
	case 5:
		cmdline = 0
	}
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_FILE_LOAD, kernel, initrd, uintptr(len(words)), cmdline, flags, 0)
	if errno != 0 || o.N <= 2 {
		return "", fail(errno)
	}
	var seen []string
	loaded := func() {
		b, err := os.ReadFile("/sys/kernel/kexec_loaded")
		seen = append(seen, fmt.Sprintf("%q", b))
		if err != nil {
			seen = append(seen, errname(err))
		}
	}
	loaded()
	for _, magic := range [][2]uintptr{{unix.LINUX_REBOOT_MAGIC1 + 1, unix.LINUX_REBOOT_MAGIC2}, {unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2 + 1}} {
		_, _, errno := unix.Syscall6(unix.SYS_REBOOT, magic[0], magic[1], unix.LINUX_REBOOT_CMD_KEXEC, 0, 0, 0)
		seen = append(seen, errname(errno))
	}
	_, _, errno = unix.Syscall6(unix.SYS_KEXEC_FILE_LOAD, none, none, 0, 0, unix.KEXEC_FILE_UNLOAD, 0)
	loaded()
	return strings.Join(seen, " "), fail(errno)
}
