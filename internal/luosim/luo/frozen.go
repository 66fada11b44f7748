// SPDX-License-Identifier: MIT

package luo

import (
	"golang.org/x/sys/unix"
)

// A preserved file can't change its size until its session is closed (SHMEM_F_MAPPING_FROZEN in mm/shmem.c), and
// its pages are pinned.

// AnyFrozen tells whether any file is preserved.
func (k *Kernel) AnyFrozen() bool { return len(k.preserved) > 0 }

// Frozen tells whether the file is preserved, and its size.
func (k *Kernel) Frozen(dev, ino uint64) (size int64, frozen bool) {
	f := k.preserved[inode{dev, ino}]
	if f == nil || f.retrieved || k.releaseIfClosed(f.session) {
		return 0, false
	}
	return f.size, true
}

// Fits is how many bytes of a write at the position a frozen file takes, or EPERM: shmem_write_begin() is asked page
// by page, and refuses the first that would go past the end.
func Fits(size, position, length int64) (int64, unix.Errno) {
	if length <= size-position {
		return length, 0
	}
	if n := size&^(pageSize-1) - position; n > 0 {
		return n, 0
	}
	return 0, unix.EPERM
}
