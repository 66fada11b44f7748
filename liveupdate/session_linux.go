// SPDX-License-Identifier: MIT

package liveupdate

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// Session is a live update session: one descriptor of it, which the Session owns until [Session.Close] or
// [Session.Disown].
//
// The kernel undoes or finishes a session when its last descriptor is closed, and with it goes the memory that
// nothing else holds. So a Session that is garbage collected is not closed: a leaked descriptor can be found, lost
// memory can't.
//
// Its methods are safe for concurrent use. Close, Disown and File wait for calls under way; what is called after them
// fails with [os.ErrClosed], save Name.
type Session struct {
	fd   *fd.FD
	name string
}

// FromFD makes a Session of a descriptor received from elsewhere, and takes ownership of it. If it fails, the
// descriptor is still the caller's.
//
// It may be given a stranger's descriptor. Before any ioctl it makes sure that it is an anonymous inode, since an ioctl
// on something else may do something else; what isn't a session is an [ErrNotASession]. On a kernel without GET_NAME it
// needs /proc, and fails with [ErrNotSupported] for names longer than [MaxLinkName].
func FromFD(raw int) (*Session, error) {
	name, err := sessionName(raw)
	if err != nil {
		return nil, &Error{Op: OpOpen, Err: err, Hint: fix(err)}
	}
	return &Session{fd: fd.New(raw), name: name}, nil
}

// FromFile is [FromFD] on a duplicate of f, which stays the caller's to close.
func FromFile(f *os.File) (*Session, error) {
	var dup int
	var dupErr error
	err := useFile(f, func(raw int) {
		dup, dupErr = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
	})
	if err := cmp.Or(err, dupErr); err != nil {
		return nil, &Error{Op: OpOpen, Err: err}
	}
	s, err := FromFD(dup)
	if err != nil {
		unix.Close(dup)
		return nil, err
	}
	return s, nil
}

// sessionName is the name of a session, or an ErrNotASession.
func sessionName(raw int) (string, error) {
	var fs unix.Statfs_t
	switch err := unix.Fstatfs(raw, &fs); {
	case err == unix.EBADF:
		return "", err
	case err != nil:
		// A session's can always be told, while the server of a FUSE file fails as it likes.
		return "", fmt.Errorf("%w: fstatfs: %w", ErrNotASession, err)
	}
	if fs.Type != unix.ANON_INODE_FS_MAGIC {
		return "", ErrNotASession
	}
	// The type 0xBA is the live update's alone (Documentation/userspace-api/ioctl/ioctl-number.rst, Linux 7.2), other
	// anonymous inodes don't know it; and what would succeed all the same brings no name.
	name, err := getName(raw)
	switch {
	case err == nil && name != "":
		return name, nil
	case err == unix.EBADF:
		// Opened with O_PATH: it is of no use, and doesn't keep the session alive.
		return "", fmt.Errorf("%w: it was opened with O_PATH", ErrNotASession)
	}
	link, linkErr := linkName(raw)
	switch {
	case linkErr == nil && (err == nil || unknownIoctl(err)):
		return link, nil
	case linkErr == nil:
		return "", err
	case !errors.Is(linkErr, unix.ENAMETOOLONG):
		return "", linkErr
	}
	// A link too long to be read is a session's with a long name, on an older kernel: no other anonymous inode has a
	// name of such a length.
	return "", fmt.Errorf("%w to ask a session's name, which has more than %d bytes", ErrNotSupported, MaxLinkName)
}

// linkName reads a session's name from its link in /proc.
func linkName(raw int) (string, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", raw))
	if err != nil {
		return "", err
	}
	name, ok := strings.CutPrefix(link, LinkPrefix)
	if !ok {
		return "", ErrNotASession
	}
	return name, nil
}

// unknownIoctl says whether a session's errno means that its kernel is too old for an ioctl: luo_session_ioctl() in
// kernel/liveupdate/luo_session.c (Linux 7.2.13) gives EINVAL for a number that it doesn't know.
func unknownIoctl(err error) bool {
	return err == unix.EINVAL || err == unix.ENOTTY
}

