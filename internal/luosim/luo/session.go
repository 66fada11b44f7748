// SPDX-License-Identifier: MIT

package luo

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Session is a session of this kernel, outgoing, or incoming from the previous one.
type Session struct {
	kernel    *Kernel
	name      string
	handle    Handle // nil: incoming, and nobody has retrieved it
	retrieved bool   // incoming, and somebody has
	files     []*file
}

// Name is the session's name.
func (s *Session) Name() string { return s.name }

// Link is what the link of a descriptor in /proc reads, or ENAMETOOLONG.
func (s *Session) Link() (string, unix.Errno) {
	if len(s.name) > s.kernel.features.LinkMax {
		return "", unix.ENAMETOOLONG
	}
	return "anon_inode:[luo_session] " + s.name, 0
}

// create is luo_session_create().
func (k *Kernel) create(a *argument) unix.Errno {
	name := a.name()
	if len(name) == 0 {
		return unix.EINVAL
	}
	if len(name) > nameLength-1 {
		return unix.EINVAL
	}
	for _, s := range k.outgoing {
		if s.name != name {
			continue
		}
		if !k.releaseIfClosed(s) {
			return unix.EEXIST
		}
		break // it changed the list, and names are unique
	}
	k.sweepSometimes()
	s := &Session{kernel: k, name: name}
	k.outgoing = append(k.outgoing, s)
	return s.give(a)
}

// retrieve is luo_session_retrieve().
func (k *Kernel) retrieve(a *argument) unix.Errno {
	name := a.name()
	for _, s := range k.incoming {
		if s.name != name {
			continue
		}
		if s.retrieved && k.releaseIfClosed(s) {
			break
		}
		if s.retrieved {
			return unix.EINVAL
		}
		s.retrieved = true
		return s.give(a)
	}
	return unix.ENOENT
}

// give makes the session's file and gives it to the task. If the task can't get it, the file is closed.
func (s *Session) give(a *argument) unix.Errno {
	h, fd, err := s.kernel.open()
	if err != nil {
		s.retrieved = false
		if i := slices.Index(s.kernel.outgoing, s); i >= 0 {
			s.kernel.outgoing = slices.Delete(s.kernel.outgoing, i, i+1)
		}
		return unix.ENOMEM
	}
	defer unix.Close(fd)
	s.handle = h
	s.kernel.sessions[h] = s
	return a.answer(fd, func() { s.kernel.release(s) })
}

// releaseIfClosed tells whether the session's last descriptor was closed, and ends it then.
func (k *Kernel) releaseIfClosed(s *Session) bool {
	if s.handle == nil || s.handle.Alive() {
		return false
	}
	k.release(s)
	return true
}

// release is luo_session_release().
func (k *Kernel) release(s *Session) {
	s.close()
	s.handle.Discard()
	delete(k.sessions, s.handle)
	list := &k.outgoing
	if s.retrieved {
		list = &k.incoming
	}
	i := slices.Index(*list, s)
	*list = slices.Delete(*list, i, i+1)
}

// close lets go of the files: luo_file_unpreserve_files() and luo_file_finish() (kernel/liveupdate/luo_file.c).
func (s *Session) close() {
	for _, f := range s.files {
		if s.kernel.preserved[f.inode] == f {
			delete(s.kernel.preserved, f.inode)
		}
		f.close()
	}
	s.files = nil
}

func (s *Session) file(token uint64) *file {
	for _, f := range s.files {
		if f.token == token {
			return f
		}
	}
	return nil
}

// preserve is luo_preserve_file() (kernel/liveupdate/luo_file.c).
func (s *Session) preserve(a *argument) unix.Errno {
	token := a.token()
	if s.file(token) != nil {
		return unix.EEXIST
	}
	fd, err := a.caller.File(a.fd())
	if err != 0 {
		return unix.EBADF
	}
	f := &file{session: s, token: token, fd: fd}
	if err := s.take(f); err != 0 {
		f.close()
		return err
	}
	// From here on it is preserved, even if the task isn't told so.
	return a.respond()
}

func (s *Session) take(f *file) unix.Errno {
	if !f.canPreserve() {
		return unix.ENOENT
	}
	k := s.kernel
	if other := k.preserved[f.inode]; other != nil && !k.releaseIfClosed(other.session) {
		return unix.EBUSY
	}
	if k.faults.Preserve.meets(f.token) {
		return unix.ENOMEM
	}
	if err := f.preserve(); err != 0 {
		return err
	}
	s.files = append(s.files, f)
	k.preserved[f.inode] = f
	return 0
}

// retrieveFile is luo_session_retrieve_fd() and luo_retrieve_file().
func (s *Session) retrieveFile(a *argument) unix.Errno {
	if !a.caller.Room() {
		return unix.EMFILE
	}
	f := s.file(a.token())
	if f == nil {
		return unix.ENOENT
	}
	if f.failed != 0 {
		return f.failed
	}
	if !f.retrieved {
		if f.failed = s.restore(f); f.failed != 0 {
			return f.failed
		}
	}
	return a.answer(f.fd, func() {})
}

func (s *Session) restore(f *file) unix.Errno {
	if s.kernel.faults.Retrieve.meets(f.token) {
		return unix.ENOMEM
	}
	if err := f.retrieve(); err != 0 {
		return err
	}
	f.session = s
	s.kernel.preserved[f.inode] = f
	s.kernel.retrieved[f.inode] = true
	return 0
}

// finish is luo_session_finish().
func (s *Session) finish(a *argument) unix.Errno {
	if a.reserved() != 0 {
		return unix.EINVAL
	}
	if len(s.files) > 0 && s.kernel.faults.finish() {
		return unix.EBUSY
	}
	s.close()
	return a.respond()
}

// getName is luo_session_get_name().
func (s *Session) getName(a *argument) unix.Errno {
	if a.reserved() != 0 {
		return unix.EINVAL
	}
	a.setName(s.name)
	return a.respond()
}
