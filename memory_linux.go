// SPDX-License-Identifier: MIT

package holdfast

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast/internal/peer"
)

// checkMemory makes sure that this process's cgroup, and those above it, can take need bytes more. Whoever retrieves
// a file is charged for its pages (mm/memfd_luo.c, Linux 7.2: shmem_add_to_page_cache after mem_cgroup_charge), and a
// retrieval that fails for want of memory has failed for good.
func checkMemory(need int64) error {
	mount, err := peer.CgroupMount()
	if err != nil {
		return nil // without cgroup v2 there is no such limit
	}
	own, err := peer.OwnCgroup()
	if err != nil {
		return fmt.Errorf("holdfast: which memory limit applies: %w", err)
	}
	return checkMemoryIn(os.DirFS(mount), own, need)
}

// checkMemoryIn looks at every limit from the cgroup up. The tree begins at root.
func checkMemoryIn(root fs.FS, cgroup string, need int64) error {
	// The kernel's own bookkeeping for the pages is charged too: tree nodes of 576 bytes for each 64 pages.
	need += need/64 + 1<<20
	for ; ; cgroup = path.Dir(cgroup) {
		limit, available, err := memoryRoom(root, strings.TrimPrefix(cgroup, "/"))
		switch {
		case errors.Is(err, fs.ErrNotExist): // no memory controller, or the root, which has no limit
		case err != nil:
			return fmt.Errorf("holdfast: memory limit of %s: %w", cgroup, err)
		case limit >= 0 && available < need:
			return &MemoryLimitError{Cgroup: cgroup, Need: need, Available: available, Limit: limit}
		}
		if cgroup == "/" || cgroup == "." {
			return nil
		}
	}
}

// memoryRoom returns a cgroup's memory.max (-1 for none) and how much of it can still be used: what is used less
// what the kernel would give up under pressure, which is the page cache of files on disk (cgroup-v2.rst, memory.stat).
func memoryRoom(root fs.FS, dir string) (limit, available int64, err error) {
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
