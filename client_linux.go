// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Client talks to the orchestrator. It keeps one connection, and makes a new one when the orchestrator was
// restarted.
type Client struct {
	*connection
	subject *Subject // nil where it asks for itself
}

type connection struct {
	address string

	mu     sync.Mutex
	conn   *varlink.Client
	closed bool
}

// Dial connects to the orchestrator at [Address], or where $HOLDFAST_ADDRESS says. The caller closes the client.
func Dial(ctx context.Context) (*Client, error) {
	address := os.Getenv("HOLDFAST_ADDRESS")
	if address == "" {
		address = Address
	}
	c := &Client{connection: &connection{address: address}}
	if _, err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *connection) connect(ctx context.Context) (*varlink.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, os.ErrClosed
	}
	if c.conn == nil {
		conn, err := varlink.Dial(ctx, c.address)
		if err != nil {
			return nil, fmt.Errorf("holdfast: %w; is holdfastd.socket started? (systemctl enable --now holdfastd.socket holdfastd.service)", err)
		}
		c.conn = conn
	}
	return c.conn, nil
}

func (c *connection) disconnect(conn *varlink.Client) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
	}
}

// Close ends the connection. Sessions stay as they are. What [Client.As] returned ends with it, and needn't be closed.
func (c *Client) Close() error {
	if c.subject != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// call makes one call, in the name of the subject if there is one.
func (c *Client) call(ctx context.Context, op, method string, in any, fds []int, out any) (got []*fd.FD, err error) {
	if c.subject == nil || in == nil { // what takes no parameters is about nobody
		return c.ask(ctx, op, method, in, fds, out)
	}
	err = c.subject.address(in, fds, func(in any, fds []int) (err error) {
		got, err = c.ask(ctx, op, method, in, fds, out)
		return err
	})
	return got, err
}

// ask makes one call, and once more on a new connection if the connection broke: the orchestrator may be restarted
// at any time. A second try changes nothing that the first one did, since a session whose reply didn't arrive is gone
// with its descriptor.
func (c *connection) ask(ctx context.Context, op, method string, in any, fds []int, out any) ([]*fd.FD, error) {
	var err error
	for try := range 2 {
		var conn *varlink.Client
		if conn, err = c.connect(ctx); err != nil {
			return nil, err
		}
		var got []*fd.FD
		got, err = conn.Call(ctx, "io.holdfast.Sessions."+method, in, fds, out)
		var refused *varlink.Error
		if err == nil {
			return got, nil
		}
		if errors.As(err, &refused) {
			e := &Error{}
			if err := refused.Decode(e); err != nil {
				return nil, fmt.Errorf("holdfast: %s: %w", op, err)
			}
			e.Op, e.Kind, e.again = op, refused.Name, try > 0
			return nil, e
		}
		if ctx.Err() != nil {
			// The connection may be in the middle of another caller's call. If it was this one that broke off, the
			// next call finds it unusable.
			break
		}
		c.disconnect(conn)
	}
	return nil, fmt.Errorf("holdfast: %s: %w", op, err)
}

// sessionReply is io.holdfast.Sessions.Session.
type sessionReply struct {
	Name       string `json:"name"`
	Owner      string `json:"owner"`
	KernelName string `json:"kernelName"`
	Direction  string `json:"direction"`
	Foreign    bool   `json:"foreign"`
}

// Describe tells what works here.
func (c *Client) Describe(ctx context.Context) (Description, error) {
	var d Description
	fds, err := c.call(ctx, "describe", "Describe", nil, nil, &d)
	fd.CloseAll(fds)
	return d, err
}

// Acquire gets a new outgoing session of the caller's own. The name is 1 to 43 bytes, [A-Za-z0-9][A-Za-z0-9_.@-]*;
// to 18 where the kernel has no GET_NAME (see [Client.Describe]). It is the caller's own: no other unit's session can
// have the same kernel name. The context's deadline also bounds how long the orchestrator waits for a busy device;
// without one that is 5 seconds.
//
// [ErrIncomingWaiting]: memory that was committed under this name in the previous kernel waits to be reclaimed.
func (c *Client) Acquire(ctx context.Context, name string, options ...AcquireOption) (*Session, error) {
	var o acquireOptions
	for _, option := range options {
		option(&o)
	}
	return c.acquire(ctx, name, o)
}

func (c *Client) acquire(ctx context.Context, name string, o acquireOptions) (*Session, error) {
	op := fmt.Sprintf("acquire %q", name)
	in := struct {
		Name        string `json:"name"`
		Fresh       bool   `json:"fresh,omitempty"`
		Replace     bool   `json:"replace,omitempty"`
		TimeoutUSec int64  `json:"timeoutUSec,omitempty"`
	}{Name: name, Fresh: o.fresh, Replace: o.replace}
	if o.wait > 0 {
		in.TimeoutUSec = max(1, o.wait.Microseconds())
	} else if deadline, ok := ctx.Deadline(); ok {
		// The answer, with who holds a busy device, takes time too.
		left := time.Until(deadline)
		in.TimeoutUSec = max(1, (left - min(left/2, 500*time.Millisecond)).Microseconds())
	}
	var out struct {
		Session               sessionReply `json:"session"`
		SessionFileDescriptor int          `json:"sessionFileDescriptor"`
	}
	fds, err := c.call(ctx, op, "Acquire", in, nil, &out)
	if err != nil {
		return nil, err
	}
	lu, err := takeSession(fds, out.SessionFileDescriptor, out.Session.KernelName)
	if err != nil {
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	return &Session{name: out.Session.Name, owner: out.Session.Owner, lu: lu, generation: 1}, nil
}

// takeSession takes the session out of an answer, and closes the rest of its descriptors.
func takeSession(fds []*fd.FD, index int, kernelName string) (*liveupdate.Session, error) {
	defer fd.CloseAll(fds)
	if index < 0 || index >= len(fds) {
		return nil, errors.New("the answer came without the session's descriptor")
	}
	lu, err := liveupdate.FromFD(fds[index].Raw())
	if err != nil {
		return nil, err
	}
	fds[index].Disown() // it is lu's now
	if lu.Name() != kernelName {
		err := fmt.Errorf("the answer speaks of session %q and came with %q", kernelName, lu.Name())
		lu.Close()
		return nil, err
	}
	return lu, nil
}

// Identify tells what a session is, and whether it belongs to the caller's unit. The descriptor stays the caller's.
func (c *Client) Identify(ctx context.Context, session *os.File) (Identity, error) {
	var id Identity
	err := useFile(session, func(raw int) (err error) {
		id, err = c.identify(ctx, raw)
		return err
	})
	return id, err
}

func (c *Client) identify(ctx context.Context, raw int) (Identity, error) {
	in := struct {
		SessionFileDescriptor int `json:"sessionFileDescriptor"`
	}{0}
	var out struct {
		Session sessionReply `json:"session"`
		Yours   bool         `json:"yours"`
		Memory  *memoryReply `json:"memory"`
	}
	fds, err := c.call(ctx, "identify", "Identify", in, []int{raw}, &out)
	fd.CloseAll(fds)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{
		Name: out.Session.Name, Owner: out.Session.Owner, KernelName: out.Session.KernelName,
		Direction: liveupdate.Outgoing, Foreign: out.Session.Foreign, Yours: out.Yours, memory: out.Memory,
	}
	if out.Session.Direction == liveupdate.Incoming.String() {
		id.Direction = liveupdate.Incoming
	}
	return id, nil
}
