// SPDX-License-Identifier: MIT

//go:build !linux

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// errUnsupported is what everything here fails with: there is nothing like it elsewhere.
var errUnsupported = fmt.Errorf("holdfast: live update sessions are not supported here, they need Linux: %w", errors.ErrUnsupported)

// Client talks to the orchestrator, on Linux.
type Client struct{}

// Dial is not supported here.
func Dial(context.Context) (*Client, error) { return nil, errUnsupported }

// Close does nothing.
func (*Client) Close() error { return nil }

// Describe is not supported here.
func (*Client) Describe(context.Context) (Description, error) { return Description{}, errUnsupported }

// Acquire is not supported here.
func (*Client) Acquire(context.Context, string, ...AcquireOption) (*Session, error) {
	return nil, errUnsupported
}

// Identify is not supported here.
func (*Client) Identify(context.Context, *os.File) (Identity, error) {
	return Identity{}, errUnsupported
}

// Reclaim is not supported here.
func (*Client) Reclaim(context.Context, string) (*Committed, error) { return nil, errUnsupported }

// Release is not supported here.
func (*Client) Release(context.Context, string, ...ReleaseOption) error { return errUnsupported }

// Parked is not supported here.
func (*Client) Parked(context.Context) ([]ParkedSession, error) { return nil, errUnsupported }

// As returns a client on which nothing is supported either.
func (c *Client) As(Subject) *Client { return c }

// Handover is not supported here.
func (*Client) Handover(context.Context, string) ([]*os.File, error) { return nil, errUnsupported }

// TakeOver is not supported here.
func (*Client) TakeOver(context.Context, []*os.File) (*Committed, error) {
	return nil, errUnsupported
}

// Adopt is not supported here.
func (*Client) Adopt(context.Context, *os.File) (*Session, error) { return nil, errUnsupported }

// Session is an outgoing session, on Linux.
type Session struct{}

// Name is empty.
func (*Session) Name() string { return "" }

// Owner is empty.
func (*Session) Owner() string { return "" }

// KernelName is empty.
func (*Session) KernelName() string { return "" }

// Generation is 0.
func (*Session) Generation() uint64 { return 0 }

// LiveUpdate is nil.
func (*Session) LiveUpdate() *liveupdate.Session { return nil }

// Preserve is not supported here.
func (*Session) Preserve(string, *os.File) error { return errUnsupported }

// Commit is not supported here.
func (*Session) Commit() error { return errUnsupported }

// Store is not supported here.
func (*Session) Store(context.Context) error { return errUnsupported }

// Park is not supported here.
func (*Session) Park(context.Context, *Client) error { return errUnsupported }

// Discard is not supported here.
func (*Session) Discard(context.Context) error { return errUnsupported }

// Files is not supported here.
func (*Session) Files() (map[string]*os.File, error) { return nil, errUnsupported }

// Close does nothing.
func (*Session) Close() error { return nil }

// Committed is memory that came back, on Linux.
type Committed struct{}

// Restored is not supported here.
func Restored(context.Context, *Client) ([]*Committed, error) { return nil, errUnsupported }

// Name is empty.
func (*Committed) Name() string { return "" }

// Manifest is empty.
func (*Committed) Manifest() Manifest { return Manifest{} }

// Incoming is false.
func (*Committed) Incoming() bool { return false }

// Retrieve is not supported here.
func (*Committed) Retrieve() (map[string]*os.File, error) { return nil, errUnsupported }

// Discard is not supported here.
func (*Committed) Discard(context.Context, *Client) error { return errUnsupported }

// Close does nothing.
func (*Committed) Close() error { return nil }

// Renew is not supported here.
func Renew(context.Context, *Client, *Committed, ...RenewOption) (*Session, error) {
	return nil, errUnsupported
}
