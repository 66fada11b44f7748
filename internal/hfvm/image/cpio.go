// SPDX-License-Identifier: MIT

package image

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"math"
)

// WriteCPIO writes entries as a "newc" archive, the format of an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Missing directories are made.
func WriteCPIO(w io.Writer, entries []Entry) error {
	c := &cpio{w: bufio.NewWriterSize(w, 1<<20)}
	for i, e := range withParents(entries) {
		if err := c.add(uint32(i+1), e); err != nil {
			return fmt.Errorf("initramfs: %s: %w", e.Path, err)
		}
	}
	c.header("TRAILER!!!", 0, 0, 1, 0, [2]uint32{})
	return c.w.Flush()
}

type cpio struct {
	w   *bufio.Writer
	pos int64
}

func (c *cpio) add(ino uint32, e Entry) error {
	name := e.Path[1:]
	if e.Mode&fs.ModeSymlink != 0 {
		c.header(name, ino, e.unixMode(), 1, int64(len(e.Link)), [2]uint32{})
		c.string(e.Link)
		c.pad()
		return nil
	}
	if !e.Mode.IsRegular() {
		c.header(name, ino, e.unixMode(), 2, 0, e.Rdev)
		return nil
	}
	r, size, err := e.open()
	if err != nil {
		return err
	}
	defer r.Close()
	if size > math.MaxUint32 {
		return fmt.Errorf("%d bytes are too many for a cpio archive", size)
	}
	c.header(name, ino, e.unixMode(), 1, size, [2]uint32{})
	n, err := io.CopyN(c.w, r, size)
	c.pos += n
	if err != nil {
		return err
	}
	c.pad()
	return nil
}

// header writes what comes before the content; bufio.Writer keeps the first error for Flush.
func (c *cpio) header(name string, ino, mode, nlink uint32, size int64, rdev [2]uint32) {
	const uid, gid, mtime, devMajor, devMinor, check = 0, 0, 0, 0, 0, 0
	c.string(fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, uid, gid, nlink, mtime, size, devMajor, devMinor, rdev[0], rdev[1], len(name)+1, check))
	c.string(name + "\x00")
	c.pad()
}

func (c *cpio) string(s string) {
	n, _ := c.w.WriteString(s)
	c.pos += int64(n)
}

func (c *cpio) pad() {
	for c.pos%4 != 0 {
		c.string("\x00")
	}
}
