// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/notify"
)

// call is a system call that was caught. It is luo's Caller.
type call struct {
	notify.Call
	listener *notify.Listener
	boot     *boot
}

func (c *call) pid() int { return int(c.PID) }

// proc is a path in the caller's directory of /proc.
func (c *call) proc(elem string) string { return "/proc/" + strconv.Itoa(c.pid()) + "/" + elem }

func (c *call) Read(address uint64, b []byte) unix.Errno {
	return c.transfer(unix.ProcessVMReadv, address, b)
}

func (c *call) Write(address uint64, b []byte) unix.Errno {
	return c.transfer(unix.ProcessVMWritev, address, b)
}

func (c *call) transfer(do func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error), address uint64, b []byte) unix.Errno {
	if len(b) == 0 {
		return 0
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := do(c.pid(), local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(b)}}, 0)
	if err == unix.EPERM {
		c.boot.say("blind", "%s can't be looked into, as it is not dumpable (PR_SET_DUMPABLE, or a program that its user can't read): its calls go to the real machine", c.who())
	}
	if err != nil || n < len(b) {
		return unix.EFAULT
	}
	return 0
}

// text is a C string, of at most PATH_MAX bytes.
func (c *call) text(address uint64) (string, unix.Errno) {
	var out []byte
	const page, step, most = 4096, 256, 4096
	for len(out) < most {
		// Not over the end of a page: the next one may not be there.
		b := make([]byte, min(step, page-address%page))
		if err := c.Read(address, b); err != 0 {
			return "", err
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(out, b[:i]...)), 0
		}
		out = append(out, b...)
		address += uint64(len(b))
	}
	return "", unix.ENAMETOOLONG
}

// open is a descriptor of the caller, as a duplicate here. It may be an O_PATH one.
func (c *call) open(fd int32) (int, unix.Errno) {
	if fd < 0 {
		return -1, unix.EBADF
	}
	pidfd, err := unix.PidfdOpen(c.pid(), pidfdThread)
	if err != nil {
		// Before Linux 6.9 a pidfd was a process's and never a thread's.
		if pidfd, err = unix.PidfdOpen(c.process(), 0); err != nil {
			return -1, unix.EBADF
		}
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, int(fd), 0)
	if err == unix.EMFILE {
		c.boot.say("descriptors", "too many open files: luosim has a descriptor for each session and each preserved file; raise the limit (ulimit -n)")
	}
	if err != nil {
		return -1, unix.EBADF
	}
	return own, 0
}

const pidfdThread = unix.O_EXCL // PIDFD_THREAD

// process is the thread's process.
func (c *call) process() int {
	status, err := os.ReadFile(c.proc("status"))
	if err != nil {
		return c.pid()
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return pid
			}
		}
	}
	return c.pid()
}

// File is for what takes a file: an O_PATH descriptor is none.
func (c *call) File(fd int32) (int, unix.Errno) {
	own, err := c.open(fd)
	if err != 0 {
		return -1, err
	}
	if flags, err := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH != 0 {
		unix.Close(own)
		return -1, unix.EBADF
	}
	return own, 0
}

// Room counts the caller's descriptors against its limit.
func (c *call) Room() bool {
	var limit unix.Rlimit
	if unix.Prlimit(c.process(), unix.RLIMIT_NOFILE, nil, &limit) != nil {
		return true
	}
	dir, err := os.Open(c.proc("fd"))
	if err != nil {
		return true
	}
	defer dir.Close()
	// Since Linux 6.2 the size is how many there are.
	if st, err := dir.Stat(); err == nil && st.Size() > 0 && uint64(st.Size()) < limit.Cur {
		return true
	}
	return uint64(c.Lowest()) < limit.Cur
}

func (c *call) Lowest() int32 {
	taken := map[string]bool{}
	entries, _ := os.ReadDir(c.proc("fd"))
	for _, e := range entries {
		taken[e.Name()] = true
	}
	for fd := int32(0); ; fd++ {
		if !taken[strconv.Itoa(int(fd))] {
			return fd
		}
	}
}

func (c *call) Install(fd int) (int32, unix.Errno) {
	n, err := c.listener.Give(&c.Call, fd, unix.O_CLOEXEC)
	if err != 0 {
		return -1, unix.EMFILE
	}
	return n, 0
}

// who names the caller for a message.
func (c *call) who() string {
	name, err := os.ReadFile(c.proc("comm"))
	if err != nil {
		return fmt.Sprintf("process %d", c.pid())
	}
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), c.process())
}

func (c *call) argInt(i int) int32 { return int32(uint32(c.Args[i])) }