// Name is the session's whole name, as the kernel has it. It is known after Close too.
func (s *Session) Name() string {
	return s.name
}

// Preserve puts a file into an outgoing session under a token, any number that is new to the session. The kernel
// holds the file from then on; f stays the caller's and may be closed, but the memory can't be had back from the
// session in this kernel.
//
// It takes time: all pages of a memfd are allocated and pinned. A preserved memfd can be written but not resized.
// The position is carried over as it is at the kexec.
func (s *Session) Preserve(token uint64, f *os.File) error {
	var err error
	if fileErr := useFile(f, func(raw int) { err = s.PreserveFD(token, raw) }); fileErr != nil {
		return &Error{Op: OpPreserve, Name: s.name, Token: token, Err: fileErr, Hint: "pass an open file"}
	}
	return err
}

// PreserveFD is [Session.Preserve] for a descriptor's number, which must stay open for the length of the call.
func (s *Session) PreserveFD(token uint64, raw int) error {
	err := s.fd.Use(func(session int) error {
		if err := preserveFD(session, token, raw); err != nil {
			return s.preserveError(session, token, err)
		}
		return nil
	})
	return s.closed(OpPreserve, token, err)
}

// preserveError follows luo_preserve_file() in kernel/liveupdate/luo_file.c and memfd_luo_preserve() in
// mm/memfd_luo.c (Linux 7.2.13).
func (s *Session) preserveError(session int, token uint64, err error) error {
	e := &Error{Op: OpPreserve, Name: s.name, Token: token, Err: err}
	switch err {
	case unix.EINVAL:
		if d, probeErr := direction(session); probeErr == nil && d == Incoming {
			e.Kind = ErrWrongSide
		}
	case unix.ENOENT:
		e.Kind = ErrNotPreservable
	case unix.EEXIST:
		e.Kind = ErrTokenTaken
	case unix.EBUSY:
		e.Kind = ErrAlreadyPreserved
	case unix.EBADF:
		e.Hint = "pass an open descriptor, not opened with O_PATH"
	case unix.EOPNOTSUPP:
		e.Hint = "the memfd has a seal that this kernel can't carry over"
	case unix.EFBIG:
		e.Hint = "the memfd has more pages than can be preserved: split it"
	case unix.ENOSPC:
		// Before a session's array of files could grow: 128 files.
		e.Hint = "the session is full: use another one too"
	case unix.ENOMEM:
		e.Hint = "free memory; nothing was changed"
	}
	if e.Hint == "" {
		e.Hint = fix(e.Kind)
	}
	return e
}

// Retrieve gets a file out of an incoming session, with its content, size, position and seals. Files can be
// retrieved in any order, and again: each time it is another descriptor of the same open file.
//
// The pages are charged to the cgroup of the process that calls this. One whose memory.max is too low for them is
// killed inside the call, or gets [ErrNoMemory], and the file is lost for good.
//
// Keep the file as long as the memory is needed: after Finish nothing else holds it, and the garbage collector closes
// an [os.File] that nothing refers to.
func (s *Session) Retrieve(token uint64) (*os.File, error) {
	raw := -1
	err := s.fd.Use(func(session int) error {
		var err error
		if raw, err = retrieveFD(session, token); err != nil {
			return s.retrieveError(session, token, err)
		}
		return nil
	})
	if err != nil {
		return nil, s.closed(OpRetrieve, token, err)
	}
	return os.NewFile(uintptr(raw), fmt.Sprintf("session:%s/%d", s.name, token)), nil
}

