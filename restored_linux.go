// SPDX-License-Identifier: MIT

package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Committed is memory that was committed under one name, and came back: from the previous kernel, or from the fd
// store after a restart or crash in this one. See [Restored] and [Client.Reclaim].
type Committed struct {
	manifest *Manifest // as it came back; never changed

	mu sync.Mutex
	// incoming holds the files until they are retrieved and it is finished; outgoing is a session of this kernel
	// that is stored already. At most one of them is set: with neither, the memory is only in the fd store.
	incoming, outgoing *liveupdate.Session
	files              []heldFile // all of the manifest's, or none
	beside             []heldFile // files of the manifest that aren't in incoming, until all are in files
	manifestFD         *fd.FD
	renewed            bool // outgoing is a renewal that could not be stored yet: of the next generation
	finished           []*liveupdate.Session
	replaced           *liveupdate.Session // of the previous kernel, to be finished though the memory isn't in it; or nil
	stale              []string            // FDNAMEs that are of no more use once a session of this kernel is stored
	charged            bool                // the files were retrieved before, by somebody who died since
	memory             *memoryReply        // what the orchestrator said that there is room for; nil where it knew no limit
	reclaimed          bool                // by name, and not from the fd store
	parked             bool                // outgoing may not have all of the files yet, and the orchestrator keeps it
}

// Name is the client's own portion of the session's name.
func (c *Committed) Name() string { return c.manifest.Name }

// Manifest says what it holds. It is known before anything is retrieved.
func (c *Committed) Manifest() Manifest {
	m := *c.manifest
	m.Files = slices.Clone(m.Files)
	return m
}

// Incoming says whether the memory is in a session of the previous kernel: it came across an update, and wasn't
// renewed yet.
func (c *Committed) Incoming() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.incoming != nil
}

// Retrieve returns the files, by name: new descriptors, the caller's to close. Their pages are charged to the caller's
// cgroup. Where its memory limit has no room for them it refuses with a [*MemoryLimitError] before anything is touched.
func (c *Committed) Retrieve() (map[string]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed() {
		return nil, fmt.Errorf("holdfast: retrieve %q: %w", c.manifest.Name, os.ErrClosed)
	}
	if err := c.retrieve(); err != nil {
		return nil, err
	}
	return dupFiles(c.files)
}

func (c *Committed) retrieve() error {
	if c.incoming == nil || len(c.files) == len(c.manifest.Files) {
		return nil
	}
	if !c.charged {
		need := c.manifest.Size()
		for _, m := range c.manifest.Files {
			if slices.ContainsFunc(c.beside, func(f heldFile) bool { return f.name == m.Name }) {
				need -= m.Size
			}
		}
		if err := checkMemory(need, c.memory); err != nil {
			return err
		}
	}
	var files []heldFile
	for _, m := range c.manifest.Files {
		held, err := c.retrieveFile(m)
		if err != nil {
			closeFiles(files)
			return fmt.Errorf("holdfast: retrieve %q of %q: %w", m.Name, c.manifest.Name, err)
		}
		files = append(files, heldFile{m.Name, held})
	}
	closeFiles(c.beside)
	c.files, c.beside = files, nil
	return nil
}

func (c *Committed) retrieveFile(m ManifestFile) (*fd.FD, error) {
	for _, f := range c.beside {
		if f.name == m.Name {
			return f.fd.Dup()
		}
	}
	f, err := c.incoming.Retrieve(m.Token)
	if err != nil {
		return nil, err
	}
	held, err := own(f)
	if err == nil {
		if err = checkSize(held, m); err != nil {
			held.Close()
		}
	}
	return held, err
}

// Close closes this process's descriptors. The fd store, or the orchestrator's keeper, has its own, and gives the same
// again. Where there is no keeper, what was reclaimed is held by the orchestrator's process alone.
func (c *Committed) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.close()
	return nil
}

func (c *Committed) closed() bool { return c.manifestFD == nil || c.manifestFD.Raw() < 0 }

func (c *Committed) close() {
	closeFiles(c.files)
	closeFiles(c.beside)
	if c.manifestFD != nil {
		c.manifestFD.Close()
	}
	for _, s := range append(c.finished, c.replaced, c.incoming, c.outgoing) {
		if s != nil {
			s.Close()
		}
	}
}

func closeFiles(files []heldFile) {
	for _, f := range files {
		f.fd.Close()
	}
}

func checkSize(f *fd.FD, m ManifestFile) error {
	var stat unix.Stat_t
	if err := f.Use(func(raw int) error { return unix.Fstat(raw, &stat) }); err != nil {
		return err
	}
	if stat.Size != m.Size {
		return fmt.Errorf("it has %d bytes, and %d in the manifest", stat.Size, m.Size)
	}
	return nil
}

// own takes a file's descriptor over. The file is closed.
func own(f *os.File) (*fd.FD, error) {
	defer f.Close()
	return dupFile(f)
}

func dupFile(f *os.File) (dup *fd.FD, err error) {
	err = useFile(f, func(raw int) error {
		n, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			dup = fd.New(n)
		}
		return err
	})
	return dup, err
}

