// SPDX-License-Identifier: MIT

//go:build linux

// Package notify is seccomp's user notification: a process is asked about system calls of others
// (Documentation/userspace-api/seccomp_filter.rst).
package notify

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Listener gets what the filter of [Install] catches. The fd is its owner's to close.
type Listener struct{ fd int }

// NewListener takes over the descriptor that [Install] returned.
func NewListener(fd int) *Listener {
	// Since Linux 6.6: the answer is waited for on the same CPU. It only makes it faster.
	unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlSetFlags, 1)
	return &Listener{fd}
}

// Close lets all further calls fail with ENOSYS.
func (l *Listener) Close() { unix.Close(l.fd) }

// Call is a system call that waits for an answer (struct seccomp_notif).
type Call struct {
	ID     uint64
	PID    uint32 // the thread's
	Flags  uint32
	Number int32
	Arch   uint32
	IP     uint64
	Args   [6]uint64
}

// IsCompat tells whether it was made in the way of 32-bit programs.
func (c *Call) IsCompat() bool { return c.Arch == compatArch }

type answer struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

type addFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

const (
	flagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

	ioctlRecv     = unix.SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend     = unix.SECCOMP_IOCTL_NOTIF_SEND
	ioctlValid    = 0x40082102
	ioctlAddFD    = 0x40182103
	ioctlSetFlags = 0x40082104
)

// Receive waits for a call. ENOENT says that the caller went away meanwhile, or, since Linux 6.11, that all did; EINTR
// that a signal came.
func (l *Listener) Receive(c *Call) error {
	*c = Call{}
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlRecv, uintptr(unsafe.Pointer(c))); err != 0 {
		return err
	}
	return nil
}

// Valid tells whether the caller still waits: what was read by its PID in between was the caller's.
func (l *Listener) Valid(c *Call) bool { return l.ioctl(ioctlValid, unsafe.Pointer(&c.ID)) == 0 }

// Continue lets the kernel do the call.
func (l *Listener) Continue(c *Call) {
	l.ioctl(ioctlSend, unsafe.Pointer(&answer{id: c.ID, flags: flagContinue}))
}

// Return answers with a value, or with an error if that isn't 0.
func (l *Listener) Return(c *Call, value int64, err unix.Errno) {
	l.ioctl(ioctlSend, unsafe.Pointer(&answer{id: c.ID, val: value, err: -int32(err)}))
}

// Give gives the caller a duplicate of the file. It still waits for an answer then.
func (l *Listener) Give(c *Call, fd int, flags uint32) (int32, unix.Errno) {
	for {
		n, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlAddFD,
			uintptr(unsafe.Pointer(&addFD{id: c.ID, srcFD: uint32(fd), newFDFlags: flags})))
		switch err {
		case 0:
			return int32(n), 0
		case unix.EINTR: // by a signal to this process: the caller has not got it
		default:
			return -1, err
		}
	}
}

// ReturnFile gives the caller a duplicate of the file, and its number is the answer.
//
// It takes two steps. In one (SECCOMP_ADDFD_FLAG_SEND), a signal to this process may leave the caller with the answer 0 and
// without the file: the call counts as answered before the wait that the signal ends (seccomp_notify_addfd(),
// kernel/seccomp.c, Linux 6.18).
func (l *Listener) ReturnFile(c *Call, fd int, flags uint32) unix.Errno {
	n, err := l.Give(c, fd, flags)
	if err == 0 {
		l.Return(c, int64(n), 0)
	}
	return err
}

func (l *Listener) ioctl(request uintptr, argument unsafe.Pointer) unix.Errno {
	for {
		_, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), request, uintptr(argument))
		if err != unix.EINTR {
			return err
		}
	}
}
