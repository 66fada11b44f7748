// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"fmt"
	"io"
	"sync"

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
	log      io.Writer
	said     map[string]bool

	mu    sync.Mutex
	why   ending
	ended chan struct{}
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

// say tells the user something, once.
func (b *boot) say(topic, format string, args ...any) {
	if !b.said[topic] {
		b.said[topic] = true
		fmt.Fprintf(b.log, "luosim: "+format+"\n", args...)
	}
}

// serve answers calls until nobody is left who makes any, or until stop can be read.
func (b *boot) serve(l *notify.Listener, stop int) {
	waiting := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		waiting[0].Revents, waiting[1].Revents = 0, 0
		if _, err := unix.Poll(waiting, -1); err != nil && err != unix.EINTR {
			return
		}
		switch {
		case waiting[1].Revents != 0:
			return
		case waiting[0].Revents&unix.POLLIN != 0:
			c := &call{listener: l}
			if err := l.Receive(&c.Call); err == nil {
				b.answer(c)
			}
		case waiting[0].Revents != 0:
			return
		}
	}
}

func (b *boot) answer(c *call) {
	do := byNumber[c.Number]
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