// handed is what systemd handed over under one kernel name.
type handed struct {
	kernelName string
	sessions   []handedSession
	files      []handedFile
	memory     *memoryReply // what the orchestrator said that there is room for
}

type handedSession struct {
	fdname string
	unique bool // no other descriptor was handed over under this FDNAME
	lu     *liveupdate.Session
}

type handedFile struct {
	fdname string
	file   string
	fd     *fd.FD
}

func (h *handed) close() {
	for _, s := range h.sessions {
		s.lu.Close()
	}
	for _, f := range h.files {
		f.fd.Close()
	}
}

// inherited is taken from $LISTEN_FDS once: from then on the descriptors have an owner.
var inherited struct {
	mu    sync.Mutex
	taken bool
	names map[string]*handed
}

// inherit sorts what systemd handed over. What is none of ours, such as listening sockets, is left alone.
func inherit(listened []systemd.Listened) map[string]*handed {
	uses := map[string]int{}
	for _, l := range listened {
		uses[l.Name]++
	}
	names := map[string]*handed{}
	of := func(kernelName string) *handed {
		if names[kernelName] == nil {
			names[kernelName] = &handed{kernelName: kernelName}
		}
		return names[kernelName]
	}
	for _, l := range listened {
		stored, ours := fdname.Parse(l.Name)
		if ours && stored.File != "" {
			if _, err := unix.FcntlInt(uintptr(l.Raw), unix.F_GET_SEALS, 0); err != nil {
				continue // no memfd, so nothing that the library has stored
			}
			h := of(stored.KernelName)
			h.files = append(h.files, handedFile{fdname: l.Name, file: stored.File, fd: fd.New(l.Raw)})
			continue
		}
		lu, err := liveupdate.FromFD(l.Raw)
		if err != nil {
			continue
		}
		if _, _, ours := name.Parse(lu.Name()); !ours {
			lu.Disown()
			continue
		}
		h := of(lu.Name())
		h.sessions = append(h.sessions, handedSession{fdname: l.Name, unique: uses[l.Name] == 1, lu: lu})
	}
	return names
}

// Restored returns what systemd handed back to this process at its start ($LISTEN_FDS): each session that is whole by
// its manifest, and that the orchestrator says is the caller's own. What has no manifest was never committed, and is not
// there. Nothing and no error: this is the first start. With an error, don't start afresh.
//
// If the error says that something was left out ([ErrNotOwner], or a failure to read it), what is returned beside it is
// still good; the descriptors of the rest are closed here, and the fd store keeps its own. If the orchestrator can't be
// asked, nothing is returned, and it can be tried again.
//
// It takes over the descriptors that are the library's, once; what was returned isn't returned again. Other ones, such
// as listening sockets, are left alone. Where a library for socket activation makes files of all of $LISTEN_FDS, call
// Restored first, and have that library take only what it knows by name.
func Restored(ctx context.Context, client *Client) ([]*Committed, error) {
	inherited.mu.Lock()
	defer inherited.mu.Unlock()
	if pid := os.Getenv("LISTEN_PID"); !inherited.taken && pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("holdfast: systemd handed its descriptors to process %s, and this is %d: have the unit's ExecStart= execute this program itself", pid, os.Getpid())
	}
	if !inherited.taken {
		inherited.names, inherited.taken = inherit(systemd.ListenFDs()), true
	}
	// Who it belongs to comes first, of all of them: after this, nothing fails that could be tried again.
	var leftOut []error
	for _, h := range sorted(inherited.names) {
		for _, s := range h.sessions {
			var id Identity
			err := s.lu.Use(func(raw int) (err error) {
				id, err = client.identify(ctx, raw)
				return err
			})
			if err != nil {
				return nil, err
			}
			if !id.Yours {
				leftOut = append(leftOut, &Error{Op: "restore", Kind: ErrNotOwner.Kind, KernelName: h.kernelName})
				delete(inherited.names, h.kernelName)
				h.close()
				break
			}
			h.memory = id.memory
		}
	}
	var restored []*Committed
	for _, h := range sorted(inherited.names) {
		delete(inherited.names, h.kernelName)
		c, err := h.committed()
		if errors.Is(err, errNotCommitted) {
			h.close()
			continue
		}
		if err != nil {
			h.close()
			leftOut = append(leftOut, fmt.Errorf("holdfast: restore %s: %w", h.kernelName, err))
			continue
		}
		c.memory = h.memory
		restored = append(restored, c)
	}
	return restored, errors.Join(leftOut...)
}

func sorted(names map[string]*handed) []*handed {
	return slices.SortedFunc(maps.Values(names), func(a, b *handed) int { return cmp.Compare(a.kernelName, b.kernelName) })
}

