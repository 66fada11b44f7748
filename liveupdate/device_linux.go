// SPDX-License-Identifier: MIT

package liveupdate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// The pauses between tries to open a busy device: others keep it open for milliseconds.
const (
	firstPause = time.Millisecond
	lastPause  = 50 * time.Millisecond
)

// Create makes an outgoing session. The name has 1 to [MaxName] bytes and no NUL; it is unique among the outgoing
// sessions of the machine, while an incoming one may have the same.
//
// While the device is open elsewhere it tries again, until the context's deadline or for [DefaultTimeout].
func (d Device) Create(ctx context.Context, name string) (*Session, error) {
	s, _, err := d.session(ctx, name, OpCreate, ioctlCreateSession)
	return s, err
}

// Retrieve gets an incoming session by its name, once: the caller then has its only descriptor. What nobody
// retrieves stays in memory until the next kexec.
//
// It waits for a busy device as [Device.Create] does.
func (d Device) Retrieve(ctx context.Context, name string) (*Session, error) {
	s, _, err := d.session(ctx, name, OpRetrieveSession, ioctlRetrieveSession)
	return s, err
}

// RetrieveOrCreate gets the incoming session of this name, if there is one that nobody has retrieved, and else makes an
// outgoing one. The direction says which. The device is opened once for it.
//
// It waits for a busy device as [Device.Create] does, and fails as that does.
func (d Device) RetrieveOrCreate(ctx context.Context, name string) (*Session, Direction, error) {
	s, done, err := d.session(ctx, name, OpCreate, ioctlRetrieveSession, ioctlCreateSession)
	if done == ioctlRetrieveSession {
		return s, Incoming, err
	}
	return s, Outgoing, err
}

// session does the first of the ioctls that finds anything. Errors are of op.
func (d Device) session(ctx context.Context, name, op string, numbers ...uintptr) (s *Session, done uintptr, err error) {
	if err := checkName(op, name); err != nil {
		return nil, 0, err
	}
	// A deadline that has passed still leaves one try.
	if err := ctx.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, 0, &Error{Op: op, Name: name, Err: err}
	}
	start := time.Now()
	var expired <-chan struct{}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		raw, done, openErr, callErr := deviceCall(d.path(), name, numbers...)
		switch {
		case callErr != nil:
			return nil, done, d.callError(op, name, callErr)
		case openErr == nil:
			return &Session{fd: fd.New(raw), name: name}, done, nil
		case openErr != unix.EBUSY:
			return nil, done, d.openError(op, name, openErr)
		}
		if _, limited := ctx.Deadline(); limited {
			expired = ctx.Done()
		} else if expired == nil {
			// Not earlier: a timer costs more than a call that finds the device free.
			limit, cancel := context.WithTimeout(ctx, DefaultTimeout)
			defer cancel()
			expired = limit.Done()
		}
		// Between half and all of the pause, so that two who wait don't meet again at every try.
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-expired:
			return nil, done, &BusyError{
				Op: op, Name: name, Path: d.path(), Waited: time.Since(start),
				Holders: holders(d.path()),
				Err:     errors.Join(openErr, ctx.Err()),
			}
		}
	}
}

// callError is for CREATE_SESSION and RETRIEVE_SESSION (luo_session_create() and luo_session_retrieve() in
// kernel/liveupdate/luo_session.c, Linux 7.2.13).
func (d Device) callError(op, name string, err error) error {
	e := &Error{Op: op, Name: name, Path: d.path(), Err: err}
	switch {
	case err == unix.EEXIST && op == OpCreate:
		e.Kind = ErrNameTaken
	case err == unix.EINVAL && op == OpCreate:
		e.Kind = ErrNameInvalid
	case err == unix.ENOENT && op == OpRetrieveSession:
		e.Kind = ErrNoSuchSession
	case err == unix.EINVAL && op == OpRetrieveSession:
		e.Kind = ErrAlreadyRetrieved
	case err == unix.ENOTTY:
		e.Kind = ErrNotSupported
		e.Hint = "make sure that the path is the live update device's"
	case err == unix.ENOMEM:
		// Before the sessions' array could grow also when it was full.
		e.Hint = "free memory or close sessions that nobody needs; nothing was changed"
	case err == unix.EMFILE, err == unix.ENFILE:
		e.Hint = "close descriptors or raise their limit, and try again; nothing was changed"
	}
	if e.Hint == "" {
		e.Hint = fix(e.Kind)
	}
	return e
}

// openError is for open (luo_open() in kernel/liveupdate/luo_core.c, Linux 7.2.13).
func (d Device) openError(op, name string, err error) error {
	e := &Error{Op: op, Name: name, Path: d.path(), Err: err}
	switch err {
	case unix.EIO:
		e.Kind = ErrHandoverFailed
		e.Hint = fix(e.Kind)
	case unix.EACCES, unix.EPERM:
		e.Hint = "be root, or get a session's descriptor from somebody who is: the device is root's alone"
	case unix.ENOENT, unix.ENOTDIR, unix.ENXIO, unix.ENODEV:
		e.Hint, e.Kind = missing()
	}
	return e
}

// Available says why sessions can't be had here: [ErrNoDevice], [ErrNotEnabled] or [io/fs.ErrPermission]. It looks at
// the device's node without opening it, so it can't foresee [ErrBusy] and [ErrHandoverFailed].
func (d Device) Available() error {
	var st unix.Stat_t
	if err := unix.Stat(d.path(), &st); err != nil {
		return d.openError(OpCheck, "", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return &Error{Op: OpCheck, Path: d.path(), Kind: ErrNoDevice, Hint: "the path is not a character device's: use " + DevicePath}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, d.path(), unix.R_OK|unix.W_OK, unix.AT_EACCESS); err != nil {
		return d.openError(OpCheck, "", err)
	}
	return nil
}

// Features finds out what this kernel can. It makes a session with a random name and closes it again, so it opens the
// device and can fail like [Device.Create]; the answer stays the same until the next boot.
func (d Device) Features(ctx context.Context) (Features, error) {
	// As long as a name can be: if this one can be read back, all can. Not from crypto/rand, which early in a boot
	// waits for the kernel to gather randomness.
	name := fmt.Sprintf("probe-%0*x", MaxName-len("probe-"), rand.Uint64())
	s, err := d.Create(ctx, name)
	if err != nil {
		return Features{}, err
	}
	defer s.Close()

	var f Features
	err = s.fd.Use(func(raw int) error {
		_, err := getName(raw)
		if err == nil {
			f = Features{GetName: true, NameMax: MaxName}
			return nil
		}
		if !unknownIoctl(err) {
			return err
		}
		switch _, err := linkName(raw); {
		case err == nil:
			f.NameMax = MaxName
			return nil
		case errors.Is(err, unix.ENAMETOOLONG):
			f.NameMax = MaxLinkName
			return nil
		default:
			return err
		}
	})
	if err != nil {
		return Features{}, &Error{Op: OpOpen, Name: name, Err: err}
	}
	return f, nil
}
