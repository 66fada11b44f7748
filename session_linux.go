// SPDX-License-Identifier: MIT

package holdfast

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Session is an outgoing session and copies of the descriptors of the files in it: what lies in a session can't be
// read before the next kernel runs.
//
// The memory stays preserved as long as any copy of the session's descriptor is open: this one, or the one in the fd
// store after [Session.Store].
type Session struct {
	name, owner string
	generation  uint64

	mu       sync.Mutex
	lu       *liveupdate.Session
	files    []heldFile
	manifest *fd.FD // nil before Commit
	// The next PID 1 gives a session that is in two stores to one of them at random.
	stored, parked bool
	// storing is set before anything goes to the fd store: some of it may be there though Store failed.
	storing bool
}

// heldFile is a file in memory that somebody must hold on to.
type heldFile struct {
	name string
	fd   *fd.FD
}

// Name is the client's own portion of the session's name.
func (s *Session) Name() string { return s.name }

// Owner is whom the orchestrator made the session for.
func (s *Session) Owner() string { return s.owner }

// KernelName is the whole name, as the kernel has it.
func (s *Session) KernelName() string { return s.lu.Name() }

// Generation counts the renewals of this memory, from 1.
func (s *Session) Generation() uint64 { return s.generation }

// LiveUpdate is the kernel's session itself, for files under tokens of one's own. They aren't in the manifest, and
// token 0 is the manifest's. It stays the Session's: don't close it.
func (s *Session) LiveUpdate() *liveupdate.Session { return s.lu }

// Preserve puts a file into the session, under the token that its name gives: the first 8 bytes (big-endian) of the
// SHA-256 of it. Files come back in the order in which they were preserved. The kernel pins the file's memory here,
// which takes time in proportion to it, so it is best done long before the update; from now on the file can be
// written but not resized, until the session is closed everywhere.
//
// The name is 1 to 128 bytes of [A-Za-z0-9_.@-], the first a letter or digit, and doesn't begin with "manifest@". The
// descriptor stays the caller's. A memfd made with MFD_NOEXEC_SEAL is refused unless it is sealed against writing: it
// would come back so.
func (s *Session) Preserve(file string, f *os.File) error {
	if err := checkFileName(file); err != nil {
		return err
	}
	return useFile(f, func(raw int) error { return s.preserve(file, raw) })
}

func (s *Session) preserve(file string, raw int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifest != nil {
		return fmt.Errorf("holdfast: preserve %q in %q: %w", file, s.name, ErrCommitted)
	}
	// The next kernel makes it an executable file, where F_SEAL_EXEC brings all other seals with it
	// (memfd_luo_retrieve(), mm/memfd_luo.c, and memfd_add_seals(), mm/memfd.c, Linux 7.2.13): it would come back, and could
	// not be written any more.
	if seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); err == nil && seals&unix.F_SEAL_EXEC != 0 && seals&unix.F_SEAL_WRITE == 0 {
		return fmt.Errorf("holdfast: preserve %q in %q: a memfd with F_SEAL_EXEC would come back sealed against writing; make it without MFD_NOEXEC_SEAL, or seal it against writing yourself", file, s.name)
	}
	copied, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("holdfast: preserve %q in %q: %w", file, s.name, err)
	}
	held := fd.New(copied)
	if err := s.lu.PreserveFD(name.Token(file), held.Raw()); err != nil {
		held.Close()
		return fmt.Errorf("holdfast: preserve %q: %w", file, err)
	}
	s.files = append(s.files, heldFile{file, held})
	return nil
}

// Commit writes the manifest and puts it into the session, which is whole from then on and takes no more files.
// [Session.Store] does so too.
func (s *Session) Commit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit()
}

func (s *Session) commit() error {
	if s.manifest != nil {
		return nil
	}
	m := Manifest{Version: 1, Owner: s.owner, Name: s.name, Generation: s.generation, Files: []ManifestFile{}}
	for _, file := range s.files {
		var stat unix.Stat_t
		if err := file.fd.Use(func(raw int) error { return unix.Fstat(raw, &stat) }); err != nil {
			return fmt.Errorf("holdfast: commit %q: size of %q: %w", s.name, file.name, err)
		}
		m.Files = append(m.Files, ManifestFile{Name: file.name, Token: name.Token(file.name), Size: stat.Size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > manifestMax {
		return fmt.Errorf("holdfast: commit %q: the manifest of its %d files has %d bytes, the most is %d", s.name, len(m.Files), len(data), manifestMax)
	}
	manifest, err := sealedFile("holdfast-manifest", data)
	if err != nil {
		return fmt.Errorf("holdfast: commit %q: %w", s.name, err)
	}
	if err := s.lu.PreserveFD(ManifestToken, manifest.Raw()); err != nil {
		manifest.Close()
		return fmt.Errorf("holdfast: commit %q: %w", s.name, err)
	}
	s.manifest = manifest
	return nil
}

// Files returns the files in the session, by name: new descriptors, the caller's to close.
func (s *Session) Files() (map[string]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return dupFiles(s.files)
}

// Close closes this process's descriptors of the session and of its files. A session that isn't stored loses what it
// preserves.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.close()
}

func (s *Session) close() error {
	for _, file := range s.files {
		file.fd.Close()
	}
	if s.manifest != nil {
		s.manifest.Close()
	}
	return s.lu.Close()
}

// sealedFile makes a memfd that can't be changed any more. It is executable by nobody, as MFD_NOEXEC_SEAL asks.
func sealedFile(label string, data []byte) (*fd.FD, error) {
	raw, err := unix.MemfdCreate(label, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := fd.New(raw)
	for off := 0; off < len(data); {
		n, err := unix.Pwrite(raw, data[off:], int64(off))
		if err != nil {
			f.Close()
			return nil, os.NewSyscallError("pwrite", err)
		}
		off += n
	}
	if _, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, sealed); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
	}
	return f, nil
}

const sealed = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// readSealed reads what sealedFile has written, after it has made sure that nobody can change it meanwhile.
func readSealed(f *fd.FD) ([]byte, error) {
	var data []byte
	err := f.Use(func(raw int) error {
		seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0)
		if err != nil || seals&sealed != sealed {
			return fmt.Errorf("the manifest isn't a sealed memfd")
		}
		var stat unix.Stat_t
		if err := unix.Fstat(raw, &stat); err != nil {
			return err
		}
		if stat.Size > manifestMax {
			return fmt.Errorf("the manifest has %d bytes, the most is %d", stat.Size, manifestMax)
		}
		data = make([]byte, stat.Size)
		n, err := unix.Pread(raw, data, 0)
		if err == nil && n < len(data) {
			err = fmt.Errorf("the manifest could be read only to byte %d of %d", n, len(data))
		}
		return err
	})
	return data, err
}

func dupFiles(held []heldFile) (map[string]*os.File, error) {
	files := make(map[string]*os.File, len(held))
	for _, file := range held {
		dup, err := file.fd.Dup()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files[file.name] = dup.File(file.name)
	}
	return files, nil
}

// useFile lends the number of f's descriptor, without changing f to blocking mode as [os.File.Fd] does.
func useFile(f *os.File, fn func(raw int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := conn.Control(func(raw uintptr) { fnErr = fn(int(raw)) }); err != nil {
		return err
	}
	return fnErr
}
