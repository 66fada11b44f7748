// SPDX-License-Identifier: MIT

package holdfast

import (
	"encoding/json"
	"fmt"
	"slices"
)

// As returns a client that asks in the name of a subject, for those who start and look after other programs: of virtual
// machines, say, or of containers. Sessions that it acquires are the subject's, and so are those that it parks, reclaims
// and releases; Identify tells whether a session is the subject's. What the caller's own rule of the policy says decides, and
// the subject's rule only who its owner is. Whom the rule doesn't let act for the subject gets [ErrNotPermitted].
//
// It uses the connection of c, and is good until c is closed. Any number of them may be used concurrently.
//
// Don't retrieve what belongs to somebody else: the memory would be charged to this process's cgroup. See
// [Client.Handover].
func (c *Client) As(subject Subject) *Client {
	return &Client{connection: c.connection, subject: &subject}
}

// address adds the subject to the parameters of a call, and its pidfd to the descriptors, for the length of call.
func (s *Subject) address(in any, fds []int, call func(in any, fds []int) error) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var parameters map[string]any
	if err := json.Unmarshal(data, &parameters); err != nil {
		return err
	}
	if s.pidfd == nil {
		parameters["subject"] = map[string]string{"owner": s.owner}
		return call(parameters, fds)
	}
	called := false
	err = useFile(s.pidfd, func(raw int) error {
		called = true
		parameters["subject"] = map[string]int{"pidFileDescriptor": len(fds)}
		return call(parameters, append(slices.Clip(fds), raw))
	})
	if err != nil && !called {
		return fmt.Errorf("holdfast: the pidfd of the subject: %w", err)
	}
	return err
}
