// SPDX-License-Identifier: MIT

package run

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/peer"
)

// What the files in the session are called.
const (
	memoryPrefix = "mem."
	filePrefix   = "file."
	recordName   = "record"
)

// How the command is started.
const (
	fresh   = "fresh"   // its memory is new, and zero
	restart = "restart" // on what it left in this kernel
	updated = "update"  // on what it left in the previous kernel
	crashed = "crash"   // on what was there when it crashed
)

// memory is what the command runs on.
type memory struct {
	files      []*os.File // as the configuration has them
	how        string     // fresh, restart or updated
	generation uint64     // of what was committed last; 0 is never
	stopped    time.Time  // when the command had last ended; zero where that isn't known
	carried    map[string][]byte
	modes      map[string]fs.FileMode

	// kept is what came back, as long as whoever kept it has it too; record is its record.
	kept      *holdfast.Committed
	record    *os.File
	recordWas []byte
}

// newMemfd makes one that can be preserved: vm.memfd_noexec=1 would have it come back sealed against writing.
func newMemfd(name string, size int64) (*os.File, error) {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("memfd_create(MFD_EXEC): %w: the sysctl vm.memfd_noexec is 2, which leaves no memory that can be preserved; set it to 1", err)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(raw), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory %q of %d bytes: %w", name, size, err)
	}
	return f, nil
}

// begin gets the memory back that is kept under the session's name, or makes it. With an error, what is kept stays so.
func begin(ctx context.Context, c Config, client *holdfast.Client, say func(string, ...any)) (*memory, error) {
	kept, err := find(ctx, c, client)
	if err != nil {
		return nil, err
	}
	if kept != nil {
		m, err := goOn(c, kept)
		var half *halfError
		if !errors.As(err, &half) {
			if err != nil {
				kept.Close()
			}
			return m, err
		}
		say("a clean start, since what is kept in session %q isn't whole: %v", c.Session, half)
		if err := kept.Discard(ctx, client); err != nil {
			kept.Close()
			return nil, err
		}
	}
	if err := room(nil, c.Memory); err != nil {
		return nil, err
	}
	m := &memory{how: fresh}
	for _, wanted := range c.Memory {
		f, err := newMemfd(wanted.Name, wanted.Size)
		if err != nil {
			m.close()
			return nil, err
		}
		m.files = append(m.files, f)
	}
	return m, nil
}

// find looks where it may be: what systemd handed over, and then with the orchestrator, which asks the kernel too.
func find(ctx context.Context, c Config, client *holdfast.Client) (found *holdfast.Committed, err error) {
	restored, err := holdfast.Restored(ctx, client)
	for _, kept := range restored {
		if kept.Name() == c.Session && err == nil {
			found = kept
			continue
		}
		kept.Close()
	}
	if err != nil || found != nil {
		return found, err
	}
	found, err = client.Reclaim(ctx, c.Session)
	if errors.Is(err, holdfast.ErrNoSuchSession) {
		return nil, nil
	}
	return found, err
}

