// SPDX-License-Identifier: MIT

package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// ErrGone is what a process that has ended is answered with, whoever holds its connection now.
var ErrGone = errors.New("the process that opened this connection has ended")

// Identity is who a process is at the moment of asking.
type Identity struct {
	PID    int
	UID    uint32 // effective, when it connected; of a subject, now
	Cgroup string // v2 path, from the root of the hierarchy
	Owner  string // "" outside any unit
}

// Process is a process that can't be mistaken for a later one with the same PID.
type Process struct {
	pidfd    *fd.FD
	uid      uint32
	uidOfNow bool // ask for it instead
	cgroups  *Cgroups
}

// FromConn takes hold of the process that connected. The caller closes it.
func (c *Cgroups) FromConn(conn *net.UnixConn) (*Process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var pidfd int
	var credErr, pidfdErr error
	if err := raw.Control(func(s uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			pidfd, pidfdErr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if pidfdErr != nil {
		// ESRCH since Linux 6.5 (net/core/sock.c), EINVAL on some, once the process has been reaped.
		if errors.Is(pidfdErr, unix.ESRCH) || errors.Is(pidfdErr, unix.EINVAL) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("SO_PEERPIDFD: %w (Linux 6.5 or newer is needed)", pidfdErr)
	}
	return &Process{pidfd: fd.New(pidfd), uid: cred.Uid, cgroups: c}, nil
}

// Identity asks the kernel anew, since a process may be moved to another cgroup while it keeps its connection.
func (p *Process) Identity() (Identity, error) {
	id := Identity{UID: p.uid}
	err := p.pidfd.Use(func(pidfd int) error {
		// The cgroup that a process had when it ended says nothing: its descriptors live on elsewhere.
		if err := alive(pidfd); err != nil {
			return err
		}
		info, err := pidfdInfo(pidfd)
		if errors.Is(err, errNoInfo) || err == nil && p.cgroups.mount == "" {
			id.PID, id.Cgroup, err = byPID(pidfd)
			id.Owner = Owner(id.Cgroup)
			if err == nil && p.uidOfNow {
				id.UID, err = effectiveUID(pidfd, id.PID)
			}
			return err
		}
		if err != nil {
			return err
		}
		id.PID = int(info.Tgid)
		if p.uidOfNow {
			id.UID = info.Euid // always there (pidfd_info, fs/pidfs.c, Linux 7.2)
		}
		found, err := p.cgroups.find(pidfd, info)
		id.Cgroup, id.Owner = found.path, found.owner
		return err
	})
	return id, err
}

// Close lets go of the process.
func (p *Process) Close() error { return p.pidfd.Close() }

// alive says ErrGone of a process that has ended.
func alive(pidfd int) error {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll of a pidfd: %w", err)
	} else if n > 0 {
		return ErrGone
	}
	return nil
}

// errNoInfo says that the kernel is older than 6.13. None with a Live Update Orchestrator is, but an emulated one may
// run on it.
var errNoInfo = errors.New("the kernel has no PIDFD_GET_INFO")

// byPID reads the cgroup by PID, and makes sure afterwards that the PID still was that process's: as long as it isn't
// reaped, nobody else gets it.
func byPID(pidfd int) (pid int, cgroup string, err error) {
	fdinfo, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return 0, "", err
	}
	if pid = parseFdinfo(string(fdinfo)); pid <= 0 {
		return 0, "", ErrGone // or it is in no PID namespace below this one
	}
	data, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err := alive(pidfd); err != nil {
		return 0, "", err
	}
	if readErr != nil {
		return pid, "", readErr
	}
	path, ok := parseCgroup(data)
	if !ok {
		return pid, "", fmt.Errorf("/proc/%d/cgroup has no line of the v2 hierarchy", pid)
	}
	// It would name no unit any more (proc_cgroup_show, kernel/cgroup/cgroup.c, Linux 7.2).
	if strings.HasSuffix(path, " (deleted)") {
		return pid, "", fmt.Errorf("the cgroup of process %d was removed: %s", pid, path)
	}
	return pid, path, nil
}

// parseFdinfo returns the PID in the text of a pidfd's /proc/self/fdinfo, or 0 (pidfd_show_fdinfo, fs/pidfs.c, Linux
// 7.2: -1 for one that has ended).
func parseFdinfo(fdinfo string) int {
	for line := range strings.Lines(fdinfo) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(value))
			return pid
		}
	}
	return 0
}

// OverflowUID is what those uids look like that this process's user namespace doesn't know; nil if it knows all.
func OverflowUID() (*uint32, error) {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || knowsAllUIDs(string(uidMap)) {
		return nil, err
	}
	data, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	uid := uint32(n)
	return &uid, err
}

