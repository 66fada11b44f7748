// SPDX-License-Identifier: MIT

package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Memory is what a cgroup can still be charged for, in bytes.
type Memory struct {
	Cgroup    string // whose limit it is: the cgroup itself, or one above
	Limit     int64  // memory.max
	Available int64  // the limit, less what is used and can't be reclaimed
}

// MemoryOf returns the tightest limit of a cgroup and those above it, or nil where there is none. What this process doesn't
// see it doesn't count: above the root of its own cgroup namespace, that is.
func MemoryOf(cgroup string) (*Memory, error) {
	mount, err := CgroupMount()
	if err != nil {
		return nil, nil // without cgroup v2 there is no such limit
	}
	return memoryIn(os.DirFS(mount), cgroup)
}

// OwnMemory is MemoryOf this process's own cgroup.
func OwnMemory() (*Memory, error) {
	if _, err := CgroupMount(); err != nil {
		return nil, nil
	}
	own, err := OwnCgroup()
	if err != nil {
		return nil, err
	}
	return MemoryOf(own)
}

// memoryIn is MemoryOf in the tree that begins at root.
func memoryIn(root fs.FS, cgroup string) (tightest *Memory, err error) {
	for ; ; cgroup = path.Dir(cgroup) {
		limit, available, err := memoryOf(root, strings.TrimPrefix(cgroup, "/"))
		switch {
		case errors.Is(err, fs.ErrNotExist): // no memory controller, or the root, which has no limit
		case err != nil:
			return nil, fmt.Errorf("memory limit of %s: %w", cgroup, err)
		case limit >= 0 && (tightest == nil || available < tightest.Available):
			tightest = &Memory{cgroup, limit, available}
		}
		if cgroup == "/" || cgroup == "." {
			return tightest, nil
		}
	}
}

// memoryOf returns a cgroup's memory.max (-1 for none) and how much of it can still be used: what is used less
// what the kernel would give up under pressure, which is the page cache of files on disk (cgroup-v2.rst, memory.stat).
func memoryOf(root fs.FS, dir string) (limit, available int64, err error) {
	text, err := fs.ReadFile(root, path.Join(dir, "memory.max"))
	if err != nil {
		return 0, 0, err
	}
	word := strings.TrimSpace(string(text))
	if word == "max" {
		return -1, 0, nil
	}
	if limit, err = strconv.ParseInt(word, 10, 64); err != nil {
		return 0, 0, err
	}
	if text, err = fs.ReadFile(root, path.Join(dir, "memory.current")); err != nil {
		return 0, 0, err
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, 0, err
	}
	if text, err = fs.ReadFile(root, path.Join(dir, "memory.stat")); err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key == "inactive_file" || key == "active_file" {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, 0, err
			}
			used -= n
		}
	}
	return limit, max(0, limit-max(0, used)), nil
}
