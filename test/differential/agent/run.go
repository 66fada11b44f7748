// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A world is what all sequences of a boot share; none can change it for another.
type world struct {
	kernel string // the image of the next
	dir    string // on tmpfs
	source int    // a memfd of 64 KiB to copy from
	arg    *argument
	files  int
}

func newWorld(kernel, tmpfs string) (*world, error) {
	dir, err := os.MkdirTemp(tmpfs, "differential-")
	if err != nil {
		return nil, err
	}
	source, err := unix.MemfdCreate("source", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(source, pattern(9, 1<<16)); err != nil {
		return nil, err
	}
	arg, err := newArgument()
	return &world{kernel: kernel, dir: dir, source: source, arg: arg}, err
}

func (w *world) remove() { os.RemoveAll(w.dir) }

// A runner runs one sequence's part in one boot.
type runner struct {
	*world
	fds    [slotCount]int
	stash  [2]int // a socket pair: what was parked in it is in flight
	maps   [slotCount][]byte
	linked []string
	child  int  // a process that holds a copy of a descriptor
	keep   bool // what is in flight stays there
}

func (w *world) sequence(id string) *runner {
	r := &runner{world: w}
	for i := range r.fds {
		r.fds[i] = -1
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		panic(fmt.Sprintf("%s: socketpair: %v", id, err))
	}
	r.stash = fds
	return r
}

// end closes all but the sessions, so that the next sequence finds a free device. What is in flight is dropped, unless
// it is to be in flight at the kexec.
func (r *runner) end() {
	for i, m := range r.maps {
		if m != nil {
			unix.Munmap(m)
			r.maps[i] = nil
		}
	}
	r.reap()
	if !r.keep {
		unix.Close(r.stash[0])
		unix.Close(r.stash[1])
	}
	for i, fd := range r.fds {
		if fd >= 0 && (i < sessionSlot || i >= fileSlot) {
			unix.Close(fd)
		}
	}
	for _, name := range r.linked {
		os.RemoveAll(name)
	}
}

// reap ends the child; its descriptors are closed when that is done.
func (r *runner) reap() error {
	if r.child == 0 {
		return unix.ECHILD
	}
	unix.Kill(r.child, unix.SIGKILL)
	_, err := unix.Wait4(r.child, nil, 0, nil)
	r.child = 0
	return err
}

// put fills a slot, and closes what was in it.
func (r *runner) put(slot, fd int) {
	if old := r.fds[slot]; old >= 0 {
		unix.Close(old)
	}
	r.fds[slot] = fd
}

func (r *runner) do(o op) (result string) {
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			result = "SIGBUS"
		}
	}()
	f, ok := kinds[o.Kind]
	if !ok {
		return "unknown operation"
	}
	details, err := f(r, o)
	result = "ok"
	if err != nil {
		result = errname(err)
	}
	if details != "" {
		result += " " + details
	}
	return result
}

func errname(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
		return fmt.Sprintf("errno-%d", int(errno))
	}
	return "error:" + err.Error()
}

// include/uapi/asm-generic/poll.h
const (
	pollRdNorm = 0x040
	pollWrNorm = 0x100
)

const device = "/dev/liveupdate"

var openFlags = []int{
	unix.O_RDWR | unix.O_CLOEXEC, unix.O_RDONLY | unix.O_CLOEXEC, unix.O_WRONLY, unix.O_RDWR | unix.O_NONBLOCK,
	unix.O_PATH | unix.O_CLOEXEC, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT | unix.O_EXCL,
	unix.O_RDWR | unix.O_DIRECTORY, unix.O_RDWR | unix.O_TRUNC | unix.O_APPEND, unix.O_RDWR | unix.O_NOFOLLOW, 3,
}

