// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// maxReply is how many bytes a client takes in one reply.
const maxReply = 1 << 20

// Client is the calling side of a connection. Its methods are safe for concurrent use; calls are made one at a
// time.
//
// A call that was given up, because its context ended or the connection failed, leaves the connection unusable:
// its reply may still come. All later calls fail, and say so; the caller dials again.
type Client struct {
	path string
	wire *wire
	// calling holds the one place for a call.
	calling chan struct{}
	broken  error // set and read by who is calling
}

// Dial connects to the server that listens on the unix socket path ("@" begins an abstract one).
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to the varlink service: %w", err)
	}
	return &Client{path: path, wire: newWire(conn.(*net.UnixConn), maxReply, MaxFDs), calling: make(chan struct{}, 1)}, nil
}

// Close ends the connection, and with it a call that is under way.
func (c *Client) Close() error {
	c.wire.stop()
	c.wire.conn.SetWriteDeadline(past)
	c.calling <- struct{}{}
	defer func() { <-c.calling }()
	if c.broken != nil {
		return nil
	}
	c.broken = net.ErrClosed
	return c.wire.close()
}

type outgoing struct {
	Method     string `json:"method"`
	Parameters any    `json:"parameters,omitempty"`
	More       bool   `json:"more,omitempty"`
}

type incoming struct {
	parameters json.RawMessage
	err        string
	continues  bool
}

// parseReply takes a reply apart. Its parameters share data's memory.
func parseReply(data []byte) (in incoming, err error) {
	if !json.Valid(data) || !isObject(data) {
		return in, errors.New("not a JSON object")
	}
	for name, value := range members(data) {
		switch string(name) {
		case "parameters":
			in.parameters = value
		case "error":
			err = errors.Join(err, json.Unmarshal(value, &in.err))
		case "continues":
			err = errors.Join(err, json.Unmarshal(value, &in.continues))
		}
	}
	return in, err
}

// Call calls a method and waits for the reply. params marshals to a JSON object, or is nil. fds, at most
// [MaxFDs], go with the call and stay the caller's. The reply's parameters go to out, unless it is nil; those
// that out doesn't have are ignored. The reply's descriptors are returned and are the caller's; where there is
// an error there are none. An error reply is an [*Error].
func (c *Client) Call(ctx context.Context, method string, params any, fds []int, out any) ([]*fd.FD, error) {
	var got []*fd.FD
	err := c.call(ctx, method, params, fds, false, func(parameters json.RawMessage, fds []*fd.FD) error {
		if err := decodeReply(parameters, out); err != nil {
			fd.CloseAll(fds)
			return err
		}
		got = fds
		return nil
	})
	return got, err
}

// CallMore is Call for a method that may reply many times. reply is called with the parameters, which it must
// not keep, and the descriptors, which are its own, of each. It must not use c. CallMore returns after the last
// reply, or when reply returns an error, which ends the connection unless it was the last one.
func (c *Client) CallMore(ctx context.Context, method string, params any, fds []int, reply func(parameters json.RawMessage, fds []*fd.FD) error) error {
	return c.call(ctx, method, params, fds, true, reply)
}

func (c *Client) call(ctx context.Context, method string, params any, fds []int, more bool, reply func(json.RawMessage, []*fd.FD) error) error {
	if len(fds) > MaxFDs {
		return fmt.Errorf("calling %s: %d file descriptors, and %d are the most that a message can carry", method, len(fds), MaxFDs)
	}
	frame, err := encode(outgoing{Method: method, Parameters: params, More: more})
	if err != nil {
		return fmt.Errorf("calling %s: the parameters: %w", method, err)
	}
	select {
	case c.calling <- struct{}{}:
		defer func() { <-c.calling }()
	case <-ctx.Done():
		return fmt.Errorf("calling %s: waiting for an earlier call to end: %w", method, context.Cause(ctx))
	}
	if c.broken != nil {
		return fmt.Errorf("calling %s: the connection to %s can't be used any more, connect again: %w", method, c.path, c.broken)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("calling %s: %w", method, context.Cause(ctx))
	}

	finish := c.interruptible(ctx)
	usable, err := c.exchange(frame, fds, more, reply)
	interrupted := finish()
	if !usable {
		switch {
		case interrupted:
			err = context.Cause(ctx)
		case c.wire.stopped.Load():
			err = net.ErrClosed
		}
		c.broken = err
		c.wire.close()
	}
	var fromServer *Error
	if err == nil || errors.As(err, &fromServer) {
		return err
	}
	return fmt.Errorf("calling %s at %s: %w", method, c.path, err)
}

// interruptible has the end of ctx break off what is waited for on the connection, until finish is called,
// which says whether that happened.
func (c *Client) interruptible(ctx context.Context) (finish func() bool) {
	if ctx.Done() == nil {
		return func() bool { return false }
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.wire.conn.SetDeadline(past)
		close(done)
	})
	return func() bool {
		if stop() {
			return false
		}
		<-done
		// The call may have been through by then, and the connection stays good.
		c.wire.conn.SetWriteDeadline(time.Time{})
		c.wire.setReadDeadline(time.Time{})
		return true
	}
}

// exchange sends a call and receives its replies. usable: the connection is, for another call.
func (c *Client) exchange(frame []byte, fds []int, more bool, reply func(json.RawMessage, []*fd.FD) error) (usable bool, err error) {
	// A server that refuses a call before it has read all of it answers and hangs up. That answer can be read
	// though sending fails.
	sendErr := c.wire.send(frame, fds, 0)
	if sendErr != nil && !errors.Is(sendErr, unix.EPIPE) && !errors.Is(sendErr, unix.ECONNRESET) {
		return false, sendErr
	}
	for {
		m, err := c.wire.receive()
		switch {
		case err == nil:
		case sendErr != nil:
			return false, sendErr
		case err == io.EOF:
			return false, fmt.Errorf("the server closed the connection without a reply: %w", err)
		case err == errTooLarge:
			return false, fmt.Errorf("the reply is longer than %d bytes", maxReply)
		default:
			return false, err
		}

		in, err := parseReply(m.data)
		if err != nil {
			return false, m.refuse(fmt.Errorf("the server's reply is no varlink message: %w", err))
		}
		if in.continues && !more {
			return false, m.refuse(errors.New("the server's reply is one of many, and one was asked for"))
		}
		usable = sendErr == nil && !in.continues
		switch {
		case in.err != "":
			return usable, m.refuse(&Error{Name: in.err, Parameters: json.RawMessage(bytes.Clone(in.parameters))})
		case m.cut:
			return usable, m.refuse(errors.New("not all of the reply's file descriptors could be received: is this process's limit of open files (RLIMIT_NOFILE) reached?"))
		}
		if err := reply(in.parameters, m.fds); err != nil || !in.continues {
			return usable, err
		}
	}
}

// refuse closes the message's descriptors and returns err.
func (m *message) refuse(err error) error {
	fd.CloseAll(m.fds)
	return err
}

func decodeReply(parameters json.RawMessage, out any) error {
	if out == nil || len(parameters) == 0 {
		return nil
	}
	if err := json.Unmarshal(parameters, out); err != nil {
		return fmt.Errorf("decoding the reply: %w", err)
	}
	return nil
}