// retrieveError follows luo_session_retrieve_fd() and luo_retrieve_file() in kernel/liveupdate (Linux 7.2.13): there
// need be a free descriptor first, and what the restoring itself fails with is kept for the next who asks.
func (s *Session) retrieveError(session int, token uint64, err error) error {
	e := &Error{Op: OpRetrieve, Name: s.name, Token: token, Err: err}
	switch err {
	case unix.ENOENT:
		e.Kind = ErrNoSuchToken
	case unix.ENOMEM:
		e.Kind = ErrNoMemory
	case unix.EMFILE, unix.ENFILE:
		e.Hint = "close descriptors or raise their limit, and try again; nothing is lost"
	case unix.EINVAL:
		e.Kind = ErrFileLost
		if d, probeErr := direction(session); probeErr == nil && d == Outgoing {
			e.Kind = ErrWrongSide
		}
	default:
		e.Kind = ErrFileLost
	}
	if e.Hint == "" {
		e.Hint = fix(e.Kind)
	}
	return e
}

// Finish ends an incoming session: the kernel lets go of its files, and of the memory of those that were not
// retrieved. The session stays, empty, until its last descriptor is closed. Finishing it again does nothing.
//
// From here until a file is preserved in another session only its open descriptors hold its memory.
func (s *Session) Finish() error {
	err := s.fd.Use(func(session int) error {
		err := finish(session)
		if err == nil {
			return nil
		}
		e := &Error{Op: OpFinish, Name: s.name, Err: err}
		switch err {
		case unix.EINVAL:
			if d, probeErr := direction(session); probeErr == nil && d == Outgoing {
				e.Kind = ErrWrongSide
				e.Hint = fix(e.Kind)
			}
		case unix.EBUSY:
			e.Hint = "a file in it is not ready for that: retrieve and restore all of them first; nothing was changed"
		}
		return e
	})
	return s.closed(OpFinish, 0, err)
}

// Direction asks on which side of the update the session is. No ioctl tells; what tells is how the kernel refuses
// to preserve the descriptor -1, which changes nothing.
func (s *Session) Direction() (Direction, error) {
	var d Direction
	err := s.fd.Use(func(session int) error {
		var err error
		d, err = direction(session)
		return err
	})
	if err != nil {
		return 0, &Error{Op: OpDirection, Name: s.name, Err: err}
	}
	return d, nil
}

// direction relies on luo_session_ioctl() checking the side before anything else, and luo_preserve_file() the
// token before the room and the descriptor (Linux 7.2.13).
func direction(session int) (Direction, error) {
	switch err := preserveFD(session, rand.Uint64(), -1); err {
	case unix.EBADF, unix.EEXIST, unix.ENOSPC:
		return Outgoing, nil
	case unix.EINVAL:
		return Incoming, nil
	default:
		return 0, err
	}
}

// Use calls fn with the descriptor's number, which stays open for the length of the call. In it fn must call none of
// the Session's methods that wait for calls under way.
func (s *Session) Use(fn func(raw int) error) error {
	return s.fd.Use(fn)
}

// Dup makes another descriptor of the session, which keeps it alive as this one does: the caller is to close it. It
// is close-on-exec.
func (s *Session) Dup() (*Session, error) {
	dup, err := s.fd.Dup()
	if err != nil {
		return nil, &Error{Op: OpDup, Name: s.name, Err: err}
	}
	return &Session{fd: dup, name: s.name}, nil
}

// Disown gives the descriptor's number away, for the caller to close; -1 if the Session was closed before.
func (s *Session) Disown() int {
	return s.fd.Disown()
}

// File gives the descriptor away as an [os.File]; nil if the Session was closed before. The garbage collector closes
// an os.File that nothing refers to.
func (s *Session) File() *os.File {
	return s.fd.File("session:" + s.name)
}

// Close closes the descriptor. If it is the last one of the session, an outgoing session is undone and an incoming
// one finished. A second Close does nothing.
func (s *Session) Close() error {
	return s.fd.Close()
}

// closed says which session it was that is closed.
func (s *Session) closed(op string, token uint64, err error) error {
	if err == os.ErrClosed {
		return &Error{Op: op, Name: s.name, Token: token, Err: err}
	}
	return err
}

// useFile calls fn with the number of f's descriptor, which stays open for the length of the call.
func useFile(f *os.File, fn func(raw int)) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if conn.Control(func(raw uintptr) { fn(int(raw)) }) != nil {
		// Its only error is one of internal/poll that nobody can name.
		return os.ErrClosed
	}
	return nil
}