// kinds has each kind of operation.
var kinds = map[string]func(r *runner, o op) (string, error){
	"open": func(r *runner, o op) (string, error) {
		r.put(o.A, -1)
		fd, err := unix.Open(device, openFlags[o.N], 0o600)
		if err == nil {
			r.fds[o.A] = fd
		}
		return "", err
	},
	"path": func(r *runner, o op) (string, error) {
		var st unix.Stat_t
		var err error
		switch o.N {
		case 0:
			if err = unix.Stat(device, &st); err == nil {
				return fmt.Sprintf("mode=%#o", st.Mode&unix.S_IFMT), nil
			}
		case 1:
			if err = unix.Lstat(device, &st); err == nil {
				return fmt.Sprintf("mode=%#o", st.Mode&unix.S_IFMT), nil
			}
		case 2:
			err = unix.Access(device, unix.F_OK)
		case 3:
			err = unix.Access(device, unix.R_OK|unix.W_OK)
		case 4:
			err = unix.Faccessat2(unix.AT_FDCWD, device, unix.R_OK|unix.W_OK, unix.AT_EACCESS)
		case 5:
			err = unix.Access(device, unix.X_OK)
		case 6:
			var stx unix.Statx_t
			if err = unix.Statx(unix.AT_FDCWD, device, 0, unix.STATX_TYPE, &stx); err == nil {
				return fmt.Sprintf("mode=%#o", stx.Mode&unix.S_IFMT), nil
			}
		case 7:
			_, err = unix.Open(device+"/x", unix.O_RDONLY, 0)
		case 8:
			_, err = unix.Readlink(device, make([]byte, 64))
		}
		return "", err
	},
	"close": func(r *runner, o op) (string, error) {
		err := unix.Close(r.fds[o.A])
		r.fds[o.A] = -1
		return "", err
	},
	"dup": func(r *runner, o op) (string, error) {
		var fd int
		var err error
		switch o.N {
		case 0:
			fd, err = unix.Dup(r.fds[o.A])
		case 1:
			fd, err = unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_DUPFD_CLOEXEC, 0)
		case 2: // onto what is there
			if r.fds[o.B] < 0 || o.A == o.B {
				return "skipped", nil
			}
			return "", unix.Dup3(r.fds[o.A], r.fds[o.B], unix.O_CLOEXEC)
		}
		if err == nil {
			r.put(o.B, fd)
		}
		return "", err
	},
	"pass": func(r *runner, o op) (string, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		if err := send(fds[0], r.fds[o.A]); err != nil {
			return "", err
		}
		if o.N == 1 { // moved, not copied
			r.put(o.A, -1)
		}
		fd, err := receive(fds[1])
		if err == nil {
			r.put(o.B, fd)
		}
		return "", err
	},
	"park": func(r *runner, o op) (string, error) {
		err := send(r.stash[0], r.fds[o.A])
		if err == nil && o.N == 1 {
			r.put(o.A, -1)
		}
		return "", err
	},
	"unpark": func(r *runner, o op) (string, error) {
		fd, err := receive(r.stash[1])
		if err == nil {
			r.put(o.B, fd)
		}
		return "", err
	},
	"keep": func(r *runner, o op) (string, error) {
		r.keep = true
		return "", nil
	},
	"child": func(r *runner, o op) (string, error) {
		if r.fds[o.A] < 0 {
			return "", unix.EBADF
		}
		r.reap()
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"agent", "-hold"}, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(r.fds[o.A])}})
		if err == nil {
			r.child = pid
		}
		return "", err
	},
	"reap": func(r *runner, o op) (string, error) { return "", r.reap() },
	"kcmp": func(r *runner, o op) (string, error) { // one open file description?
		pid := uintptr(os.Getpid())
		v, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, uintptr(r.fds[o.A]), uintptr(r.fds[o.B]), 0)
		return fmt.Sprintf("same=%v", v == 0), fail(errno)
	},
	"statx": func(r *runner, o op) (string, error) {
		var st unix.Statx_t
		if err := unix.Statx(r.fds[o.A], "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_SIZE, &st); err != nil {
			return "", err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Sprintf("mode=%#o", st.Mode), nil
		}
		return fmt.Sprintf("mode=%#o size=%d", st.Mode, st.Size), nil
	},
	"fdinfo": func(r *runner, o op) (string, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", r.fds[o.A]))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(b)) {
			if flags, ok := strings.CutPrefix(line, "flags:"); ok {
				return "flags=" + strings.TrimSpace(flags), nil
			}
		}
		return "no flags", nil
	},
	"linkat": func(r *runner, o op) (string, error) {
		r.files++
		name := filepath.Join(r.dir, fmt.Sprint(r.files))
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", r.fds[o.A]), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			r.linked = append(r.linked, name)
		}
		return "", err
	},
	"create":     createSession,
	"retrieve":   createSession,
	"preserve":   preserve,
	"retrievefd": retrieveFD,
	"finish":     finish,
	"getname":    getName,
	"ioctl":      otherIoctl,
	"memfd":      newMemfd,
	"file":       newFile,
	"reopen": func(r *runner, o op) (string, error) {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", r.fds[o.A]), int(o.N)|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			r.put(o.B, fd)
		}
		return "", err
	},
	"sum": func(r *runner, o op) (string, error) { return describe(r.fds[o.A]) },
	"stat": func(r *runner, o op) (string, error) {
		var st unix.Stat_t
		if err := unix.Fstat(r.fds[o.A], &st); err != nil {
			return "", err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Sprintf("mode=%#o", st.Mode), nil
		}
		return fmt.Sprintf("mode=%#o nlink=%d size=%d", st.Mode, st.Nlink, st.Size), nil
	},
	"statfs": func(r *runner, o op) (string, error) {
		var st unix.Statfs_t
		if err := unix.Fstatfs(r.fds[o.A], &st); err != nil {
			return "", err
		}
		return "type=" + fsType(st.Type), nil
	},
	"link": func(r *runner, o op) (string, error) { return link(r.fds[o.A]) },
	"poll": func(r *runner, o op) (string, error) {
		fds := []unix.PollFd{{Fd: int32(r.fds[o.A]), Events: unix.POLLIN | unix.POLLOUT | unix.POLLPRI | pollRdNorm | pollWrNorm | unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		return fmt.Sprintf("n=%d revents=%#x", n, fds[0].Revents), err
	},
	"epoll": func(r *runner, o op) (string, error) {
		e, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return "", err
		}
		defer unix.Close(e)
		return "", unix.EpollCtl(e, unix.EPOLL_CTL_ADD, r.fds[o.A], &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT})
	},
	"read": func(r *runner, o op) (string, error) {
		b := make([]byte, o.L)
		n, err := unix.Read(r.fds[o.A], b)
		return got(b, n), err
	},
	"pread": func(r *runner, o op) (string, error) {
		b := make([]byte, o.L)
		n, err := unix.Pread(r.fds[o.A], b, o.M)
		return got(b, n), err
	},
	"write": func(r *runner, o op) (string, error) {
		n, err := unix.Write(r.fds[o.A], pattern(o.N, o.L))
		return fmt.Sprintf("n=%d", n), err
	},
	"pwrite": func(r *runner, o op) (string, error) {
		n, err := unix.Pwrite(r.fds[o.A], pattern(o.N, o.L), o.M)
		return fmt.Sprintf("n=%d", n), err
	},
	"writev": func(r *runner, o op) (string, error) {
		b := pattern(o.N, o.L)
		n, err := unix.Writev(r.fds[o.A], [][]byte{b[:o.L/3], b[o.L/3 : o.L/2], b[o.L/2:]})
		return fmt.Sprintf("n=%d", n), err
	},
	"pwritev": func(r *runner, o op) (string, error) {
		b := pattern(o.N, o.L)
		n, err := unix.Pwritev(r.fds[o.A], [][]byte{b[:o.L/3], b[o.L/3 : o.L/2], b[o.L/2:]}, o.M)
		return fmt.Sprintf("n=%d", n), err
	},
	"sendfile": func(r *runner, o op) (string, error) {
		offset := o.N
		n, err := unix.Sendfile(r.fds[o.A], r.source, &offset, int(o.L))
		return fmt.Sprintf("n=%d", n), err
	},
	"copyrange": func(r *runner, o op) (string, error) {
		from, to := o.N, o.M
		n, err := unix.CopyFileRange(r.source, &from, r.fds[o.A], &to, int(o.L), 0)
		return fmt.Sprintf("n=%d", n), err
	},
	"splice": func(r *runner, o op) (string, error) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return "", err
		}
		defer unix.Close(p[0])
		defer unix.Close(p[1])
		if _, err := unix.Write(p[1], pattern(o.N, o.L)); err != nil {
			return "", err
		}
		offset := o.M
		n, err := unix.Splice(p[0], nil, r.fds[o.A], &offset, int(o.L), unix.SPLICE_F_NONBLOCK)
		return fmt.Sprintf("n=%d", n), err
	},
	"truncate": func(r *runner, o op) (string, error) { return "", unix.Ftruncate(r.fds[o.A], o.M) },
	"fallocate": func(r *runner, o op) (string, error) {
		return "", unix.Fallocate(r.fds[o.A], uint32(o.N), o.M, o.L)
	},
	"seek": func(r *runner, o op) (string, error) {
		at, err := unix.Seek(r.fds[o.A], o.M, int(o.N))
		return fmt.Sprintf("at=%d", at), err
	},
	"chmod": func(r *runner, o op) (string, error) {
		// Of what others have too, a device or a directory, the mode isn't ours to change.
		var st unix.Stat_t
		if err := unix.Fstat(r.fds[o.A], &st); err != nil {
			return "", err
		}
		if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFDIR {
			return "skipped", nil
		}
		return "", unix.Fchmod(r.fds[o.A], uint32(o.N))
	},
	"sync": func(r *runner, o op) (string, error) { return "", unix.Fsync(r.fds[o.A]) },
	"sockopt": func(r *runner, o op) (string, error) {
		_, err := unix.GetsockoptInt(r.fds[o.A], unix.SOL_SOCKET, unix.SO_TYPE)
		return "", err
	},
	"flock": func(r *runner, o op) (string, error) {
		// All anonymous inodes are one, and so are their locks: another sequence's must not be in the way.
		err := unix.Flock(r.fds[o.A], unix.LOCK_EX|unix.LOCK_NB)
		unix.Flock(r.fds[o.A], unix.LOCK_UN)
		return "", err
	},
	"getfl": func(r *runner, o op) (string, error) {
		v, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_GETFL, 0)
		return fmt.Sprintf("%#x", v), err
	},
	"setfl": func(r *runner, o op) (string, error) {
		_, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_SETFL, int(o.N))
		return "", err
	},
	"getfd": func(r *runner, o op) (string, error) {
		v, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_GETFD, 0)
		return fmt.Sprintf("%#x", v), err
	},
	"setfd": func(r *runner, o op) (string, error) {
		_, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_SETFD, int(o.N))
		return "", err
	},
	"addseals": func(r *runner, o op) (string, error) {
		_, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_ADD_SEALS, int(o.N))
		return "", err
	},
	"getseals": func(r *runner, o op) (string, error) {
		v, err := unix.FcntlInt(uintptr(r.fds[o.A]), unix.F_GET_SEALS, 0)
		return fmt.Sprintf("%#x", v), err
	},
	"map": func(r *runner, o op) (string, error) { // a mapping that stays
		if r.maps[o.A] != nil {
			unix.Munmap(r.maps[o.A])
			r.maps[o.A] = nil
		}
		m, err := unix.Mmap(r.fds[o.A], 0, 1<<16, int(o.N), unix.MAP_SHARED)
		if err == nil {
			r.maps[o.A] = m
		}
		return "", err
	},
	"unmap": func(r *runner, o op) (string, error) {
		if r.maps[o.A] == nil {
			return "none", nil
		}
		unix.Munmap(r.maps[o.A])
		r.maps[o.A] = nil
		return "", nil
	},
	"store": func(r *runner, o op) (string, error) { // by that mapping
		m := r.maps[o.A]
		if m == nil {
			return "none", nil
		}
		b := pattern(o.N, o.L)
		copy(m[o.M&0xffff:], b)
		return "", nil
	},
	"load": func(r *runner, o op) (string, error) {
		m := r.maps[o.A]
		if m == nil {
			return "none", nil
		}
		b := make([]byte, o.L)
		n := copy(b, m[o.M&0xffff:])
		return got(b, n), nil
	},
	"mapwrite": func(r *runner, o op) (string, error) { // a mapping for the moment
		m, err := unix.Mmap(r.fds[o.A], 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return "", err
		}
		defer unix.Munmap(m)
		copy(m[o.M&0xffff:], pattern(o.N, o.L))
		return "", nil
	},
	"same": func(r *runner, o op) (string, error) { // are these the same file?
		b := []byte{byte(o.N)}
		if n, err := unix.Pwrite(r.fds[o.A], b, o.M); n != 1 {
			return "write", err
		}
		b[0] = 0xee
		n, err := unix.Pread(r.fds[o.B], b, o.M)
		return fmt.Sprintf("n=%d same=%v", n, b[0] == byte(o.N)), err
	},
	"loaded": func(r *runner, o op) (string, error) {
		b, err := os.ReadFile("/sys/kernel/kexec_loaded")
		return fmt.Sprintf("%q", b), err
	},
	"reboot": func(r *runner, o op) (string, error) {
		magic1, magic2, cmd := unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_KEXEC
		switch o.N {
		case 1:
			magic1++
		case 2:
			magic2++
		case 3:
			cmd = 0x12345
		}
		_, _, errno := unix.Syscall6(unix.SYS_REBOOT, uintptr(magic1), uintptr(magic2), uintptr(cmd), 0, 0, 0)
		return "", fail(errno)
	},
	"load-kernel": loadKernel,
	"wrong":       wrongArgument,
	"truncatepath": func(r *runner, o op) (string, error) {
		return "", unix.Truncate(fmt.Sprintf("/proc/self/fd/%d", r.fds[o.A]), o.M)
	},
}

