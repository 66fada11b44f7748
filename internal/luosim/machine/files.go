// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"encoding/binary"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/luo"
)

func (b *boot) ioctl(c *call) verdict {
	h := b.ours(c, c.argInt(0))
	if h == nil || !c.listener.Valid(&c.Call) {
		return cont
	}
	cmd := uint32(c.Args[1])
	if b.kernel.IsDevice(h) {
		return result(b.kernel.DeviceIoctl(c, cmd, c.Args[2]))
	}
	s := b.kernel.Session(h)
	if s == nil {
		return cont
	}
	return result(s.Ioctl(c, cmd, c.Args[2]))
}

// fstat of a session is that of the file that stands for it.
func (b *boot) fstat(c *call) verdict {
	if !b.isDevice(c, c.argInt(0)) {
		return cont
	}
	st, err := b.pseudo(devicePath)
	if err != 0 {
		return result(err)
	}
	return result(c.Write(c.Args[1], bytesOf(&st)))
}

// fstatfs of a session is that of the file that stands for it; the device lies on a tmpfs.
func (b *boot) fstatfs(c *call) verdict {
	if !b.isDevice(c, c.argInt(0)) {
		return cont
	}
	fs := unix.Statfs_t{Type: unix.TMPFS_MAGIC, Bsize: 4096, Frsize: 4096, Namelen: 255}
	return result(c.Write(c.Args[1], bytesOf(&fs)))
}

// lseek is for files that have no position.
func (b *boot) lseek(c *call) verdict {
	if b.ours(c, c.argInt(0)) == nil {
		return cont
	}
	return result(unix.ESPIPE)
}

// epollCtl refuses sessions and the device: they have no poll operation, and are no epoll instances to the caller. The
// order is that of do_epoll_ctl() (fs/eventpoll.c).
func (b *boot) epollCtl(c *call) verdict {
	target := b.ours(c, c.argInt(2)) != nil
	if !target && b.ours(c, c.argInt(0)) == nil {
		return cont
	}
	if _, err := os.Stat(c.proc("fd/" + strconv.Itoa(int(c.argInt(0))))); err != nil {
		return result(unix.EBADF)
	}
	if !target {
		own, err := c.File(c.argInt(2))
		if err != 0 {
			return result(err)
		}
		defer unix.Close(own)
		if canPoll(own) {
			return result(unix.EINVAL)
		}
	}
	return result(unix.EPERM)
}

// canPoll tells whether a file has a poll operation, by the kernel's own answer.
func canPoll(fd int) bool {
	instance, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return true
	}
	defer unix.Close(instance)
	return unix.EpollCtl(instance, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}) != unix.EPERM
}

// alwaysReady is what poll says of a file without a poll operation (DEFAULT_POLLMASK).
const (
	alwaysReady = unix.POLLIN | unix.POLLOUT | pollRdNorm | pollWrNorm
	pollRdNorm  = 0x40
	pollWrNorm  = 0x100
)

// poll answers at once if there is a session or the device among the files, as these are always ready.
func (b *boot) poll(c *call) verdict {
	n := c.Args[1]
	if b.handles.Empty() || n == 0 || n > 1<<16 {
		return cont
	}
	const size = 8 // struct pollfd
	raw := make([]byte, n*size)
	if c.Read(c.Args[0], raw) != 0 {
		return cont
	}
	var asked []unix.PollFd
	ready := map[int]int16{} // of sessions and the device, by position
	for at := 0; at < len(raw); at += size {
		p := unix.PollFd{Fd: int32(binary.NativeEndian.Uint32(raw[at:])), Events: int16(binary.NativeEndian.Uint16(raw[at+4:]))}
		if events := p.Events & alwaysReady; events != 0 && b.ours(c, p.Fd) != nil {
			ready[len(asked)] = events
			p.Fd = -1
		}
		asked = append(asked, p)
	}
	if len(ready) == 0 {
		return cont
	}
	count := int64(len(ready))
	for i, p := range asked {
		if p.Fd < 0 {
			continue
		}
		own, err := c.File(p.Fd)
		if err != 0 {
			asked[i].Fd = -1
			ready[i] = unix.POLLNVAL
			count++
			continue
		}
		defer unix.Close(own)
		asked[i].Fd = int32(own)
	}
	if n, err := unix.Poll(asked, 0); err == nil {
		count += int64(n)
	}
	for i, p := range asked {
		if events, ok := ready[i]; ok {
			p.Revents = events
		}
		binary.NativeEndian.PutUint16(raw[i*size+6:], uint16(p.Revents))
	}
	if err := c.Write(c.Args[0], raw); err != 0 {
		return result(err)
	}
	return gives(count)
}

// ours is what a descriptor stands for, if that is a session or the device, and nil if it isn't.
func (b *boot) ours(c *call, fd int32) luo.Handle {
	if b.handles.Empty() || fd < 0 {
		return nil
	}
	// Cheaper than what Of does.
	link, err := os.Readlink(c.proc("fd/" + strconv.Itoa(int(fd))))
	if err != nil || !strings.HasSuffix(link, "[eventpoll]") {
		return nil
	}
	return b.handles.Of(c.pid(), fd)
}