// goOn takes what is kept, as long as it is what the configuration asks for.
func goOn(c Config, kept *holdfast.Committed) (m *memory, err error) {
	var names []string
	for _, f := range kept.Manifest().Files {
		names = append(names, f.Name)
	}
	if !slices.Contains(names, recordName) {
		return nil, fmt.Errorf("session %q holds %q, and nothing that \"holdfast run\" has left: is it another program's? Give this one another name (--session)", c.Session, names)
	}
	if err := same(c, kept.Manifest().Files); err != nil {
		return nil, err
	}
	files, err := kept.Retrieve()
	if err != nil {
		return nil, err
	}
	m = &memory{how: restart, kept: kept, record: files[recordName], carried: map[string][]byte{}, modes: map[string]fs.FileMode{}}
	if kept.Incoming() {
		m.how = updated
	}
	defer func() {
		for name, f := range files {
			if f != m.record && (err != nil || !strings.HasPrefix(name, memoryPrefix)) {
				f.Close()
			}
		}
		if err != nil {
			m.record.Close()
			m = nil
		}
	}()
	r, err := readRecord(m.record)
	if err != nil {
		return m, fmt.Errorf("what is kept in session %q: %w", c.Session, err)
	}
	m.generation, m.stopped = r.Generation, r.Stopped
	m.recordWas = make([]byte, recordSize)
	if _, err := m.record.ReadAt(m.recordWas, 0); err != nil {
		return m, err
	}
	for _, carried := range r.Files {
		data, err := read(files[filePrefix+carried.Name], carried.Size)
		if err != nil {
			return m, err
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != carried.SHA256 {
			return m, &halfError{fmt.Errorf("the checksum of file %q is wrong", carried.Name)}
		}
		m.carried[carried.Name], m.modes[carried.Name] = data, fs.FileMode(carried.Mode).Perm()
	}
	for _, wanted := range c.Memory {
		m.files = append(m.files, files[memoryPrefix+wanted.Name])
	}
	return m, nil
}

// same makes sure that neither memory nor a file that is kept would be left over, or be of another size.
func same(c Config, files []holdfast.ManifestFile) error {
	kept := map[string]int64{}
	for _, f := range files {
		if name, ok := strings.CutPrefix(f.Name, memoryPrefix); ok {
			kept[name] = f.Size
		}
		if name, ok := strings.CutPrefix(f.Name, filePrefix); ok && !slices.ContainsFunc(c.Files, func(f File) bool { return f.Name == name }) {
			return changed(c, fmt.Sprintf("there is a file %q in what is kept, and no --file %s", name, name))
		}
	}
	for _, wanted := range c.Memory {
		size, ok := kept[wanted.Name]
		switch {
		case !ok:
			return changed(c, fmt.Sprintf("there is no memory %q in what is kept", wanted.Name))
		case size != wanted.Size:
			return changed(c, fmt.Sprintf("memory %q has %d bytes in what is kept, and %d by --mem", wanted.Name, size, wanted.Size))
		}
		delete(kept, wanted.Name)
	}
	for name := range kept {
		return changed(c, fmt.Sprintf("there is memory %q in what is kept, and no --mem %s", name, name))
	}
	return nil
}

func changed(c Config, what string) error {
	return fmt.Errorf("%s. Nothing was touched: start it as before, or give up what is kept: \"systemctl clean --what=fdstore UNIT\" where "+
		"the unit has it in its fd store, else \"holdfast release %s\" as the unit", what, c.Session)
}

func read(f *os.File, size int64) ([]byte, error) {
	if f == nil || size < 0 || size > CarriedMax {
		return nil, errors.New("the record doesn't fit to what the session holds")
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && !(err == io.EOF && size == 0) {
		return nil, err
	}
	return data, nil
}

// take makes the memory the command's: from here on what is kept is no more than half of what is to be.
func (m *memory) take() error {
	if m.record == nil {
		return nil
	}
	return takeBack(m.record)
}

// recorded is for a record that lies in a session now: if that can't be given up, it must be taken back before the command goes on.
func (m *memory) recorded(f *os.File) {
	if m.record != nil {
		m.record.Close()
	}
	m.record, m.recordWas = f, nil
}

// untake is for a command that could not be started.
func (m *memory) untake() error {
	if m.record == nil || m.recordWas == nil {
		return nil
	}
	_, err := m.record.WriteAt(m.recordWas, 0)
	return err
}

// drop has nobody else keep it any more.
func (m *memory) drop(ctx context.Context, client *holdfast.Client) error {
	if m.kept == nil {
		return nil
	}
	if err := m.kept.Discard(ctx, client); err != nil {
		return err
	}
	m.kept = nil
	return nil
}

func (m *memory) close() {
	for _, f := range m.files {
		f.Close()
	}
	if m.record != nil {
		m.record.Close()
	}
	if m.kept != nil {
		m.kept.Close()
	}
}

// room makes sure that all of the memory can be had: preserving it pins every page, those too that nobody has written to
// (memfd_luo_preserve_folios() calls memfd_pin_folios() for the whole size, mm/memfd_luo.c, Linux 7.2), and what it can't get
// kills somebody.
func room(files []*os.File, wanted []Memory) error {
	var need int64
	for i, w := range wanted {
		missing := w.Size
		if files != nil {
			var stat unix.Stat_t
			if err := fstat(files[i], &stat); err != nil {
				return err
			}
			missing -= stat.Blocks * 512
		}
		need += max(0, missing)
	}
	tightest, err := peer.OwnMemory()
	if err != nil {
		return fmt.Errorf("which memory limit applies: %w", err)
	}
	if tightest != nil && tightest.Available < need {
		return fmt.Errorf("too little memory: when an update is prepared, %d bytes more are needed, and the memory limit of %s (%d) has room for %d; raise MemoryMax=", need, tightest.Cgroup, tightest.Limit, tightest.Available)
	}
	available, err := hostMemory()
	if err == nil && available < need {
		err = fmt.Errorf("too little memory: when an update is prepared, %d bytes more are needed, and this host has %d available (MemAvailable in /proc/meminfo)", need, available)
	}
	return err
}

func fstat(f *os.File, stat *unix.Stat_t) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(raw uintptr) { inner = unix.Fstat(int(raw), stat) })
	return errors.Join(err, inner)
}

func hostMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 54)
			return kib << 10, err
		}
	}
	return math.MaxInt64, nil
}

// unchanged makes sure that the command has left the sizes alone: what comes back in another size would be refused.
func (m *memory) unchanged(wanted []Memory) error {
	for i, w := range wanted {
		stat, err := m.files[i].Stat()
		if err != nil {
			return err
		}
		if stat.Size() != w.Size {
			return fmt.Errorf("the command has resized memory %q from %d to %d bytes: it isn't kept, since what comes back must have the size that --mem says", w.Name, w.Size, stat.Size())
		}
	}
	return nil
}

