// SPDX-License-Identifier: MIT

package luo

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Caller is the task that made the system call.
type Caller interface {
	// Read copies from the task's memory, Write to it. Errors are EFAULT.
	Read(address uint64, b []byte) unix.Errno
	Write(address uint64, b []byte) unix.Errno
	// File is a duplicate of a descriptor of the task, with the same open file description. It is the caller's to close.
	File(fd int32) (int, unix.Errno)
	// Room tells whether the task may have one more descriptor.
	Room() bool
	// Lowest is the number that the next descriptor gets.
	Lowest() int32
	// Install gives the task a duplicate of the file, with FD_CLOEXEC.
	Install(fd int) (int32, unix.Errno)
}

const pageSize = 4096

// argument is the structure that an ioctl's argument points to, as far as the kernel knows it.
type argument struct {
	caller  Caller
	address uint64
	size    uint32 // what the task says its structure has
	b       []byte
}

// copyIn does what copy_struct_from_user() does (include/linux/uaccess.h): what lies behind the structure that the
// kernel knows must be zero.
func copyIn(c Caller, address uint64, size uint32, known int) (*argument, unix.Errno) {
	if err := zeroTail(c, address, uint64(size), uint64(known)); err != 0 {
		return nil, err
	}
	a := &argument{caller: c, address: address, size: size, b: make([]byte, known)}
	if err := c.Read(address, a.b[:min(known, int(size))]); err != 0 {
		return nil, err
	}
	return a, 0
}

func zeroTail(c Caller, address, size, known uint64) unix.Errno {
	page := make([]byte, pageSize)
	for at := address + known; at < address+size; {
		n := min(address+size-at, pageSize-at%pageSize)
		if err := c.Read(at, page[:n]); err != 0 {
			return err
		}
		for _, b := range page[:n] {
			if b != 0 {
				return unix.E2BIG
			}
		}
		at += n
	}
	return 0
}

// respond is luo_ucmd_respond() (kernel/liveupdate/luo_internal.h).
func (a *argument) respond() unix.Errno {
	return a.caller.Write(a.address, a.b[:min(len(a.b), int(a.size))])
}

// Of the structures in include/uapi/linux/liveupdate.h.
const (
	offFD    = 4 // __s32 fd, or __u32 reserved
	offName  = 8 // __u8 name[64]
	offToken = 8 // __aligned_u64 token

	sizeName   = 8 + nameLength
	sizeToken  = 16
	sizeFinish = 8

	nameLength = 64
)

func (a *argument) fd() int32 { return int32(binary.NativeEndian.Uint32(a.b[offFD:])) }

func (a *argument) setFD(fd int32) { binary.NativeEndian.PutUint32(a.b[offFD:], uint32(fd)) }

func (a *argument) reserved() uint32 { return binary.NativeEndian.Uint32(a.b[offFD:]) }

func (a *argument) token() uint64 { return binary.NativeEndian.Uint64(a.b[offToken:]) }

// name is a C string that may fill its field.
func (a *argument) name() string {
	b := a.b[offName:]
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// setName is strscpy(): it writes whole words, of which the last is filled up with zeros, and lets the rest of the
// field as the task had it (lib/string.c).
func (a *argument) setName(name string) {
	const word = 8
	field := a.b[offName:]
	clear(field[:min(len(name)/word*word+word, len(field))])
	copy(field, name)
}

// answer gives the task a file and its number in the structure, the way that CREATE_SESSION and others do it: a
// number is reserved, the structure is written, and only then is the file there. undo is for a structure that can't
// be written.
func (a *argument) answer(fd int, undo func()) unix.Errno {
	// The number is only known once the file is there, and then there is no way back: the structure is tried first.
	if err := a.respond(); err != 0 {
		a.setFD(a.caller.Lowest())
		a.respond() // as far as it can be written
		undo()
		return err
	}
	number, err := a.caller.Install(fd)
	if err != 0 {
		undo()
		return err
	}
	a.setFD(number)
	return a.respond()
}
