// SPDX-License-Identifier: MIT

package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

func (s *System) gatherSessions(ctx context.Context) {
	var found inventory.Inventory
	cannotSee := func(format string, args ...any) { s.Unseen = append(s.Unseen, fmt.Sprintf(format, args...)) }
	stores, err := systemd.Stores(ctx)
	if err != nil {
		cannotSee("what is in all fd stores can't be told: %v", err)
	}
	cgroups, err := peer.FindCgroups()
	if err == nil {
		err = found.AddProcesses(ctx, cgroups)
	}
	if err != nil {
		cannotSee("what processes have open can't be told: %v", err)
	}
	if n := len(found.Unseen); n > 0 {
		cannotSee("processes whose files could not all be looked at: %d, as PID %d: %v", n, found.Unseen[0].PID, found.Unseen[0].Err)
	}
	// PROC_PID_INIT_INO, include/linux/proc_ns.h: that of the first namespace, whose processes are all.
	if link, err := os.Readlink("/proc/self/ns/pid"); err == nil && link != "pid:[4026531836]" {
		cannotSee("processes outside of this container (PID namespace) were not looked at")
	}
	boot, err := fdname.ThisBoot()
	if err != nil {
		cannotSee("this boot's id can't be told: %v", err)
	}
	found.AddStores(stores, boot)
	found.Sort()
	s.Sessions, s.Stores = found.Sessions, stores
	s.gatherUnits(ctx, cgroups, cannotSee)
}

// gatherUnits describes the units that have sessions, and those that have fd stores.
func (s *System) gatherUnits(ctx context.Context, cgroups *peer.Cgroups, cannotSee func(string, ...any)) {
	add := func(name string) *Unit {
		u := s.unit(name)
		if u == nil {
			u = &Unit{Name: name}
			s.Units = append(s.Units, u)
		}
		return u
	}
	ordinary, err := memfdDevice()
	if err != nil {
		cannotSee("memfds can't be told apart: %v", err)
	}
	var atPID1 []File
	if len(s.Stores) > 0 {
		if atPID1, err = memfds(1, ordinary); err != nil {
			cannotSee("the sizes of the files in fd stores can't be told: %v", err)
		}
	}
	for _, store := range s.Stores {
		u := add(store.Unit)
		for _, e := range store.Entries {
			if i := slices.IndexFunc(atPID1, func(f File) bool { return f.Dev == e.Dev && f.Inode == e.Inode }); i >= 0 {
				f := atPID1[i]
				f.Stored = true
				u.addFile(f)
			}
		}
	}
	looked := map[int]bool{}
	for _, session := range s.Sessions {
		for _, h := range session.Holders {
			if h.Store || h.PID == 1 || looked[h.PID] {
				continue
			}
			looked[h.PID] = true
			u := add(cmp.Or(h.Unit, noUnit))
			files, err := memfds(h.PID, ordinary)
			for _, f := range files {
				u.addFile(f)
			}
			if err == nil && cgroups != nil {
				err = u.addLimits(cgroups, h.PID)
			}
			// A process that has ended by now has nothing.
			if _, gone := os.Stat(fmt.Sprintf("/proc/%d", h.PID)); err != nil && !errors.Is(gone, fs.ErrNotExist) {
				u.Err = cmp.Or(u.Err, err)
			}
		}
	}
	if s.Systemd.Is == "" {
		return
	}
	var services []string
	for _, u := range s.Units {
		if strings.HasSuffix(u.Name, ".service") && !strings.Contains(u.Name, "/") {
			services = append(services, u.Name)
		}
	}
	known, err := systemd.Services(ctx, services)
	if err != nil {
		cannotSee("how fd stores are set up can't be told: %v", err)
	}
	for name, service := range known {
		u := s.unit(name)
		u.Service = &service
		if u.Limits == nil && service.Cgroup == "" {
			u.Limits, err = limits(slicePath(service.Slice))
			u.Err = cmp.Or(u.Err, err)
			if service.MemoryMax != math.MaxUint64 {
				u.Limits = append(u.Limits, Limit{name, service.MemoryMax})
			}
		}
	}
}

func (u *Unit) addFile(f File) {
	if !slices.ContainsFunc(u.Files, func(o File) bool { return o.Dev == f.Dev && o.Inode == f.Inode }) {
		u.Files = append(u.Files, f)
	}
}

func (u *Unit) addLimits(cgroups *peer.Cgroups, pid int) error {
	who, err := cgroups.OfPID(pid)
	if err != nil {
		return err
	}
	all, err := limits(who.Cgroup)
	for _, l := range all {
		if !slices.Contains(u.Limits, l) {
			u.Limits = append(u.Limits, l)
		}
	}
	return err
}

// limits are those of a cgroup and the ones above it.
func limits(cgroup string) (all []Limit, err error) {
	mount, err := peer.CgroupMount()
	if err != nil {
		return nil, nil // without cgroup v2 there is no such limit
	}
	for ; cgroup != "/" && cgroup != "." && cgroup != ""; cgroup = path.Dir(cgroup) {
		text, err := readText(filepath.Join(mount, cgroup, "memory.max"))
		if errors.Is(err, fs.ErrNotExist) || text == "max" {
			continue
		}
		if err != nil {
			return all, err
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return all, fmt.Errorf("memory.max of %s: %w", cgroup, err)
		}
		all = append(all, Limit{cgroup, n})
	}
	return all, nil
}

// slicePath is the cgroup of a slice: each "-" in its name is a level (systemd.slice(5)).
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "" || name == "-" {
		return "/"
	}
	cgroup := ""
	for i := range len(name) + 1 {
		if i == len(name) || name[i] == '-' {
			cgroup += "/" + name[:i] + ".slice"
		}
	}
	return cgroup
}

// memfds are those that a process has open. Of any other file nothing is asked: on a network or FUSE file system that can block.
func memfds(pid int, ordinary uint64) (files []File, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range fds {
		name := filepath.Join(dir, entry.Name())
		if link, err := os.Readlink(name); err != nil || !strings.HasPrefix(link, memfdPrefix) {
			continue
		}
		// The link may lie: somebody's FUSE file can be called so. What is known of a file already is told without asking.
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, name, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &st) != nil {
			continue // closed since
		}
		dev := unix.Mkdev(st.Dev_major, st.Dev_minor)
		files = append(files, File{Dev: dev, Inode: st.Ino, Size: st.Size, Allocated: st.Blocks * 512, Huge: ordinary != 0 && dev != ordinary})
	}
	return files, nil
}

// memfdDevice is the file system of all memfds but those of huge pages (shm_mnt, mm/shmem.c).
func memfdDevice() (uint64, error) {
	// With vm.memfd_noexec=2 there is no other.
	fd, err := unix.MemfdCreate("check", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("check", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return 0, os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Dev, nil
}