func (b *boot) isDevice(c *call, fd int32) bool {
	h := b.ours(c, fd)
	return h != nil && b.kernel.IsDevice(h)
}

// frozen is a duplicate of a preserved file that the caller may write to, its size, and its status flags. The
// duplicate is the caller's to close. For all other files the kernel decides alone.
func (b *boot) frozen(c *call, fd int32) (own int, size int64, flags int, ok bool) {
	if !b.kernel.AnyFrozen() || fd < 0 {
		return
	}
	dev, ino, err := identity(c.proc("fd/" + strconv.Itoa(int(fd))))
	if err != nil {
		return
	}
	size, ok = b.kernel.Frozen(dev, ino)
	if !ok {
		return
	}
	own, fileErr := c.File(fd)
	if fileErr != 0 {
		return own, size, flags, false
	}
	flags, ctlErr := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
	if ctlErr != nil || flags&unix.O_ACCMODE == unix.O_RDONLY {
		unix.Close(own)
		return own, size, flags, false
	}
	return own, size, flags, true
}

// identity is what a file is known by. It is asked for in a way that doesn't make a network or FUSE file system ask
// others: these might wait for this process.
func identity(path string) (dev, ino uint64, err error) {
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x); err != nil {
		return 0, 0, err
	}
	return unix.Mkdev(x.Dev_major, x.Dev_minor), x.Ino, nil
}

// ftruncate is the end of shmem_setattr() (mm/shmem.c).
func (b *boot) ftruncate(c *call) verdict {
	length := int64(c.Args[1])
	if length < 0 {
		return cont
	}
	own, size, _, ok := b.frozen(c, c.argInt(0))
	if !ok {
		return cont
	}
	defer unix.Close(own)
	if length == size {
		return cont
	}
	return result(unix.EPERM)
}

// fallocate is the beginning of shmem_fallocate() (mm/shmem.c).
func (b *boot) fallocate(c *call) verdict {
	mode, offset, length := uint32(c.Args[1]), int64(c.Args[2]), int64(c.Args[3])
	punch := mode&unix.FALLOC_FL_PUNCH_HOLE != 0
	switch {
	case mode&^(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE) != 0, punch && mode&unix.FALLOC_FL_KEEP_SIZE == 0,
		offset < 0, length <= 0, offset+length < 0:
		return cont // the kernel refuses it
	}
	own, _, _, ok := b.frozen(c, c.argInt(0))
	if !ok {
		return cont
	}
	defer unix.Close(own)
	return result(unix.EPERM)
}

// transferMax is what one call transfers at most (MAX_RW_COUNT in include/linux/fs.h).
const transferMax = 0x7ffff000

// How a write's bytes are given.
const (
	plain = iota
	vector
)

// Flags of pwritev2() and preadv2() (include/uapi/linux/fs.h).
const (
	rwfNowait = 0x08
	rwfAppend = 0x10
)

// write is the end of shmem_write_begin() (mm/shmem.c): what fits is written.
func (b *boot) write(c *call, kind, positionArg int) verdict {
	if !b.kernel.AnyFrozen() {
		return cont
	}
	return b.writeAt(c, kind, positionArg, 0)
}

func (b *boot) pwritev2(c *call) verdict {
	if !b.kernel.AnyFrozen() {
		return cont
	}
	if int64(c.Args[3]) == -1 {
		return b.writeAt(c, vector, none, c.argInt(5))
	}
	return b.writeAt(c, vector, 3, c.argInt(5))
}

func (b *boot) writeAt(c *call, kind, positionArg int, rwf int32) verdict {
	own, size, flags, ok := b.frozen(c, c.argInt(0))
	if !ok {
		return cont
	}
	defer unix.Close(own)
	pieces, err := c.pieces(kind)
	if err != 0 {
		return cont // the kernel says what is wrong
	}
	position, posErr := unix.Seek(own, 0, io.SeekCurrent)
	switch {
	case posErr != nil:
		return cont
	case flags&unix.O_APPEND != 0, rwf&rwfAppend != 0:
		position = size
	case positionArg != none:
		if position = int64(c.Args[positionArg]); position < 0 {
			return cont
		}
	}
	length := int64(0)
	for _, p := range pieces {
		length = min(length+int64(p.Len), transferMax)
	}
	fits, err := luo.Fits(size, position, length)
	switch {
	case err != 0:
		return result(err)
	case fits == length:
		return cont
	}
	data := make([]byte, 0, fits)
	for _, p := range pieces {
		n := min(int(p.Len), int(fits)-len(data))
		if err := c.Read(uint64(p.Base), data[len(data):len(data)+n]); err != 0 {
			return result(err)
		}
		data = data[:len(data)+n]
	}
	var n int
	var writeErr error
	if positionArg != none {
		n, writeErr = unix.Pwrite(own, data, position)
	} else {
		n, writeErr = unix.Write(own, data)
	}
	if writeErr != nil {
		return result(writeErr.(unix.Errno))
	}
	return gives(int64(n))
}

