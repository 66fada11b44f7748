// SPDX-License-Identifier: MIT

//go:build !linux

package liveupdate

import (
	"context"
	"os"
)

func unsupported(op, name string) error {
	return &Error{Op: op, Name: name, Kind: &kind{what: "live update sessions need Linux", wraps: ErrNotSupported}}
}

// Session is a live update session, which only Linux has.
type Session struct{ name string }

// Create fails with [ErrNotSupported].
func (d Device) Create(ctx context.Context, name string) (*Session, error) {
	return nil, unsupported(OpCreate, name)
}

// Retrieve fails with [ErrNotSupported].
func (d Device) Retrieve(ctx context.Context, name string) (*Session, error) {
	return nil, unsupported(OpRetrieveSession, name)
}

// Available fails with [ErrNotSupported].
func (d Device) Available() error { return unsupported(OpCheck, "") }

// Features fails with [ErrNotSupported].
func (d Device) Features(ctx context.Context) (Features, error) {
	return Features{}, unsupported(OpCheck, "")
}

// FromFD fails with [ErrNotSupported].
func FromFD(raw int) (*Session, error) { return nil, unsupported(OpOpen, "") }

// FromFile fails with [ErrNotSupported].
func FromFile(f *os.File) (*Session, error) { return nil, unsupported(OpOpen, "") }

// Name is the session's name.
func (s *Session) Name() string { return s.name }

// Preserve fails with [ErrNotSupported].
func (s *Session) Preserve(token uint64, f *os.File) error { return unsupported(OpPreserve, s.name) }

// PreserveFD fails with [ErrNotSupported].
func (s *Session) PreserveFD(token uint64, raw int) error { return unsupported(OpPreserve, s.name) }

// Retrieve fails with [ErrNotSupported].
func (s *Session) Retrieve(token uint64) (*os.File, error) {
	return nil, unsupported(OpRetrieve, s.name)
}

// Finish fails with [ErrNotSupported].
func (s *Session) Finish() error { return unsupported(OpFinish, s.name) }

// Direction fails with [ErrNotSupported].
func (s *Session) Direction() (Direction, error) { return 0, unsupported(OpDirection, s.name) }

// Use fails with [ErrNotSupported].
func (s *Session) Use(fn func(raw int) error) error { return unsupported(OpOpen, s.name) }

// Dup fails with [ErrNotSupported].
func (s *Session) Dup() (*Session, error) { return nil, unsupported(OpDup, s.name) }

// Disown returns -1.
func (s *Session) Disown() int { return -1 }

// File returns nil.
func (s *Session) File() *os.File { return nil }

// Close does nothing.
func (s *Session) Close() error { return nil }