func fail(errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

func send(socket, fd int) error {
	return unix.Sendmsg(socket, []byte{1}, unix.UnixRights(fd), nil, 0)
}

func receive(socket int) (int, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return -1, unix.ENOMSG
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, unix.ENOMSG
	}
	return fds[0], nil
}

// pattern is n bytes that tell from which of the 256 patterns they are.
func pattern(kind, n int64) []byte {
	b := make([]byte, n)
	x := uint32(kind)*2654435761 + 12345
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func digest(b []byte) string {
	if len(strings.Trim(string(b), "\x00")) == 0 {
		return "zero"
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%x", sum[:4])
}

func got(b []byte, n int) string {
	if n <= 0 {
		return fmt.Sprintf("n=%d", n)
	}
	return fmt.Sprintf("n=%d %s", n, digest(b[:n]))
}

var number = regexp.MustCompile(`[0-9]+`)

// link is what /proc says of the descriptor, without numbers where they would differ.
func link(fd int) (string, error) {
	if fd < 0 {
		return "", unix.EBADF
	}
	b := make([]byte, 4096)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), b)
	if err != nil {
		return "", err
	}
	text := string(b[:n])
	switch {
	case strings.HasPrefix(text, "pipe:"), strings.HasPrefix(text, "socket:"):
		return number.ReplaceAllString(text, "N"), nil
	case strings.Contains(text, "/differential-"):
		if strings.HasSuffix(text, " (deleted)") {
			return "tmpfs (deleted)", nil
		}
		return "tmpfs", nil
	}
	return fmt.Sprintf("%q", text), nil
}

