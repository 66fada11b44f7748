// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newMemfd makes a memfd with flags N of size M; L bytes of it have data.
func newMemfd(r *runner, o op) (string, error) {
	fd, err := unix.MemfdCreate("kelp", int(o.N))
	if err != nil {
		return "", err
	}
	r.put(o.A, fd)
	if o.M > 0 {
		if err := unix.Ftruncate(fd, o.M); err != nil {
			return "truncate", err
		}
	}
	if o.L > 0 {
		if _, err := unix.Pwrite(fd, pattern(o.M, o.L), 0); err != nil {
			return "pwrite", err
		}
	}
	return "", nil
}

// Kinds of other files.
const (
	pipeRead = iota
	pipeWrite
	socket
	eventfd
	epoll
	linkedTmpfs
	unlinkedTmpfs
	tmpfile
	directory
	null
	zero
	timerfd
	signalfd
	inotify
	unlinkedDirectory
	listening
	pidfd
	procDirectory
	fileKinds
)

func newFile(r *runner, o op) (string, error) {
	var pair [2]int
	var fd int
	var err error
	r.files++
	name := filepath.Join(r.dir, fmt.Sprint(r.files))
	switch o.N {
	case pipeRead, pipeWrite:
		if err = unix.Pipe2(pair[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err == nil {
			fd = pair[o.N]
			unix.Close(pair[1-o.N])
		}
	case socket:
		if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			fd = pair[0]
			unix.Close(pair[1])
		}
	case eventfd:
		fd, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	case epoll:
		fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	case linkedTmpfs, unlinkedTmpfs:
		fd, err = unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err == nil {
			if _, err := unix.Write(fd, pattern(o.M, o.L)); err != nil {
				return "write", err
			}
			if o.N == unlinkedTmpfs {
				os.Remove(name)
			} else {
				r.linked = append(r.linked, name)
			}
		}
	case tmpfile:
		fd, err = unix.Open(r.dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
		if err == nil {
			if _, err := unix.Write(fd, pattern(o.M, o.L)); err != nil {
				return "write", err
			}
		}
	case directory, unlinkedDirectory:
		if err = os.Mkdir(name, 0o700); err == nil {
			fd, err = unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if o.N == unlinkedDirectory {
				os.Remove(name)
			} else {
				r.linked = append(r.linked, name)
			}
		}
	case null:
		fd, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	case zero:
		fd, err = unix.Open("/dev/zero", unix.O_RDWR|unix.O_CLOEXEC, 0)
	case timerfd:
		fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	case signalfd:
		fd, err = unix.Signalfd(-1, &unix.Sigset_t{}, unix.SFD_NONBLOCK|unix.SFD_CLOEXEC)
	case inotify:
		fd, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	case listening:
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
				return "bind", err
			}
			r.linked = append(r.linked, name)
			if err := unix.Listen(fd, 1); err != nil {
				return "listen", err
			}
		}
	case pidfd:
		fd, err = unix.PidfdOpen(os.Getpid(), 0)
	case procDirectory:
		fd, err = unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	default:
		err = unix.EINVAL
	}
	if err == nil {
		r.put(o.A, fd)
	}
	return "", err
}
