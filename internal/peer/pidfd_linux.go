// SPDX-License-Identifier: MIT

package peer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// ErrNotAPIDFD is a descriptor that names no process.
var ErrNotAPIDFD = errors.New("the descriptor is not a pidfd")

// OfPIDFD is who the process of a pidfd is now, with its uid of now. The descriptor stays the caller's; it may be a
// stranger's, and anything. The error is ErrNotAPIDFD, or ErrGone where the process has ended.
func (c *Cgroups) OfPIDFD(pidfd *fd.FD) (Identity, error) {
	if err := pidfd.Use(isPIDFD); err != nil {
		return Identity{}, err
	}
	return (&Process{pidfd: pidfd, cgroups: c, uidOfNow: true}).Identity()
}

// OfPID is OfPIDFD for the process that has a PID now.
func (c *Cgroups) OfPID(pid int) (Identity, error) {
	raw, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return Identity{}, fmt.Errorf("there is no process %d", pid)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("pidfd_open of process %d: %w", pid, err)
	}
	pidfd := fd.New(raw)
	defer pidfd.Close()
	return c.OfPIDFD(pidfd)
}

// isPIDFD asks what a descriptor is without an ioctl, which means something else on each kind of file.
func isPIDFD(raw int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(raw, &fs); err != nil {
		return fmt.Errorf("%w: fstatfs: %w", ErrNotAPIDFD, err)
	}
	switch fs.Type {
	case unix.PID_FS_MAGIC: // since Linux 6.9 (fs/pidfs.c)
		return nil
	case unix.ANON_INODE_FS_MAGIC:
		if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", raw)); err == nil && link == "anon_inode:[pidfd]" {
			return nil
		}
	}
	return ErrNotAPIDFD
}

// effectiveUID reads it by PID, and makes sure afterwards that the PID still was the pidfd's process.
func effectiveUID(pidfd, pid int) (uint32, error) {
	status, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err := alive(pidfd); err != nil {
		return 0, err
	}
	if readErr != nil {
		return 0, readErr
	}
	for line := range strings.Lines(string(status)) {
		// Real, effective, saved, file system (proc_pid_status(5)).
		if fields := strings.Fields(line); len(fields) == 5 && fields[0] == "Uid:" {
			n, err := strconv.ParseUint(fields[2], 10, 32)
			return uint32(n), err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no line Uid", pid)
}
