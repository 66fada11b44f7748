// SPDX-License-Identifier: MIT

// Package handle makes open files that stand for something else in another process, and can tell when the last
// descriptor of such a file was closed, wherever it was: in a process, or in flight over a socket.
//
// Such a file is an epoll instance. Like the files of the Live Update Orchestrator it is an anonymous inode that
// can't be read, written, mapped or truncated, and it is readable to poll because an eventfd in it is. It carries a
// number that can be read from /proc by any descriptor of it. A second epoll instance, here, watches it: the kernel
// takes a file out of those that watch it when its last descriptor is closed (eventpoll_release() in fs/file_table.c),
// and /proc/self/fdinfo of the watcher shows it at once.
package handle

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Table makes files and knows them again. It isn't safe for concurrent use.
type Table struct {
	magic   uint32
	last    uint32
	handles map[uint32]*Handle
	ready   *ready // for the next ones
}

// ready is an eventfd that is always readable. It must be open as long as files watch it.
type ready struct{ fd, watching int }

// The kernel allows 500 paths of two steps from one file to those that watch it (path_limits in fs/eventpoll.c). The
// eventfd is watched by the file, and that by its watcher.
const perReady = 400

// NewTable is an empty table.
func NewTable() *Table {
	return &Table{magic: rand.Uint32() | 1, handles: map[uint32]*Handle{}}
}

// Handle stands for one open file.
type Handle struct {
	table   *Table
	id      uint32
	watcher int
	ready   *ready
}

// Open makes a file. The descriptor is the caller's: once that and its copies are closed, the handle isn't alive.
func (t *Table) Open() (*Handle, int, error) {
	if t.ready == nil || t.ready.watching == perReady {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, -1, err
		}
		t.ready = &ready{fd: fd}
	}
	file, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, -1, err
	}
	t.last++
	id := t.last
	if err := unix.EpollCtl(file, unix.EPOLL_CTL_ADD, t.ready.fd, t.event(id)); err != nil {
		unix.Close(file)
		return nil, -1, err
	}
	watcher, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		unix.Close(file)
		return nil, -1, err
	}
	if err := unix.EpollCtl(watcher, unix.EPOLL_CTL_ADD, file, &unix.EpollEvent{}); err != nil {
		unix.Close(file)
		unix.Close(watcher)
		return nil, -1, err
	}
	h := &Handle{table: t, id: id, watcher: watcher, ready: t.ready}
	t.handles[id] = h
	t.ready.watching++
	return h, file, nil
}

// event carries the number: Fd is the lower half of the data, Pad the upper one.
func (t *Table) event(id uint32) *unix.EpollEvent {
	return &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(id), Pad: int32(t.magic)}
}

// Alive tells whether any descriptor of the file is open or in flight. If that can't be found out, it is.
func (h *Handle) Alive() bool {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(h.watcher))
	return err != nil || bytes.Contains(info, []byte("tfd:"))
}

// Discard forgets the file.
func (h *Handle) Discard() {
	if h.watcher < 0 {
		return
	}
	unix.Close(h.watcher)
	h.watcher = -1
	delete(h.table.handles, h.id)
	if h.ready.watching--; h.ready.watching == 0 && h.ready != h.table.ready {
		unix.Close(h.ready.fd)
	}
}

// Empty tells whether there is no file that hasn't been discarded.
func (t *Table) Empty() bool { return len(t.handles) == 0 }

// Of is the handle that a task's descriptor stands for, or nil. The process is one in /proc.
func (t *Table) Of(pid int, fd int32) *Handle {
	if fd < 0 {
		return nil
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return nil
	}
	_, data, found := bytes.Cut(info, []byte("data:"))
	if !found {
		return nil
	}
	field, _, _ := bytes.Cut(bytes.TrimLeft(data, " "), []byte(" "))
	v, err := strconv.ParseUint(string(field), 16, 64)
	if err != nil {
		return nil
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	if binary.NativeEndian.Uint32(b[4:]) != t.magic {
		return nil
	}
	return t.handles[binary.NativeEndian.Uint32(b[:])]
}
