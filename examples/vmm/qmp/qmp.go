// SPDX-License-Identifier: MIT

//go:build unix

// Package qmp speaks the QEMU Machine Protocol (docs/interop/qmp-spec.rst in QEMU's source), as far as it takes to save and
// restore a machine.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Client has one command under way at a time. Events are skipped.
type Client struct {
	mu     sync.Mutex
	conn   *net.UnixConn
	in     *json.Decoder
	number uint64 // of the command sent last
}

// Error is what QEMU answered instead of doing what it was told.
type Error struct {
	Command     string
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("qemu refuses %s: %s", e.Command, e.Description) }

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     uint64          `json:"id"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// New waits for QEMU's greeting. The connection is the client's, on success.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{conn: conn, in: json.NewDecoder(conn)}
	var greeting message
	err := c.during(ctx, func() error { return c.in.Decode(&greeting) })
	if err != nil {
		return nil, fmt.Errorf("waiting for qemu's greeting: %w", err)
	}
	if greeting.QMP == nil {
		return nil, errors.New("what is at the other end doesn't greet as qemu does: it wants a monitor in mode=control")
	}
	return c, c.Do(ctx, "qmp_capabilities", nil, nil)
}

// Close ends the connection, and not the machine.
func (c *Client) Close() error { return c.conn.Close() }

// Do has QEMU execute a command, and puts its answer into result unless that is nil. Files go with the command; they stay
// the caller's. When ctx ends before the answer is there the connection can't be used any more.
func (c *Client) Do(ctx context.Context, name string, arguments, result any, files ...*os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	data, err := json.Marshal(command{name, arguments, c.number})
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = syscall.UnixRights(fds...)
	}
	var answer message
	err = c.during(ctx, func() error {
		if _, _, err := c.conn.WriteMsgUnix(append(data, '\n'), rights, nil); err != nil {
			return err
		}
		for {
			answer = message{}
			if err := c.in.Decode(&answer); err != nil {
				return err
			}
			if answer.Event == "" && answer.ID == c.number {
				return nil
			}
		}
	})
	if err != nil {
		return fmt.Errorf("qemu's %s: %w", name, err)
	}
	if answer.Error != nil {
		answer.Error.Command = name
		return answer.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("qemu's answer to %s: %w", name, err)
	}
	return nil
}

// during breaks f off when ctx ends.
func (c *Client) during(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
