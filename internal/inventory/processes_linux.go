// SPDX-License-Identifier: MIT

package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// AddProcesses looks at the descriptors of all processes in /proc. Without privileges only those of one's own user can be
// looked at. A session is held here for as long as it takes to ask it.
func (i *Inventory) AddProcesses(ctx context.Context, cgroups *peer.Cgroups) error {
	pids, err := numbers("/proc")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("looking at all processes: %w", err)
		}
		if err := i.addProcess(cgroups, pid); err != nil && !kernelThread(pid) {
			i.Unseen = append(i.Unseen, Unseen{pid, err})
		}
	}
	return nil
}

// addProcess is an error if the process could not be looked at. One that has ended by then holds nothing.
func (i *Inventory) addProcess(cgroups *peer.Cgroups, pid int) error {
	// First of all: from here on the PID can't become another process's unnoticed.
	raw, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	pidfd := fd.New(raw)
	defer pidfd.Close()
	held, lookErr := sessions(pidfd, pid)
	// It lives, so what was read by its PID was about it.
	who, err := cgroups.OfPIDFD(pidfd)
	if errors.Is(err, peer.ErrGone) {
		return nil
	}
	if err != nil {
		lookErr = errors.Join(lookErr, err)
	} else if !slices.ContainsFunc(i.Seen, func(p peer.Identity) bool { return p.Cgroup == who.Cgroup && p.UID == who.UID }) {
		i.Seen = append(i.Seen, peer.Identity{UID: who.UID, Cgroup: who.Cgroup, Owner: who.Owner})
	}
	for _, h := range held {
		s := i.Session(h.KernelName, h.Direction)
		s.Holders = append(s.Holders, Holder{PID: pid, Unit: strings.TrimPrefix(who.Owner, "/")})
	}
	return lookErr
}

// sessions are those that a process has open, each once. With an error there may be more.
//
// A process whose main thread has ended, and a thread with a table of its own (unshare(2), CLONE_FILES), have descriptors
// that /proc/PID/fd doesn't show; the first of the two is an error here.
func sessions(pidfd *fd.FD, pid int) (held []Session, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := numbers(dir)
	if err != nil {
		return nil, err
	}
	if len(fds) == 0 && state(pid) == "Z" {
		return nil, errors.New("its main thread has ended, and others of it live")
	}
	var first error
	for _, n := range fds {
		link, err := os.Readlink(fmt.Sprintf("%s/%d", dir, n))
		if errors.Is(err, unix.ENOENT) {
			continue // closed since
		}
		if err != nil {
			// EACCES; or ENAMETOOLONG for a session of a long name on a kernel before 7.2, see liveupdate.MaxLinkName.
			first = cmp.Or(first, err)
			continue
		}
		kernelName, ok := strings.CutPrefix(link, liveupdate.LinkPrefix)
		if !ok {
			continue
		}
		s, err := ask(pidfd, n)
		switch {
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH), errors.Is(err, liveupdate.ErrNotASession):
			continue // closed since, or ended
		case err != nil:
			s = Session{KernelName: kernelName} // by its link alone
			first = cmp.Or(first, err)
		}
		if !slices.ContainsFunc(held, func(h Session) bool { return h.KernelName == s.KernelName && h.Direction == s.Direction }) {
			held = append(held, s)
		}
	}
	return held, first
}

// ask dups a process's session to ask what it is.
func ask(pidfd *fd.FD, number int) (s Session, err error) {
	raw, err := unix.PidfdGetfd(pidfd.Raw(), number, 0)
	if err != nil {
		return s, os.NewSyscallError("pidfd_getfd", err)
	}
	// By now the number may be another file's, of somebody who would have this hang: a FUSE file blocks fstatfs, and close
	// too. Its link doesn't.
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", raw)); err != nil || !strings.HasPrefix(link, liveupdate.LinkPrefix) {
		go unix.Close(raw)
		return s, liveupdate.ErrNotASession
	}
	session, err := liveupdate.FromFD(raw)
	if err != nil {
		unix.Close(raw)
		return s, err
	}
	defer session.Close()
	s.KernelName = session.Name()
	s.Direction, err = session.Direction()
	return s, err
}

// numbers are the entries of a directory that are numbers.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var list []int
	for _, n := range names {
		if number, err := strconv.Atoi(n); err == nil {
			list = append(list, number)
		}
	}
	slices.Sort(list)
	return list, err
}

// state is the letter of a process's state, as in ps(1).
func state(pid int) string {
	if fields := stat(pid); len(fields) > 0 {
		return fields[0]
	}
	return ""
}

// kernelThread tells whether a process is one of the kernel's, which have nothing open.
func kernelThread(pid int) bool {
	fields := stat(pid)
	if len(fields) < 7 {
		return false
	}
	const pfKthread = 0x00200000 // include/linux/sched.h, Linux 7.2
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&pfKthread != 0
}

// stat are the fields of /proc/PID/stat from the state on (proc_pid_stat(5)).
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name before them may have anything in it, a ")" too.
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}