func fsType(t int64) string {
	switch t {
	case unix.ANON_INODE_FS_MAGIC:
		return "anon_inode"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.PIPEFS_MAGIC:
		return "pipe"
	case unix.SOCKFS_MAGIC:
		return "socket"
	case unix.HUGETLBFS_MAGIC:
		return "hugetlbfs"
	}
	return "other"
}

// sizeOf is a size that doesn't depend on the machine: directories have theirs from the file system.
func sizeOf(st *unix.Stat_t) string {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "-"
	}
	return fmt.Sprint(st.Size)
}

// describe is all that can be known of a file.
func describe(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mode=%#o size=%s", st.Mode, sizeOf(&st))
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		fmt.Fprintf(&b, " nlink=%d", st.Nlink)
	}
	for _, get := range []struct {
		name string
		cmd  int
	}{{"fl", unix.F_GETFL}, {"fd", unix.F_GETFD}, {"seals", unix.F_GET_SEALS}} {
		v, err := unix.FcntlInt(uintptr(fd), get.cmd, 0)
		if err != nil {
			fmt.Fprintf(&b, " %s=%s", get.name, errname(err))
		} else {
			fmt.Fprintf(&b, " %s=%#x", get.name, v)
		}
	}
	if at, err := unix.Seek(fd, 0, unix.SEEK_CUR); err != nil {
		fmt.Fprintf(&b, " at=%s", errname(err))
	} else {
		fmt.Fprintf(&b, " at=%d", at)
	}
	if l, err := link(fd); err != nil {
		fmt.Fprintf(&b, " link=%s", errname(err))
	} else {
		fmt.Fprintf(&b, " link=%s", l)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		fmt.Fprintf(&b, " blocks=%d", st.Blocks)
		content := make([]byte, min(st.Size, 1<<20))
		n, err := unix.Pread(fd, content, 0)
		if err != nil {
			fmt.Fprintf(&b, " content=%s", errname(err))
		} else {
			fmt.Fprintf(&b, " content=%s", digest(content[:n]))
		}
	}
	return b.String(), nil
}
