// SPDX-License-Identifier: MIT

package luo

import (
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type inode struct {
	dev, ino uint64
}

// file is a file in a session (struct luo_file).
type file struct {
	session   *Session
	token     uint64
	fd        int // in the old kernel, and until it is retrieved, the file that was preserved; then the new one
	inode     inode
	size      int64
	allocated int64 // bytes
	position  int64
	seals     int
	retrieved bool
	failed    unix.Errno // what retrieving it gave; it stays so
}

func (f *file) close() {
	unix.Close(f.fd)
	f.fd = -1
}

// canPreserve is memfd_luo_can_preserve() (mm/memfd_luo.c): a file of the kernel's tmpfs without a name. It needn't
// have been made by memfd_create().
func (f *file) canPreserve() bool {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(f.fd, &st) != nil || unix.Fstatfs(f.fd, &fs) != nil {
		return false
	}
	f.inode = inode{st.Dev, st.Ino}
	f.size, f.allocated = st.Size, st.Blocks*512
	return fs.Type == unix.TMPFS_MAGIC && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0
}

// preserve is memfd_luo_preserve(). All of the file gets pages.
func (f *file) preserve() unix.Errno {
	seals, err := unix.FcntlInt(uintptr(f.fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return unix.EINVAL
	}
	f.seals = seals
	pages := (f.size + pageSize - 1) / pageSize
	if pages > math.MaxUint32 {
		return unix.EFBIG
	}
	// The array of pointers to the pages is one kvmalloc(), which gives at most INT_MAX bytes (mm/slub.c).
	if pages*8 > math.MaxInt32 {
		return unix.ENOMEM
	}
	if f.size-f.allocated > available() {
		return unix.ENOMEM
	}
	return f.fill()
}

// fill gives the file a page everywhere, as memfd_pin_folios() does: reading a hole of a shared mapping makes one.
func (f *file) fill() unix.Errno {
	const step = 64 << 20
	readable, err := reopen(f.fd, unix.O_RDONLY)
	if err != nil {
		return 0 // only the number of blocks, and SEEK_DATA, tell it
	}
	defer unix.Close(readable)
	// From the first place without a page, or with one that was only allocated.
	hole, err := unix.Seek(readable, 0, unix.SEEK_HOLE)
	if err != nil {
		return 0
	}
	for at := hole &^ (pageSize - 1); at < f.size; at += step {
		pages, err := unix.Mmap(readable, at, int(min(step, f.size-at)), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return unix.ENOMEM
		}
		unix.Munmap(pages)
	}
	return 0
}

func accessMode(fd int) int {
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return flags & unix.O_ACCMODE
}

// reopen opens the file another time.
func reopen(fd, mode int) (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(fd), mode|unix.O_CLOEXEC, 0)
}

// available is the memory that can be had without swapping, in bytes.
func available() int64 {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return math.MaxInt64
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			if kB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64); err == nil {
				return kB << 10
			}
		}
	}
	return math.MaxInt64
}

// freeze is memfd_luo_freeze(): the position may have changed since.
func (f *file) freeze() {
	if position, err := unix.Seek(f.fd, 0, io.SeekCurrent); err == nil {
		f.position = position
	}
}

// retrieve is memfd_luo_retrieve(). It makes a new file, as the kernel does: its name is empty, and it may be
// executable where the old one wasn't.
func (f *file) retrieve() unix.Errno {
	fd, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return errno(err)
	}
	if err := f.copyTo(fd); err != nil {
		unix.Close(fd)
		return errno(err)
	}
	f.close()
	f.fd = fd
	f.retrieved = true
	return 0
}

func (f *file) copyTo(fd int) error {
	if err := unix.Ftruncate(fd, f.size); err != nil {
		return err
	}
	if err := copyPages(fd, f.fd, f.size); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, f.seals); err != nil {
		return err
	}
	if _, err := unix.Seek(fd, f.position, io.SeekStart); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	f.inode = inode{st.Dev, st.Ino}
	return nil
}

// copyPages copies in steps, and frees what was copied, so that memory needn't suffice for two copies.
func copyPages(to, from int, size int64) error {
	if accessMode(from) != unix.O_RDWR {
		// What it was preserved by needn't be readable.
		readable, err := reopen(from, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(readable)
		from = readable
	}
	const step = 4 << 20
	buf := make([]byte, min(step, size))
	for at := int64(0); at < size; {
		b := buf[:min(step, size-at)]
		n, err := unix.Pread(from, b, at)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		for done := 0; done < n; {
			m, err := unix.Pwrite(to, b[done:n], at+int64(done))
			if err != nil {
				return err
			}
			done += m
		}
		// A file that is sealed or open for reading only stays as it is.
		unix.Fallocate(from, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n))
		at += int64(n)
	}
	return nil
}

func errno(err error) unix.Errno {
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}
