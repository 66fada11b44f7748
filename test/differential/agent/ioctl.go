// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The commands of include/uapi/linux/liveupdate.h (7.2) and the sizes of their arguments.
const (
	createSessionCmd   = 0xBA00
	retrieveSessionCmd = 0xBA01
	preserveFDCmd      = 0xBA40
	retrieveFDCmd      = 0xBA41
	finishCmd          = 0xBA42
	getNameCmd         = 0xBA43

	sessionSize = 72
	fileSize    = 16
	finishSize  = 8
)

// How an ioctl deviates from the right one is one number, N = size + 100*place + 10000*command + 100000*content.
const (
	perPlace   = 100
	perCommand = 10000
	perContent = 100000
)

// Sizes: what the argument says of its own size.
const (
	sizeRight = iota
	sizeZero
	size4
	size7
	size8
	size15
	sizeLess1
	sizeLess4
	sizeLess8
	sizePlus1
	sizePlus8
	sizePlus8First
	sizePlus8Last
	sizePage
	sizePageLast
	sizeTwoPages
	sizeHuge
	sizeHugeFirst
	sizeToGuard
	sizes
)

// Places: where the argument lies.
const (
	placeNormal = iota
	placeNull
	placeUnmapped
	placeReadOnly
	placeOnly4
	placeOnly2
	placeAtEnd
	placeOnly8Writable
	placeUnaligned
	placeKernel
	placeLastByteMissing
	placeReadOnlyThenWritable
	placeNone
	placeAllButLastReadable
	places
)

// Commands: the number's other bits.
const (
	commandRight = iota
	commandIOWR
	commandIOR
	commandIOW
	commandType
	commandHigh
	commands
)

// Contents.
const (
	contentRight    = iota
	contentNoFD     // no descriptor is left: RLIMIT_NOFILE is 0
	contentReserved // the reserved field isn't zero
	contentTail     // bytes after the name's NUL
	contents
)

// An argument is memory laid out to fail in all ways: four pages to write to, one with no access, one to write to, one
// to read only, one to write to, one with no access.
type argument struct{ memory []byte }

const page = 4096

