// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watchAfter is how long a call has to take, at least, before the client is watched.
const watchAfter = 100 * time.Millisecond

// watch notices during a long call that the client hangs up. Short calls pay for a mutex only: a timer that runs
// already is left running, and sees by itself that it is for another call.
type watch struct {
	wire *wire
	gone func() // called when the client hangs up

	mu       sync.Mutex
	timer    *time.Timer
	armed    bool
	call     uint64 // counts the calls
	armedFor uint64
	under    bool          // a call is under way
	watching bool          // and the client is watched
	watched  chan struct{} // receives when the watching is over
}

func (w *watch) init(wire *wire, gone func()) {
	w.wire, w.gone = wire, gone
	w.watched = make(chan struct{}, 1)
}

func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call++
	w.under = true
	if !w.armed {
		w.arm()
	}
}

func (w *watch) arm() {
	w.armed, w.armedFor = true, w.call
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, w.fire)
	} else {
		w.timer.Reset(watchAfter)
	}
}

func (w *watch) fire() {
	w.mu.Lock()
	w.armed = false
	switch {
	case !w.under:
	case w.call != w.armedFor:
		w.arm()
	default:
		w.watching = true
	}
	watching := w.watching
	w.mu.Unlock()
	if watching {
		w.awaitHangUp()
		w.watched <- struct{}{}
	}
}

// awaitHangUp returns when the client has closed its end, or at the read deadline.
func (w *watch) awaitHangUp() {
	w.wire.raw.Read(func(s uintptr) bool {
		// POLLHUP, and not the end of what can be read: further calls may be waiting there, and a client that has
		// only shut down its sending side still wants the reply.
		poll := []unix.PollFd{{Fd: int32(s)}}
		_, err := unix.Poll(poll, 0)
		for err == unix.EINTR {
			_, err = unix.Poll(poll, 0)
		}
		if err != nil || poll[0].Revents&(unix.POLLHUP|unix.POLLERR) == 0 {
			return false
		}
		w.gone()
		return true
	})
}

func (w *watch) end() {
	w.mu.Lock()
	watching := w.watching
	w.under, w.watching = false, false
	w.mu.Unlock()
	if watching {
		w.wire.conn.SetReadDeadline(past)
		<-w.watched
		w.wire.setReadDeadline(time.Time{})
	}
}
