// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// connection is one client's. Its calls are served in order, by one goroutine.
type connection struct {
	*serving
	wire    *wire
	peer    any
	closing closer
	watch   watch
}

func newConnection(v *serving, conn *net.UnixConn) *connection {
	c := &connection{serving: v, wire: newWire(conn, v.maxMessage, v.maxFDs)}
	c.wire.messageTime = v.messageTimeout
	c.wire.drop = c.closing.close
	return c
}

// serve goes on until the client hangs up or breaks the rules, or the server stops. When it returns, nothing is
// left of the connection.
func (c *connection) serve(ctx context.Context) {
	release := func() {}
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("A connection's goroutine panicked.", "panic", p, "stack", string(debug.Stack()))
		}
		c.wire.close()
		c.closing.wait()
		release()
	}()
	if c.admit != nil {
		peer, r, err := c.admit(c.wire.conn)
		if r != nil {
			release = r
		}
		if err != nil {
			c.log.Debug("A connection was not admitted.", "error", err)
			if refusal, ok := errors.AsType[*Error](err); ok {
				c.sendError(refusal)
			}
			return
		}
		c.peer = peer
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.watch.init(c.wire, cancel)

	for !c.wire.stopped.Load() {
		m, err := c.wire.receive()
		if err == nil {
			err = c.answer(ctx, m)
		} else if err == errTooLarge {
			c.sendError(InvalidParameter("message"))
		}
		if err != nil {
			if err != io.EOF && err != errStopped {
				c.log.Debug("A connection is closed.", "peer", c.peer, "error", err)
			}
			return
		}
	}
}

// request is a call as it comes in.
type request struct {
	Method     string          `json:"method"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Oneway     bool            `json:"oneway,omitempty"`
	More       bool            `json:"more,omitempty"`
	Upgrade    bool            `json:"upgrade,omitempty"`
}

// answer serves one call. With an error the connection can't be used any more.
func (c *connection) answer(ctx context.Context, m message) error {
	call := &Call{Peer: c.peer, connection: c, fds: m.fds}
	// After the answer: to close them may take a while.
	defer func() {
		c.closing.close(call.fds)
		c.closing.close(call.dropped)
	}()

	if err := check(m.data); err != nil {
		c.sendError(InvalidParameter("message"))
		return fmt.Errorf("a message: %w", err)
	}
	if invalid := decodeStrict(m.data, &call.request); invalid != nil {
		c.sendError(invalid)
		return fmt.Errorf("a message: %w", invalid)
	}
	if m.cut {
		c.log.Debug("File descriptors that came with a call were dropped.", "peer", c.peer, "method", call.Method(), "kept", len(m.fds))
	}

	reply, err := c.invoke(ctx, call)
	if panicked, ok := errors.AsType[*panicError](err); ok {
		c.log.Error("A method panicked.", "method", call.Method(), "panic", panicked.value, "stack", string(panicked.stack))
		return err
	}
	if reply == nil {
		reply = &Reply{}
	}
	defer reply.close()
	switch {
	case call.request.Oneway:
		if err != nil {
			c.log.Debug("A call that nobody waits for failed.", "peer", c.peer, "method", call.Method(), "error", err)
		}
		return nil
	case err != nil:
		return c.sendError(c.visible(call, err))
	}
	return c.sendReply(reply, false)
}

// invoke calls the method.
func (c *connection) invoke(ctx context.Context, call *Call) (reply *Reply, err error) {
	if call.request.Upgrade {
		return nil, InvalidParameter("upgrade")
	}
	method, err := c.methods.find(call.request.Method)
	if err != nil {
		return nil, err
	}
	c.watch.begin()
	defer c.watch.end()
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return method(ctx, call)
}

type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// visible makes an error one that a client may see.
func (c *connection) visible(call *Call, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	c.log.Error("A call failed.", "peer", c.peer, "method", call.Method(), "error", err)
	return systemError(err)
}

// systemError is what sd-varlink makes of an errno, and varlinkctl understands (sd_varlink_error_errno in
// systemd's src/libsystemd/sd-varlink/sd-varlink.c).
func systemError(err error) *Error {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		errno = unix.EIO
	}
	return &Error{Name: "io.systemd.System", Parameters: struct {
		Origin string `json:"origin"`
		Errno  int    `json:"errno"`
		Name   string `json:"errnoName"`
	}{"linux", int(errno), unix.ErrnoName(errno)}}
}

type answer struct {
	Error      string `json:"error,omitempty"`
	Parameters any    `json:"parameters"`
	Continues  bool   `json:"continues,omitempty"`
}

func (c *connection) sendReply(r *Reply, continues bool) error {
	return c.send(answer{Parameters: r.Parameters, Continues: continues}, r.FDs)
}

func (c *connection) sendError(e *Error) error {
	return c.send(answer{Error: e.Name, Parameters: e.Parameters}, nil)
}

func (c *connection) send(a answer, fds []*fd.FD) error {
	if a.Parameters == nil {
		a.Parameters = struct{}{}
	}
	frame, err := encode(a)
	if err != nil {
		c.log.Error("A reply can't be made JSON, its connection is closed.", "error", err)
		return fmt.Errorf("encoding a reply: %w", err)
	}
	raw := make([]int, len(fds))
	for i, f := range fds {
		raw[i] = f.Raw()
	}
	if err := c.wire.send(frame, raw, c.writeTimeout); err != nil {
		return fmt.Errorf("sending a reply: %w", err)
	}
	return nil
}
