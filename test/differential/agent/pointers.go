// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wrongArgument makes system calls that luosim looks into with arguments that can't be right: N says which.
func wrongArgument(r *runner, o op) (string, error) {
	fd := uintptr(r.fds[o.A])
	const nowhere = 0x1000
	cwd := unix.AT_FDCWD
	at := uintptr(cwd)
	name := append([]byte(device), 0)
	link := append([]byte(fmt.Sprintf("/proc/self/fd/%d", r.fds[o.A])), 0)
	b := make([]byte, 256)
	// One byte to write, from a struct iovec.
	vector := make([]unix.Iovec, 1100)
	for i := range vector {
		vector[i] = unix.Iovec{Base: &b[0], Len: 0}
	}
	vector[0].Len = 1
	negative := []unix.Iovec{{Base: &b[0], Len: 1 << 63}}
	var event unix.EpollEvent
	p := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	calls := []struct{ nr, a, b, c, d, e uintptr }{
		{nr: unix.SYS_FSTAT, a: fd, b: nowhere},
		{nr: unix.SYS_FSTATFS, a: fd, b: nowhere},
		{nr: unix.SYS_STATX, a: fd, b: p([]byte{0}), c: unix.AT_EMPTY_PATH, d: unix.STATX_TYPE, e: nowhere},
		{nr: unix.SYS_STATX, a: at, b: p(name), d: unix.STATX_TYPE, e: nowhere},
		{nr: unix.SYS_STATX, a: at, b: nowhere, d: unix.STATX_TYPE, e: p(b)},
		{nr: unix.SYS_FACCESSAT, a: at, b: nowhere},
		{nr: unix.SYS_READLINKAT, a: at, b: p(link), c: nowhere, d: 100},
		{nr: unix.SYS_READLINKAT, a: at, b: p(link), c: p(b), d: 0},
		{nr: unix.SYS_READLINKAT, a: at, b: p(link), c: p(b), d: ^uintptr(0)},
		{nr: unix.SYS_READLINKAT, a: at, b: p(link), c: p(b), d: 5},
		{nr: unix.SYS_READLINKAT, a: at, b: nowhere, c: p(b), d: 100},
		{nr: unix.SYS_PPOLL, a: nowhere, b: 1},
		{nr: unix.SYS_WRITE, a: fd, b: nowhere, c: 10},
		{nr: unix.SYS_PWRITE64, a: fd, b: nowhere, c: 10, d: 0},
		{nr: unix.SYS_PWRITE64, a: fd, b: p(b), c: 10, d: ^uintptr(0)},
		{nr: unix.SYS_WRITEV, a: fd, b: nowhere, c: 1},
		{nr: unix.SYS_WRITEV, a: fd, b: uintptr(unsafe.Pointer(&vector[0])), c: 1024},
		{nr: unix.SYS_WRITEV, a: fd, b: uintptr(unsafe.Pointer(&vector[0])), c: 1025},
		{nr: unix.SYS_WRITEV, a: fd, b: uintptr(unsafe.Pointer(&negative[0])), c: 1},
		{nr: unix.SYS_EPOLL_CTL, a: fd, b: unix.EPOLL_CTL_ADD, c: uintptr(r.stash[0]), d: uintptr(unsafe.Pointer(&event))},
		{nr: unix.SYS_OPENAT, a: at, b: nowhere, c: unix.O_RDWR},
	}
	c := calls[o.N]
	n, _, errno := unix.Syscall6(c.nr, c.a, c.b, c.c, c.d, c.e, 0)
	if errno != 0 {
		return "", errno
	}
	return fmt.Sprintf("n=%d", n), nil
}
