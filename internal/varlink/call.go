// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"fmt"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// Call is a call of a method. It is for the goroutine that serves it, until it returns.
type Call struct {
	// Peer is what [Server.Admit] said.
	Peer any

	connection *connection
	request    request
	fds        []*fd.FD // nil where taken
	dropped    []*fd.FD
}

// Method is the qualified name.
func (c *Call) Method() string { return c.request.Method }

// More says whether the client takes several replies.
func (c *Call) More() bool { return c.request.More }

// Parameters puts the parameters into dst, a pointer to a struct, by the names in its json tags. It is strict:
// what the struct doesn't have, or has with another type, is an error, and so is what is missing, unless its
// field is a pointer or has omitempty or omitzero in its tag. The error is an InvalidParameter, to be returned
// as it is.
//
// A [encoding/json.RawMessage] in dst is valid until the call returns.
func (c *Call) Parameters(dst any) error {
	data := c.request.Parameters
	if data == nil {
		data = []byte("{}")
	}
	if !isObject(data) {
		return InvalidParameter("parameters")
	}
	if invalid := decodeStrict(data, dst); invalid != nil {
		return invalid
	}
	return nil
}

// TakeFD takes the call's descriptor with the index that a parameter has. It is the caller's then, who is to
// close it by Drop unless it knows what it is. What isn't taken is closed after the call.
// The error is an InvalidParameter, to be returned as it is.
func (c *Call) TakeFD(index int, parameter string) (*fd.FD, error) {
	if index < 0 || index >= len(c.fds) || c.fds[index] == nil {
		return nil, InvalidParameter(parameter)
	}
	f := c.fds[index]
	c.fds[index] = nil
	return f, nil
}

// Drop has f closed after the call has been answered. To close a descriptor of a kind that the client chose can
// block for as long as the client likes.
func (c *Call) Drop(f *fd.FD) {
	c.dropped = append(c.dropped, f)
}

// Continue sends a reply that isn't the last; the method's own is. The server takes over reply.FDs. The error
// is an [*Error] where the client takes only one reply. Otherwise it means that the client is gone.
func (c *Call) Continue(reply *Reply) error {
	defer reply.close()
	if !c.request.More {
		return &Error{Name: ErrExpectedMore}
	}
	if c.request.Oneway {
		return nil
	}
	if err := c.connection.sendReply(reply, true); err != nil {
		return fmt.Errorf("%s: %w", c.request.Method, err)
	}
	return nil
}
