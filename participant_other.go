// SPDX-License-Identifier: MIT

//go:build !linux

package holdfast

import (
	"context"
	"time"
)

// Participant is a program's part in updates, on Linux.
type Participant struct{}

// Join is not supported here.
func Join(context.Context, ParticipantConfig) (*Participant, error) { return nil, errUnsupported }

// Close does nothing.
func (*Participant) Close() error { return nil }

// Round is one try of an update, on Linux.
type Round struct{}

// Number is 0.
func (*Round) Number() int { return 0 }

// Deadline is zero.
func (*Round) Deadline() time.Time { return time.Time{} }

// Extend is not supported here.
func (*Round) Extend(context.Context, time.Duration, string) error { return errUnsupported }

// Acquire is not supported here.
func (*Round) Acquire(context.Context, *Client, string, ...AcquireOption) (*Session, error) {
	return nil, errUnsupported
}

// Hold is not supported here.
func (*Round) Hold(*Client, *Session) error { return errUnsupported }