// committed makes one of it, and owns the descriptors then.
//
// What can be there after a death at any step of [Renew]: the session of the previous kernel, with its files or
// finished; files and manifests in the store; the session of this kernel, which was stored last.
func (h *handed) committed() (*Committed, error) {
	c := &Committed{}
	whole := errNotCommitted
	outgoing := "" // its FDNAME
	for _, s := range h.sessions {
		direction, err := s.lu.Direction()
		if err != nil {
			return nil, err
		}
		if direction == liveupdate.Outgoing {
			c.outgoing, outgoing = s.lu, s.fdname
			continue
		}
		if s.unique {
			c.stale = append(c.stale, s.fdname)
		}
		manifest, manifestFD, err := incomingManifest(s.lu, h.kernelName)
		if err != nil {
			if !errors.Is(err, liveupdate.ErrNoSuchToken) {
				whole = err
			}
			c.finished = append(c.finished, s.lu)
			continue
		}
		c.incoming, c.manifest, c.manifestFD = s.lu, manifest, manifestFD
	}
	if c.incoming != nil && c.outgoing == nil {
		// The session has all of it. What the store has too is the same files, retrieved before.
		c.charged = !slices.ContainsFunc(c.manifest.Files, func(m ManifestFile) bool {
			return !slices.ContainsFunc(h.files, func(f handedFile) bool { return f.file == m.Name && checkSize(f.fd, m) == nil })
		})
		for _, f := range h.files {
			f.fd.Close()
		}
		return c, nil
	}
	stored, files, manifestFD := h.stored(outgoing)
	if stored == nil {
		if c.incoming != nil && whole == errNotCommitted {
			whole = errors.New("the fd store has a session of this kernel that isn't whole, beside one of the previous kernel that is")
		}
		if c.manifestFD != nil {
			c.manifestFD.Close()
		}
		return nil, whole
	}
	if c.incoming != nil {
		c.manifestFD.Close()
		c.finished, c.incoming = append(c.finished, c.incoming), nil
	}
	c.manifest, c.manifestFD = stored, manifestFD
	kept := map[*fd.FD]bool{manifestFD: true}
	for _, m := range stored.Files {
		c.files = append(c.files, heldFile{m.Name, files[m.Name]})
		kept[files[m.Name]] = true
	}
	keptNames := map[string]bool{}
	for _, f := range h.files {
		keptNames[f.fdname] = keptNames[f.fdname] || kept[f.fd]
	}
	for _, f := range h.files {
		if kept[f.fd] {
			continue
		}
		if !keptNames[f.fdname] {
			c.stale = append(c.stale, f.fdname)
		}
		f.fd.Close()
	}
	if c.outgoing == nil {
		// Its manifest is needed until the next one is stored.
		c.stale = append(c.stale, h.nameOf(manifestFD))
	}
	return c, nil
}

func (h *handed) nameOf(f *fd.FD) string {
	i := slices.IndexFunc(h.files, func(file handedFile) bool { return file.fd == f })
	return h.files[i].fdname
}

// incomingManifest retrieves the manifest of a session: a page or so.
func incomingManifest(lu *liveupdate.Session, kernelName string) (*Manifest, *fd.FD, error) {
	f, err := lu.Retrieve(ManifestToken)
	if err != nil {
		return nil, nil, err
	}
	held, err := own(f)
	if err != nil {
		return nil, nil, err
	}
	m, err := readManifest(held, kernelName)
	if err != nil {
		held.Close()
		return nil, nil, err
	}
	return m, held, nil
}

func readManifest(f *fd.FD, kernelName string) (*Manifest, error) {
	data, err := readSealed(f)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if name.Kernel(m.Owner, m.Name) != kernelName {
		return nil, fmt.Errorf("the manifest is one of session %q of %s, not of %s", m.Name, m.Owner, kernelName)
	}
	return m, nil
}

// stored finds the newest manifest in the store whose files are all there. One that was stored beside the session of
// this kernel, whose FDNAME is outgoing, comes before all others.
func (h *handed) stored(outgoing string) (*Manifest, map[string]*fd.FD, *fd.FD) {
	var best *Manifest
	var bestFiles map[string]*fd.FD
	var bestFD *fd.FD
	bestBeside := false
	for _, f := range h.files {
		if !strings.HasPrefix(f.file, manifestPrefix) {
			continue
		}
		m, err := readManifest(f.fd, h.kernelName)
		if err != nil {
			continue
		}
		prefix, _, _ := strings.Cut(f.fdname, "/")
		beside := prefix == outgoing
		if best != nil && (bestBeside && !beside || bestBeside == beside && best.Generation >= m.Generation) {
			continue
		}
		if files := h.filesOf(m, prefix); files != nil {
			best, bestFiles, bestFD, bestBeside = m, files, f.fd, beside
		}
	}
	return best, bestFiles, bestFD
}

// filesOf returns the files of a manifest that was stored under a prefix, or nil if one is missing. Those of the same
// prefix come first: of another one are files that PID 1 itself took over a kexec, and leftovers.
func (h *handed) filesOf(m *Manifest, prefix string) map[string]*fd.FD {
	files := map[string]*fd.FD{}
	for _, want := range m.Files {
		for _, f := range h.files {
			if f.file == want.Name && checkSize(f.fd, want) == nil && (files[want.Name] == nil || f.fdname == prefix+"/"+want.Name) {
				files[want.Name] = f.fd
			}
		}
		if files[want.Name] == nil {
			return nil
		}
	}
	return files
}