// pieces are where a write's bytes are.
func (c *call) pieces(kind int) ([]unix.RemoteIovec, unix.Errno) {
	if kind == plain {
		return []unix.RemoteIovec{{Base: uintptr(c.Args[1]), Len: int(c.Args[2])}}, 0
	}
	n := c.Args[2]
	if n > 1024 { // UIO_MAXIOV
		return nil, unix.EINVAL
	}
	raw := make([]byte, 16*n)
	if err := c.Read(c.Args[1], raw); err != 0 {
		return nil, err
	}
	var pieces []unix.RemoteIovec
	for at := 0; at < len(raw); at += 16 {
		length := int(binary.NativeEndian.Uint64(raw[at+8:]))
		if length < 0 {
			return nil, unix.EINVAL
		}
		pieces = append(pieces, unix.RemoteIovec{Base: uintptr(binary.NativeEndian.Uint64(raw[at:])), Len: length})
	}
	return pieces, 0
}

func (b *boot) sendfile(c *call) verdict {
	return b.move(c, transfer{out: 0, outAt: none, in: 1, inAt: 2, count: 3})
}

func (b *boot) splice(c *call) verdict {
	return b.move(c, transfer{out: 2, outAt: 3, in: 0, inAt: 1, count: 4})
}

func (b *boot) copyFileRange(c *call) verdict {
	from, _, fromErr := identity(c.proc("fd/" + strconv.Itoa(int(c.argInt(0)))))
	to, _, toErr := identity(c.proc("fd/" + strconv.Itoa(int(c.argInt(2)))))
	if fromErr != nil || toErr != nil || from != to {
		return cont // not between two tmpfs
	}
	return b.move(c, transfer{out: 2, outAt: 3, in: 0, inAt: 1, count: 4})
}

// transfer says which arguments of a call are what. Positions are pointers, which may be NULL.
type transfer struct{ out, outAt, in, inAt, count int }

// move is for the calls that take bytes from another file: of those, what fits is written to a preserved file.
func (b *boot) move(c *call, t transfer) verdict {
	own, size, flags, ok := b.frozen(c, c.argInt(t.out))
	if !ok {
		return cont
	}
	defer unix.Close(own)
	source, err := c.File(c.argInt(t.in))
	if err != 0 || flags&unix.O_APPEND != 0 { // none of these calls writes to such a file
		return cont
	}
	defer unix.Close(source)
	to, toErr := c.position(t.outAt, own)
	from, fromErr := c.position(t.inAt, source)
	count := min(int64(c.Args[t.count]), waiting(source, from), transferMax)
	if toErr != nil || count <= 0 {
		return cont
	}
	fits, err := luo.Fits(size, to, count)
	switch {
	case err != 0:
		return result(err)
	case fits == count:
		return cont
	}
	data := make([]byte, fits)
	n, readErr := 0, error(nil)
	if fromErr == nil {
		n, readErr = unix.Pread(source, data, from)
	} else if n, readErr = unix.Preadv2(source, [][]byte{data}, -1, rwfNowait); readErr == unix.EAGAIN {
		return cont // somebody else was faster; the caller may wait, and we may not
	}
	if readErr == nil {
		n, readErr = unix.Pwrite(own, data[:n], to)
	}
	if readErr != nil {
		return result(readErr.(unix.Errno))
	}
	c.moved(t.outAt, own, to+int64(n))
	if fromErr == nil {
		c.moved(t.inAt, source, from+int64(n))
	}
	return gives(int64(n))
}

// position is what the argument points to, or else the file's own.
func (c *call) position(arg, fd int) (int64, error) {
	var b [8]byte
	if arg != none && c.Args[arg] != 0 && c.Read(c.Args[arg], b[:]) == 0 {
		return int64(binary.NativeEndian.Uint64(b[:])), nil
	}
	return unix.Seek(fd, 0, io.SeekCurrent)
}

// moved writes such a position.
func (c *call) moved(arg, fd int, position int64) {
	if arg == none || c.Args[arg] == 0 {
		unix.Seek(fd, position, io.SeekStart)
		return
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(position))
	c.Write(c.Args[arg], b[:])
}

// waiting is how many bytes can be had from a file at once.
func waiting(fd int, position int64) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return st.Size - position
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return int64(n)
}

// addSeals is for memfd_add_seals() (mm/memfd.c): a file whose pages are pinned can't be sealed against writing.
func (b *boot) addSeals(c *call) verdict {
	own, size, _, ok := b.frozen(c, c.argInt(0))
	if !ok {
		return cont
	}
	defer unix.Close(own)
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_EXEC
	seals := int(uint32(c.Args[2]))
	has, err := unix.FcntlInt(uintptr(own), unix.F_GET_SEALS, 0)
	if err != nil || seals&^all != 0 || has&unix.F_SEAL_SEAL != 0 {
		return cont
	}
	var st unix.Stat_t
	if unix.Fstat(own, &st) == nil && seals&unix.F_SEAL_EXEC != 0 && st.Mode&0o111 != 0 {
		seals |= unix.F_SEAL_WRITE
	}
	if seals&unix.F_SEAL_WRITE != 0 && has&unix.F_SEAL_WRITE == 0 && size > 0 {
		return result(unix.EBUSY)
	}
	return cont
}
