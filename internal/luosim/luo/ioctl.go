// SPDX-License-Identifier: MIT

package luo

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Numbers of ioctls (include/uapi/linux/liveupdate.h).
const (
	ioctlType = 0xBA

	createSession   = 0x00
	retrieveSession = 0x01

	sessionBase = 0x40
	preserveFD  = 0x40
	retrieveFD  = 0x41
	finish      = 0x42
	getName     = 0x43
)

// IoctlType is the type byte of all of them.
const IoctlType = ioctlType

// Both sides look at the number of an ioctl before its type. These masks and values are those of the numbers that they
// know, and of few others; the rest gives EINVAL.
const (
	DeviceNumbers, DeviceNumber   = 0xfe, createSession
	SessionNumbers, SessionNumber = 0xfc, sessionBase
)

func number(cmd uint32) uint32 { return cmd & 0xff }

// isPlain tells whether it is an _IO(), without size and direction.
func isPlain(cmd uint32) bool { return cmd>>8 == ioctlType }

func readSize(c Caller, address uint64) (uint32, unix.Errno) {
	var b [4]byte
	if err := c.Read(address, b[:]); err != 0 {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b[:]), 0
}

// DeviceIoctl is luo_ioctl() (kernel/liveupdate/luo_core.c).
func (k *Kernel) DeviceIoctl(c Caller, cmd uint32, address uint64) unix.Errno {
	nr := number(cmd)
	if nr > retrieveSession {
		return unix.EINVAL
	}
	size, err := readSize(c, address)
	if err != 0 {
		return err
	}
	if !isPlain(cmd) {
		return unix.ENOTTY
	}
	if size < sizeName {
		return unix.EINVAL
	}
	a, err := copyIn(c, address, size, sizeName)
	if err != 0 {
		return err
	}
	if !c.Room() {
		return unix.EMFILE
	}
	if nr == createSession {
		return k.create(a)
	}
	return k.retrieve(a)
}

// Ioctl is luo_session_ioctl() (kernel/liveupdate/luo_session.c).
func (s *Session) Ioctl(c Caller, cmd uint32, address uint64) unix.Errno {
	nr := number(cmd)
	last := uint32(getName)
	if !s.kernel.features.GetName {
		last = finish
	}
	if nr < sessionBase || nr > last {
		return unix.EINVAL
	}
	size, err := readSize(c, address)
	if err != 0 {
		return err
	}
	if !isPlain(cmd) {
		return unix.ENOTTY
	}
	var known uint32
	switch nr {
	case preserveFD:
		if s.retrieved {
			return unix.EINVAL
		}
		known = sizeToken
	case retrieveFD:
		if !s.retrieved {
			return unix.EINVAL
		}
		known = sizeToken
	case finish:
		if !s.retrieved {
			return unix.EINVAL
		}
		known = sizeFinish
	case getName:
		known = sizeName
	}
	if size < known {
		return unix.EINVAL
	}
	a, err := copyIn(c, address, size, int(known))
	if err != 0 {
		return err
	}
	switch nr {
	case preserveFD:
		return s.preserve(a)
	case retrieveFD:
		return s.retrieveFile(a)
	case finish:
		return s.finish(a)
	default:
		return s.getName(a)
	}
}
