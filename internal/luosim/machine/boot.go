// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/handle"
	"github.com/holdfast-project/holdfast/internal/luosim/luo"
	"github.com/holdfast-project/holdfast/internal/luosim/notify"
)

// How a boot ends.
type ending int

const (
	endExit ending = iota // COMMAND ended
	endKexec
	endRestart
	endPowerOff
	endSignal // luosim was told to stop
)

// boot is the emulated machine from one start of COMMAND to its end. Its calls are decided on one after the other.
type boot struct {
	number   int
	version  string
	id       string
	started  unix.Timespec
	kernel   *luo.Kernel
	handles  *handles
	loaded   bool // a kernel, by kexec_file_load() or kexec_load()
	handover bool // by the former
	calls    int  // answered
	log      io.Writer
	said     map[string]bool

	mu    sync.Mutex
	why   ending
	ended chan struct{}

	abandoned <-chan struct{}
}

// handles is the table as luo wants it.
type handles struct{ *handle.Table }

func (h *handles) open() (luo.Handle, int, error) {
	made, fd, err := h.Open()
	if err != nil {
		return nil, -1, err
	}
	return made, fd, nil
}

// Of is nil for what isn't known.
func (h *handles) Of(pid int, fd int32) luo.Handle {
	if found := h.Table.Of(pid, fd); found != nil {
		return found
	}
	return nil
}

// end stops the boot, for the first reason that there is.
func (b *boot) end(why ending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
	default:
		b.why = why
		close(b.ended)
	}
}

func (b *boot) over() bool {
	select {
	case <-b.ended:
		return true
	default:
		return false
	}
}

// say tells the user something, once.
func (b *boot) say(topic, format string, args ...any) {
	if !b.said[topic] {
		b.said[topic] = true
		fmt.Fprintf(b.log, "luosim: "+format+"\n", args...)
	}
}

// server answers calls on a thread of its own.
type server struct {
	thread chan int
	done   chan struct{}
}

func (b *boot) serve(l *notify.Listener) *server {
	s := &server{make(chan int, 1), make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		preempt()
		s.thread <- unix.Gettid()
		for {
			c := &call{listener: l, boot: b}
			switch err := l.Receive(&c.Call); err {
			case nil:
				b.answer(c)
			case unix.ENOENT, unix.EINTR:
				// A caller that is gone, or, since Linux 6.11, all of them; or a signal, perhaps from stop.
				if b.over() {
					return
				}
			default:
				fmt.Fprintln(b.log, "luosim: waiting for system calls:", err)
				b.end(endSignal)
				return
			}
		}
	}()
	return s
}

// stop waits for the end of serving, after that of the boot. Before Linux 6.11 only a signal ends the wait for calls
// that nobody can make any more, and it may come before that wait has begun.
func (s *server) stop() {
	thread := <-s.thread
	for {
		select {
		case <-s.done:
			return
		case <-time.After(time.Millisecond):
			unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
		}
	}
}

// preempt asks for short slices of processor time, since Linux 6.12: whoever waits for an answer would otherwise wait
// for the slices of busy processes, too. It only makes it faster.
func preempt() {
	attr, err := unix.SchedGetAttr(0, 0)
	if err == nil && attr.Policy == unix.SCHED_NORMAL {
		attr.Runtime = uint64(100 * time.Microsecond)
		unix.SchedSetAttr(0, attr, 0)
	}
}

const tidyEvery = 4096

func (b *boot) answer(c *call) {
	if b.over() {
		// Some of the tree are dead, others not yet. What the living do can't change any more what goes over, and what the
		// dead held must not look as if it had been closed.
		return
	}
	// As long as there are none of our files, most calls are seen at once to have nothing to do with them.
	if b.calls++; b.calls%tidyEvery == 0 && !b.handles.Empty() {
		b.kernel.Tidy()
	}
	do := byNumber[callKey{c.IsCompat(), c.Number}]
	if do == nil {
		c.listener.Continue(&c.Call)
		return
	}
	switch v := do(b, c); v.kind {
	case proceed:
		c.listener.Continue(&c.Call)
	case answered:
		c.listener.Return(&c.Call, v.value, v.err)
	}
}