func newArgument() (*argument, error) {
	m, err := unix.Mmap(-1, 0, 9*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	a := &argument{m}
	return a, a.protect()
}

func (a *argument) protect() error {
	for _, p := range []struct{ page, prot int }{{4, unix.PROT_NONE}, {6, unix.PROT_READ}, {8, unix.PROT_NONE}} {
		if err := unix.Mprotect(a.memory[p.page*page:(p.page+1)*page], p.prot); err != nil {
			return err
		}
	}
	return nil
}

// call makes the ioctl with the struct (its size field is filled in here) and returns the struct as it is afterwards,
// nil if it was where nothing can be read.
func (a *argument) call(fd int, command uint32, right []byte, deviation int64) ([]byte, error) {
	size := int(deviation % perPlace)
	place := int(deviation / perPlace % 100)
	other := int(deviation / perCommand % 10)
	content := int(deviation / perContent % 10)

	length := len(right)
	trailing := make([]byte, 0, 3*page)
	said := uint32(length)
	switch size {
	case sizeZero:
		said = 0
	case size4:
		said = 4
	case size7:
		said = 7
	case size8:
		said = 8
	case size15:
		said = 15
	case sizeLess1:
		said--
	case sizeLess4:
		said -= 4
	case sizeLess8:
		said -= 8
	case sizePlus1:
		said++
		trailing = append(trailing, 0)
	case sizePlus8, sizePlus8First, sizePlus8Last:
		said += 8
		trailing = trailing[:8]
		if size == sizePlus8First {
			trailing[0] = 1
		} else if size == sizePlus8Last {
			trailing[7] = 1
		}
	case sizePage:
		said = page
		trailing = trailing[:page-length]
	case sizePageLast:
		said = page + 100
		trailing = trailing[:page+100-length]
		trailing[len(trailing)-1] = 0x80
	case sizeTwoPages:
		said = 2 * page
		trailing = trailing[:2*page-length]
	case sizeHuge:
		said = 0xffffffff
	case sizeHugeFirst:
		said = 0xffffffff
		trailing = append(trailing, 1)
	case sizeToGuard:
		said = 4*page + 1
	}
	binary.NativeEndian.PutUint32(right, said)
	whole := append(append([]byte{}, right...), trailing...)

	// at is where it starts in the memory; -1: somewhere else.
	at := 0
	switch place {
	case placeReadOnly:
		at = 6 * page
	case placeOnly4:
		at = 4*page - 4
	case placeOnly2:
		at = 4*page - 2
	case placeAtEnd:
		at = 4*page - len(whole)
	case placeOnly8Writable:
		at = 6*page - 8
	case placeUnaligned:
		at = 1
	case placeLastByteMissing:
		at = 4*page - length + 1
	case placeReadOnlyThenWritable:
		at = 7*page - 4
	case placeNone:
		at = 4 * page
	case placeAllButLastReadable: // the last 8 bytes can be read, not written
		at = 6*page - length + 8
	case placeNull, placeUnmapped, placeKernel:
		at = -1
	}
	if err := unix.Mprotect(a.memory, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	clear(a.memory)
	if at >= 0 {
		copy(a.memory[at:], whole)
	}
	if err := a.protect(); err != nil {
		return nil, err
	}
	address := uintptr(unsafe.Pointer(&a.memory[0])) + uintptr(max(at, 0))
	switch place {
	case placeNull:
		address = 0
	case placeUnmapped:
		address = 0x1000
	case placeKernel:
		address = 0xffff888000001000
	}
	switch other {
	case commandIOWR:
		command |= 3<<30 | uint32(length)<<16
	case commandIOR:
		command |= 2 << 30
	case commandIOW:
		command |= 1<<30 | 4<<16
	case commandType:
		command = command&^0xff00 | 0xBB00
	case commandHigh: // beyond the numbers that there are
		command += 4
	}
	var before unix.Rlimit
	if content == contentNoFD {
		unix.Getrlimit(unix.RLIMIT_NOFILE, &before)
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max})
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(command), address)
	if content == contentNoFD {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	}
	if err := unix.Mprotect(a.memory, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if at < 0 {
		return nil, fail(errno)
	}
	after := bytes.Clone(a.memory[at : at+len(whole)])
	if !bytes.Equal(after[length:], whole[length:]) {
		return after[:length], fmt.Errorf("%s, and bytes behind the struct have changed", errname(fail(errno)))
	}
	return after[:length], fail(errno)
}

// field says what became of the descriptor that an argument has at offset 4.
func field(before, after []byte) (string, int) {
	if after == nil {
		return "", -1
	}
	fd := int(int32(binary.NativeEndian.Uint32(after[4:])))
	text := "fd=same"
	if !bytes.Equal(before[4:8], after[4:8]) {
		text = "fd=set"
		if fd < 0 {
			text = fmt.Sprintf("fd=%d", fd)
		}
	}
	a, b := bytes.Clone(before), bytes.Clone(after)
	copy(b[4:8], a[4:8])
	if !bytes.Equal(a, b) {
		text += fmt.Sprintf(" changed=%x", b)
	}
	return text, fd
}

func createSession(r *runner, o op) (string, error) {
	command := uint32(createSessionCmd)
	if o.Kind == "retrieve" {
		command = retrieveSessionCmd
	}
	b := make([]byte, sessionSize)
	copy(b[8:], o.Name)
	if o.N/perContent%10 == contentTail && len(o.Name) < 60 {
		for i := 8 + len(o.Name) + 1; i < len(b); i++ {
			b[i] = byte(i)
		}
	}
	binary.NativeEndian.PutUint32(b[4:], 0x7fffff00)
	after, err := r.arg.call(r.fds[o.A], command, b, o.N)
	text, fd := field(b, after)
	if err == nil {
		if o.M == 1 { // not kept: for names that another sequence might use too
			unix.Close(fd)
		} else {
			r.put(o.B, fd)
		}
	}
	return text, err
}

func preserve(r *runner, o op) (string, error) {
	b := make([]byte, fileSize)
	binary.NativeEndian.PutUint32(b[4:], uint32(r.fds[o.B]))
	binary.NativeEndian.PutUint64(b[8:], uint64(o.M))
	after, err := r.arg.call(r.fds[o.A], preserveFDCmd, b, o.N)
	text, _ := field(b, after)
	return text, err
}

func retrieveFD(r *runner, o op) (string, error) {
	b := make([]byte, fileSize)
	binary.NativeEndian.PutUint32(b[4:], 0x7fffff00)
	binary.NativeEndian.PutUint64(b[8:], uint64(o.M))
	after, err := r.arg.call(r.fds[o.A], retrieveFDCmd, b, o.N)
	text, fd := field(b, after)
	if err == nil {
		r.put(o.B, fd)
		d, err := describe(fd)
		if err != nil {
			d = errname(err)
		}
		text += " " + d
	}
	return text, err
}

func finish(r *runner, o op) (string, error) {
	b := make([]byte, finishSize)
	if o.N/perContent%10 == contentReserved {
		b[7] = 1
	}
	after, err := r.arg.call(r.fds[o.A], finishCmd, b, o.N)
	text, _ := field(b, after)
	return text, err
}

func getName(r *runner, o op) (string, error) {
	b := make([]byte, sessionSize)
	for i := 8; i < len(b); i++ {
		b[i] = 0xA5
	}
	if o.N/perContent%10 == contentReserved {
		b[5] = 1
	}
	after, err := r.arg.call(r.fds[o.A], getNameCmd, b, o.N)
	if after == nil {
		return "", err
	}
	text := ""
	if !bytes.Equal(b[:8], after[:8]) {
		text = fmt.Sprintf("head=%x ", after[:8])
	}
	if !bytes.Equal(b[8:], after[8:]) {
		text += fmt.Sprintf("name=%q", after[8:])
	}
	return text, err
}

// otherIoctl makes the ioctl N with a pointer to 128 bytes, or with NULL if M is 1.
func otherIoctl(r *runner, o op) (string, error) {
	b := make([]byte, 128)
	binary.NativeEndian.PutUint32(b, sessionSize)
	var p uintptr
	if o.M != 1 {
		p = uintptr(unsafe.Pointer(&b[0]))
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.fds[o.A]), uintptr(o.N), p)
	return "", fail(errno)
}
