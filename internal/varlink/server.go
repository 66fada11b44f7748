// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// Method answers a call. An [*Error] is what the client gets; any other error is logged, and the client gets
// io.systemd.System with its errno. ctx ends when the client hangs up, which is noticed in calls that take
// longer than a moment, and when the server has stopped and its grace is over.
type Method func(ctx context.Context, call *Call) (*Reply, error)

// Reply is a method's answer. The server takes over FDs and closes them, whether they could be sent or not.
type Reply struct {
	Parameters any // marshals to a JSON object; nil is an empty one
	FDs        []*fd.FD
	Done       func() // called when FDs are closed, which is some time after the client has got them; may be nil
}

func (r *Reply) close() {
	fd.CloseAll(r.FDs)
	if r.Done != nil {
		r.Done()
	}
}

// Interface is a varlink interface with its methods.
type Interface struct {
	Name        string // io.holdfast.Sessions
	Description string // its text in the interface definition language
	// Methods by unqualified name. Those that are only described are answered with MethodNotImplemented.
	Methods map[string]Method
}

// Server serves interfaces, and org.varlink.service. It must not be changed once it serves.
type Server struct {
	Vendor, Product, Version, URL string
	Interfaces                    []Interface

	// Admit says who the peer of a new connection is, for [Call.Peer]. With an error the connection is closed; if
	// it is an [*Error], the client gets to see it. release, unless nil, is called in either case, when the
	// connection and all that came with it are gone. Optional.
	Admit func(*net.UnixConn) (peer any, release func(), err error)

	// The limits. Zero values are for the defaults.

	MaxConnections int           // 4096; more wait to be accepted
	MaxMessage     int           // bytes in a call: 64 KiB
	MaxFDs         int           // file descriptors in a call: 2
	MessageTimeout time.Duration // from a call's first byte to its last: 5 s. Between calls a client has all time.
	WriteTimeout   time.Duration // for a client to take a reply: 5 s
	Grace          time.Duration // for calls under way when the server stops: 5 s

	Log *slog.Logger // optional
}

// Serve answers the connections to ln until ctx ends. It then lets the calls under way finish, closes the
// connections and returns nil. ln stays open and is the caller's to close.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	methods, err := s.methods()
	if err != nil {
		return err
	}
	v := &serving{
		methods:        methods,
		admit:          s.Admit,
		maxMessage:     cmp.Or(s.MaxMessage, 64<<10),
		maxFDs:         min(cmp.Or(s.MaxFDs, 2), MaxFDs),
		messageTimeout: cmp.Or(s.MessageTimeout, 5*time.Second),
		writeTimeout:   cmp.Or(s.WriteTimeout, 5*time.Second),
		log:            cmp.Or(s.Log, slog.New(slog.DiscardHandler)),
		places:         make(chan struct{}, cmp.Or(s.MaxConnections, 4096)),
		connections:    make(map[*connection]struct{}),
	}
	// Calls outlive ctx by the grace.
	calls, endCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer endCalls()

	stopAccept := context.AfterFunc(ctx, func() { ln.SetDeadline(past) })
	defer stopAccept()
	err = v.accept(ctx, calls, ln)
	v.stop()
	grace := cmp.Or(s.Grace, 5*time.Second)
	if !v.wait(grace) {
		v.log.Warn("Calls did not end in time and are cancelled.", "grace", grace)
		endCalls()
		v.cut()
		if !v.wait(time.Second) {
			v.log.Error("Calls did not end though they were cancelled, and are left behind.")
		}
	}
	return err
}

// serving is a server at work.
type serving struct {
	methods        *methods
	admit          func(*net.UnixConn) (any, func(), error)
	maxMessage     int
	maxFDs         int
	messageTimeout time.Duration
	writeTimeout   time.Duration
	log            *slog.Logger

	places chan struct{} // one for each connection

	mu          sync.Mutex
	connections map[*connection]struct{}
	empty       chan struct{} // once stopped: closed when the last connection is gone
}

// accept goes on until ctx ends, or with an error that doesn't pass.
func (v *serving) accept(ctx, calls context.Context, ln *net.UnixListener) error {
	var delay time.Duration
	full := false
	for {
		if !v.place(ctx, &full) {
			return nil
		}
		conn, err := ln.AcceptUnix()
		if err == nil {
			delay = 0
			v.add(calls, conn)
			continue
		}
		<-v.places
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECONNABORTED):
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			if delay == 0 {
				v.log.Error("Can't accept connections for now, trying on.", "error", err)
			}
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			timer := time.NewTimer(delay)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		default:
			return fmt.Errorf("accepting varlink connections: %w", err)
		}
	}
}

// place takes a place for a connection, if there is one. Those for whom there is none are left in the listener's
// queue: to close one could block, for the descriptors that its peer has sent already.
func (v *serving) place(ctx context.Context, full *bool) bool {
	select {
	case v.places <- struct{}{}:
		*full = false
		return true
	default:
	}
	if !*full {
		*full = true
		v.log.Warn("Too many connections, new ones have to wait.", "limit", cap(v.places))
	}
	select {
	case v.places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (v *serving) add(calls context.Context, conn *net.UnixConn) {
	c := newConnection(v, conn)
	v.mu.Lock()
	v.connections[c] = struct{}{}
	v.mu.Unlock()
	go func() {
		defer v.remove(c)
		c.serve(calls)
	}()
}

func (v *serving) remove(c *connection) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.connections, c)
	if v.empty != nil && len(v.connections) == 0 {
		close(v.empty)
	}
	<-v.places
}

// stop has each connection end after the call that it is in.
func (v *serving) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.empty = make(chan struct{})
	if len(v.connections) == 0 {
		close(v.empty)
	}
	for c := range v.connections {
		c.wire.stop()
	}
}

// cut fails the replies that are still being written.
func (v *serving) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.connections {
		c.wire.conn.SetWriteDeadline(past)
	}
}

// wait says whether all connections were gone within the time.
func (v *serving) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-v.empty:
		return true
	case <-timer.C:
		return false
	}
}