// within has do work on a path by way of its directory, which is opened first. Root follows no links there: if one of the
// directories above is the command's user's, that user could have this process read or write anywhere.
func within(p string, do func(at string) error) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC}
	if os.Geteuid() == 0 {
		how.Resolve = unix.RESOLVE_NO_SYMLINKS
	}
	raw, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(p), &how)
	if err == unix.ELOOP && how.Resolve != 0 {
		return fmt.Errorf("%s: one of its directories is a symbolic link, which root doesn't follow here: give the path that it leads to", p)
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(p), Err: err}
	}
	defer unix.Close(raw)
	at := filepath.Join("/proc/self/fd", strconv.Itoa(raw), filepath.Base(p))
	err = do(at)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		e.Path = strings.Replace(e.Path, at, p, 1)
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		e.Old, e.New = strings.Replace(e.Old, at, p, 1), strings.Replace(e.New, at, p, 1)
	}
	return err
}

// link puts symbolic links where the command looks for its memory. Only one that leads to a descriptor is replaced.
func link(wanted []Memory) error {
	for i, w := range wanted {
		if w.Path == "" {
			continue
		}
		if isLink, err := ourLink(w.Path); err != nil {
			return err
		} else if isLink {
			if err := within(w.Path, os.Remove); err != nil {
				return err
			}
		}
		if err := within(w.Path, func(at string) error { return os.Symlink(path(i), at) }); err != nil {
			return fmt.Errorf("the link to memory %q: %w", w.Name, err)
		}
	}
	return nil
}

// ourLink tells whether there is one from an earlier run; something else is an error.
func ourLink(p string) (bool, error) {
	var target string
	err := within(p, func(at string) (err error) {
		target, err = os.Readlink(at)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err == nil && strings.HasPrefix(target, "/proc/self/fd/"):
		return true, nil
	case err == nil:
		return false, fmt.Errorf("%s exists, and leads to %s: the link to the memory was to be there. Take it away, or give another PATH", p, target)
	case !errors.Is(err, unix.EINVAL):
		return false, err
	}
	return false, fmt.Errorf("%s exists, and isn't a link: the link to the memory was to be there. Take it away, or give another PATH", p)
}

// unlink takes the links away again.
func unlink(wanted []Memory) {
	for _, w := range wanted {
		if ours, err := ourLink(w.Path); w.Path != "" && ours && err == nil {
			within(w.Path, os.Remove)
		}
	}
}

// old is the suffix of what was found where a carried file belongs.
const old = ".old"

// place puts the carried files where they belong. What is there already isn't of this memory: it is moved out of the way.
func (m *memory) place(files []File, say func(string, ...any)) error {
	for _, f := range files {
		data, carried := m.carried[f.Name]
		var there fs.FileInfo
		err := within(f.Path, func(at string) (err error) {
			there, err = os.Lstat(at)
			return err
		})
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !there.Mode().IsRegular():
			return fmt.Errorf("%s isn't a regular file, and file %q was to be there: take it away, or give another PATH", f.Path, f.Name)
		default:
			if now, _, err := readCarried(f.Path); carried && err == nil && bytes.Equal(now, data) {
				continue
			}
			if err := within(f.Path, func(at string) error { return os.Rename(at, at+old) }); err != nil {
				return err
			}
			say("%s doesn't belong to this memory: it is %s now", f.Path, f.Path+old)
		}
		if !carried {
			continue
		}
		if err := within(f.Path, func(at string) error { return write(at, data, m.modes[f.Name]) }); err != nil {
			return err
		}
	}
	return nil
}

func write(p string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(p), filepath.Base(p)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), p)
}

// carry copies the files, which the command has left, into memfds.
func carry(files []File) (records []carriedFile, memfds []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(memfds)
		}
	}()
	for _, f := range files {
		data, mode, err := readCarried(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it will not be there either
		}
		if err != nil {
			return nil, memfds, fmt.Errorf("file %q: %w", f.Name, err)
		}
		memfd, err := newMemfd(f.Name, max(1, int64(len(data)))) // an empty one too
		if err != nil {
			return nil, memfds, err
		}
		memfds = append(memfds, memfd)
		if _, err := memfd.WriteAt(data, 0); err != nil {
			return nil, memfds, fmt.Errorf("file %q: %w", f.Name, err)
		}
		sum := sha256.Sum256(data)
		records = append(records, carriedFile{recordFile{f.Name, int64(len(data))}, uint32(mode), hex.EncodeToString(sum[:])})
	}
	return records, memfds, nil
}

// readCarried takes no link and no FIFO, which the command's user could have put there for this process to follow or wait for.
func readCarried(p string) ([]byte, fs.FileMode, error) {
	var f *os.File
	err := within(p, func(at string) (err error) {
		f, err = os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !stat.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s isn't a regular file", p)
	}
	data, err := io.ReadAll(io.LimitReader(f, CarriedMax+1))
	if err == nil && len(data) > CarriedMax {
		err = fmt.Errorf("%s has more than %d bytes, which is the most for a file that is carried: it is copied while the command is stopped; memory is for what is larger", p, CarriedMax)
	}
	return data, stat.Mode().Perm(), err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
