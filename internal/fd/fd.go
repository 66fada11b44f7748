// SPDX-License-Identifier: MIT

//go:build linux

package fd

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD owns one descriptor. Its methods are safe for concurrent use.
type FD struct {
	// using is held for reading as long as somebody relies on raw being open.
	using sync.RWMutex
	raw   atomic.Int64
}

// New takes ownership of raw. It panics if raw is negative.
func New(raw int) *FD {
	if raw < 0 {
		panic(fmt.Sprintf("fd: New(%d): a descriptor is not negative", raw))
	}
	f := &FD{}
	f.raw.Store(int64(raw))
	if tracking.Load() {
		track(f)
	}
	return f
}

// Use calls fn with the descriptor, which stays open for the length of the call: Close, Disown and File wait
// for fn to return, so fn must call neither them nor Use on the same FD. After Close the error is [os.ErrClosed].
func (f *FD) Use(fn func(raw int) error) error {
	f.using.RLock()
	defer f.using.RUnlock()
	raw := f.Raw()
	if raw < 0 {
		return os.ErrClosed
	}
	return fn(raw)
}

// Raw is the descriptor's number, for passing on where the same goroutine keeps f open; -1 after Close.
func (f *FD) Raw() int {
	return int(f.raw.Load())
}

// Dup makes a second descriptor of the same open file, close-on-exec and never one of the standard three.
func (f *FD) Dup() (*FD, error) {
	var dup *FD
	err := f.Use(func(raw int) error {
		n, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return os.NewSyscallError(fmt.Sprintf("fcntl(%d, F_DUPFD_CLOEXEC)", raw), err)
		}
		dup = New(n)
		return nil
	})
	return dup, err
}

// Disown gives the descriptor's number away: f no longer closes it and counts as closed. It is -1 after Close.
func (f *FD) Disown() int {
	f.using.Lock()
	raw := int(f.raw.Swap(-1))
	f.using.Unlock()
	if raw >= 0 && tracking.Load() {
		untrack(f)
	}
	return raw
}

// File gives the descriptor away as an [os.File], which the garbage collector may close. It is nil after Close.
func (f *FD) File(name string) *os.File {
	raw := f.Disown()
	if raw < 0 {
		return nil
	}
	return os.NewFile(uintptr(raw), name)
}

// Close closes the descriptor. A second Close does nothing and returns nil.
func (f *FD) Close() error {
	raw := f.Disown()
	if raw < 0 {
		return nil
	}
	// Not again after EINTR: Linux has freed the number by then (close(2)), and another may have it.
	return os.NewSyscallError("close", unix.Close(raw))
}

// CloseAll closes all of fds; nil ones are passed over.
func CloseAll(fds []*FD) {
	for _, f := range fds {
		if f != nil {
			f.Close()
		}
	}
}