// knowsAllUIDs tells it from the text of uid_map (user_namespaces(7)): as in the initial namespace, one range has all
// that there are.
func knowsAllUIDs(uidMap string) bool {
	fields := strings.Fields(uidMap)
	return len(fields) == 3 && fields[0] == "0" && fields[2] == "4294967295"
}

func pidfdInfo(pidfd int) (*unix.PidfdInfo, error) {
	info := &unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID | unix.PIDFD_INFO_CGROUPID}
	err := ioctlPidfdInfo(pidfd, info)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	// EINVAL in 6.11 and 6.12, which have ioctls for namespaces on a pidfd (pidfd_ioctl, fs/pidfs.c).
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return nil, errNoInfo
	}
	if err != nil {
		return nil, fmt.Errorf("PIDFD_GET_INFO: %w", err)
	}
	if info.Mask&unix.PIDFD_INFO_CGROUPID == 0 {
		return nil, errors.New("PIDFD_GET_INFO: the kernel did not tell the cgroup")
	}
	return info, nil
}

// Cgroups turns the kernel's numbers of cgroups into paths. Numbers are never used again while a system is up
// (kernfs ids, fs/kernfs/dir.c, Linux 7.2: generation and inode number), and a v2 cgroup can't be renamed, so what
// was found stays true. Safe for concurrent use.
type Cgroups struct {
	mount string // "" where none is: each process is asked about by PID then

	mu    sync.Mutex
	known map[uint64]cgroup
}

type cgroup struct{ path, owner string }

// cgroupsRemembered bounds the paths that are kept; past it they are looked up anew.
const cgroupsRemembered = 1024

// FindCgroups looks for the v2 hierarchy. In a container it may not be mounted.
func FindCgroups() (*Cgroups, error) {
	mount, err := CgroupMount()
	if err != nil && !errors.Is(err, errNotMounted) {
		return nil, err
	}
	return &Cgroups{mount: mount, known: map[uint64]cgroup{}}, nil
}

// CgroupMount returns where the v2 hierarchy is mounted: /sys/fs/cgroup, or another place in a hybrid tree.
func CgroupMount() (string, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return parseMountinfo(string(mountinfo))
}

// OwnCgroup returns the v2 path of the calling process.
func OwnCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	path, ok := parseCgroup(data)
	if !ok {
		return "", errors.New("/proc/self/cgroup has no line of the v2 hierarchy")
	}
	return path, nil
}

var errNotMounted = errors.New("no cgroup v2 hierarchy is mounted")

// parseMountinfo returns where the root of the v2 hierarchy is mounted (proc_pid_mountinfo(5)).
func parseMountinfo(mountinfo string) (string, error) {
	for line := range strings.Lines(mountinfo) {
		front, back, ok := strings.Cut(line, " - ")
		fields := strings.Fields(front)
		if ok && strings.HasPrefix(back, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errNotMounted
}

// find returns the cgroup that info speaks of.
//
// It comes from /proc/PID/cgroup, which needs no privilege (open_by_handle_at needs CAP_DAC_READ_SEARCH: every
// file of the host). That a PID was read makes no difference: the path is believed only if the directory there
// has the very number that the pidfd gave.
func (c *Cgroups) find(pidfd int, info *unix.PidfdInfo) (cgroup, error) {
	c.mu.Lock()
	found, ok := c.known[info.Cgroupid]
	c.mu.Unlock()
	if ok {
		return found, nil
	}
	for range 3 {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", info.Tgid))
		if err != nil {
			if _, gone := pidfdInfo(pidfd); gone != nil {
				return cgroup{}, gone
			}
			return cgroup{}, err
		}
		path, ok := parseCgroup(data)
		if !ok {
			return cgroup{}, fmt.Errorf("/proc/%d/cgroup has no line of the v2 hierarchy", info.Tgid)
		}
		var stat unix.Stat_t
		if err := unix.Stat(c.mount+path, &stat); err == nil && stat.Ino == info.Cgroupid {
			found := cgroup{path, Owner(path)}
			c.remember(info.Cgroupid, found)
			return found, nil
		}
		// It was moved in between, or has ended: ask for its present number.
		if info, err = pidfdInfo(pidfd); err != nil {
			return cgroup{}, err
		}
	}
	return cgroup{}, fmt.Errorf("the cgroup of process %d can't be told: it keeps changing, or isn't below %s", info.Tgid, c.mount)
}

func (c *Cgroups) remember(id uint64, found cgroup) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= cgroupsRemembered {
		clear(c.known)
	}
	c.known[id] = found
}

// parseCgroup returns the v2 path in the text of /proc/PID/cgroup (cgroups(7): the line of hierarchy 0).
func parseCgroup(data []byte) (string, bool) {
	for line := range bytes.Lines(data) {
		if path, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			return string(bytes.TrimSuffix(path, []byte("\n"))), len(path) > 0 && path[0] == '/'
		}
	}
	return "", false
}
