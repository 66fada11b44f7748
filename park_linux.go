// SPDX-License-Identifier: MIT

package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// fileReply is io.holdfast.Sessions.File.
type fileReply struct {
	Name           string `json:"name"`
	FileDescriptor int    `json:"fileDescriptor"`
}

// Park commits the session, if that wasn't done, and gives the orchestrator copies of it, of its files and of its
// manifest to keep. When it returns, all of that is safe: it crosses the next update even if this process has ended by
// then, and if this process dies before, [Client.Reclaim] gets it back. It is for programs that have no fd store of
// their own, in scopes, containers or users' services; a session must not be in both places, so one that was stored is
// refused.
//
// A further call makes sure that all is still there. After an error, Park may be called again.
func (s *Session) Park(ctx context.Context, client *Client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored {
		return fmt.Errorf("holdfast: park %q: it is in this unit's fd store, and must be in one place only", s.name)
	}
	if err := s.commit(); err != nil {
		return err
	}
	return s.park(ctx, client)
}

// park gives the orchestrator what there is.
func (s *Session) park(ctx context.Context, client *Client) error {
	in := struct {
		SessionFileDescriptor int         `json:"sessionFileDescriptor"`
		Files                 []fileReply `json:"files"`
	}{0, []fileReply{}}
	dup, err := s.lu.Dup()
	if err != nil {
		return err
	}
	session := fd.New(dup.Disown())
	defer session.Close()
	fds := []int{session.Raw()}
	add := func(name string, f *fd.FD) {
		in.Files = append(in.Files, fileReply{name, len(fds)})
		fds = append(fds, f.Raw())
	}
	for _, f := range s.files {
		add(f.name, f.fd)
	}
	if s.manifest != nil {
		add(parkedManifest+strconv.FormatUint(s.generation, 10), s.manifest)
	}
	got, err := client.call(ctx, fmt.Sprintf("park %q", s.name), "Park", in, fds, nil)
	fd.CloseAll(got)
	s.parked = s.parked || err == nil
	return err
}

// Release has the orchestrator give up what it keeps under this name. Whoever has reclaimed it keeps its own copies; if
// nobody has, the memory in it is freed. Where there are a session of the previous kernel and one of this kernel, the
// error is [ErrAmbiguous] unless the options say which.
func (c *Client) Release(ctx context.Context, name string, options ...ReleaseOption) error {
	var only liveupdate.Direction
	for _, option := range options {
		option(&only)
	}
	if only == 0 {
		return c.release(ctx, name, nil)
	}
	return c.release(ctx, name, &only)
}

func (c *Client) release(ctx context.Context, name string, direction *liveupdate.Direction) error {
	in := struct {
		Name      string `json:"name"`
		Direction string `json:"direction,omitempty"`
	}{Name: name}
	if direction != nil {
		in.Direction = direction.String()
	}
	fds, err := c.call(ctx, fmt.Sprintf("release %q", name), "Release", in, nil, nil)
	fd.CloseAll(fds)
	answer, ok := errors.AsType[*Error](err)
	if ok && answer.again && errors.Is(err, ErrNoSuchSession) {
		return nil // the first try did it
	}
	if ok && direction == nil && answer.Parameter == "direction" {
		return fmt.Errorf("holdfast: release %q: %w", name, ErrAmbiguous)
	}
	return err
}

// Parked lists what the orchestrator keeps for the caller. Sessions of the previous kernel that nobody has asked for
// yet needn't be among them: the kernel has them, and tells nobody. It can't be asked in another's name ([Client.As]).
func (c *Client) Parked(ctx context.Context) ([]ParkedSession, error) {
	if c.subject != nil {
		return nil, fmt.Errorf("holdfast: list: only one's own can be listed, not those of %s", c.subject)
	}
	var out struct {
		Sessions []struct {
			sessionReply
			Claimed bool `json:"claimed"`
		} `json:"sessions"`
	}
	fds, err := c.call(ctx, "list", "List", nil, nil, &out)
	fd.CloseAll(fds)
	if err != nil {
		return nil, err
	}
	var parked []ParkedSession
	for _, s := range out.Sessions {
		p := ParkedSession{Name: s.Name, KernelName: s.KernelName, Direction: liveupdate.Outgoing, Claimed: s.Claimed}
		if s.Direction == liveupdate.Incoming.String() {
			p.Direction = liveupdate.Incoming
		}
		parked = append(parked, p)
	}
	return parked, nil
}

// reclaimed is an answer to Reclaim.
type reclaimed struct {
	direction liveupdate.Direction
	lu        *liveupdate.Session
	files     []heldFile
	memory    *memoryReply
}

func (r *reclaimed) close() {
	r.lu.Close()
	closeFiles(r.files)
}

func (c *Client) reclaim(ctx context.Context, op, name string, direction *liveupdate.Direction) (*reclaimed, error) {
	in := struct {
		Name      string `json:"name"`
		Direction string `json:"direction,omitempty"`
	}{Name: name}
	if direction != nil {
		in.Direction = direction.String()
	}
	var out struct {
		Session               sessionReply `json:"session"`
		SessionFileDescriptor int          `json:"sessionFileDescriptor"`
		Files                 []fileReply  `json:"files"`
		Memory                *memoryReply `json:"memory"`
	}
	fds, err := c.call(ctx, op, "Reclaim", in, nil, &out)
	if err != nil {
		return nil, err
	}
	r := &reclaimed{direction: liveupdate.Outgoing, memory: out.Memory}
	if out.Session.Direction == liveupdate.Incoming.String() {
		r.direction = liveupdate.Incoming
	}
	for _, f := range out.Files {
		i := f.FileDescriptor
		if i < 0 || i >= len(fds) || fds[i] == nil || i == out.SessionFileDescriptor {
			closeFiles(r.files)
			fd.CloseAll(fds)
			return nil, fmt.Errorf("holdfast: %s: the answer came without the descriptor of %q", op, f.Name)
		}
		r.files = append(r.files, heldFile{f.Name, fds[i]})
		fds[i] = nil
	}
	if r.lu, err = takeSession(fds, out.SessionFileDescriptor, out.Session.KernelName); err != nil {
		closeFiles(r.files)
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	return r, nil
}

// committed makes what was parked in this kernel a Committed, which owns it then.
func (r *reclaimed) committed() (*Committed, error) {
	var best *Manifest
	var bestFD *fd.FD
	held := map[string]*fd.FD{}
	for _, f := range r.files {
		held[f.name] = f.fd
	}
	for _, f := range r.files {
		if !strings.HasPrefix(f.name, parkedManifest) {
			continue
		}
		m, err := readManifest(f.fd, r.lu.Name())
		if err != nil || best != nil && best.Generation >= m.Generation || !hasAll(held, m) {
			continue
		}
		best, bestFD = m, f.fd
	}
	if best == nil {
		return nil, errNotCommitted
	}
	c := &Committed{manifest: best, manifestFD: bestFD, outgoing: r.lu, reclaimed: true, parked: true}
	used := map[*fd.FD]bool{bestFD: true}
	for _, m := range best.Files {
		c.files = append(c.files, heldFile{m.Name, held[m.Name]})
		used[held[m.Name]] = true
	}
	for _, f := range r.files {
		if !used[f.fd] {
			f.fd.Close()
		}
	}
	return c, nil
}

func hasAll(held map[string]*fd.FD, m *Manifest) bool {
	for _, want := range m.Files {
		if f := held[want.Name]; f == nil || checkSize(f, want) != nil {
			return false
		}
	}
	return true
}

// interrupted is the parked session of a renewal of this memory that was not finished: the same files lie beside it.
func (c *Committed) interrupted(ctx context.Context, client *Client) (*liveupdate.Session, error) {
	outgoing := liveupdate.Outgoing
	r, err := client.reclaim(ctx, fmt.Sprintf("renew %q", c.manifest.Name), c.manifest.Name, &outgoing)
	if err != nil {
		return nil, err
	}
	defer closeFiles(r.files)
	for _, f := range c.files {
		same := false
		for _, parked := range r.files {
			if parked.name == f.name {
				if same, err = sameFile(parked.fd, f.fd); err != nil {
					r.lu.Close()
					return nil, err
				}
			}
		}
		if !same {
			r.lu.Close()
			return nil, fmt.Errorf("holdfast: renew %q: other memory is parked under this name: it was committed since; release the one that is not wanted", c.manifest.Name)
		}
	}
	return r.lu, nil
}

func sameFile(a, b *fd.FD) (bool, error) {
	var x, y unix.Stat_t
	err := a.Use(func(raw int) error { return unix.Fstat(raw, &x) })
	if err == nil {
		err = b.Use(func(raw int) error { return unix.Fstat(raw, &y) })
	}
	return err == nil && x.Dev == y.Dev && x.Ino == y.Ino, err
}

// nameWait is how long a name may stay taken by what nobody has any more: PID 1 closes what was dropped some time after,
// and the orchestrator drops what PID 1 was too slow to keep.
const nameWait = 5 * time.Second

// next is the session that follows: a new one, or that of a renewal of this same memory that somebody died in.
func (c *Committed) next(ctx context.Context, client *Client) (*liveupdate.Session, error) {
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		acquired, taken := client.acquire(ctx, c.manifest.Name, acquireOptions{fresh: true})
		if taken == nil {
			return acquired.lu, nil
		}
		if !errors.Is(taken, ErrNameTaken) {
			return nil, taken
		}
		lu, err := c.interrupted(ctx, client)
		if err == nil || !errors.Is(err, ErrNoSuchSession) {
			return lu, err
		}
		if pause > nameWait {
			return nil, taken
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, taken
		}
	}
}

// renewParked is Renew for what the orchestrator keeps:
//
//	retrieve all files → acquire a new session → park it with them → finish the incoming one → preserve them in the new
//	one → manifest → park it again → release the incoming one
//
// After a death at any step the parked files, or the incoming session, have all of it, and Reclaim and Renew go on from
// there.
func (c *Committed) renewParked(ctx context.Context, client *Client, done func(RenewStep)) (*Session, error) {
	wrap := func(err error) error { return fmt.Errorf("holdfast: renew %q: %w", c.manifest.Name, err) }
	err := c.retrieve()
	if err != nil {
		return nil, err
	}
	done(Retrieved)
	session := &Session{name: c.manifest.Name, owner: c.manifest.Owner, generation: c.manifest.Generation + 1, lu: c.outgoing}
	if c.outgoing == nil {
		if session.lu, err = c.next(ctx, client); err != nil {
			return nil, err
		}
		defer func() {
			if c.outgoing == nil {
				session.lu.Close() // it was not parked, so there is nothing in it
			}
		}()
		done(Acquired)
	}
	// The orchestrator gets all that makes them memory that was committed, before anything of the old session ends.
	before := &Session{name: session.name, owner: session.owner, generation: c.manifest.Generation, lu: session.lu, files: c.files, manifest: c.manifestFD}
	if err := before.park(ctx, client); err != nil {
		return nil, err
	}
	c.outgoing, c.parked = session.lu, true
	done(FilesStored)
	if old := cmp.Or(c.incoming, c.replaced); old != nil {
		if err := old.Finish(); err != nil {
			return nil, wrap(err)
		}
		c.finished, c.incoming, c.replaced = append(c.finished, old), nil, nil
		done(Finished)
	}
	for _, f := range c.files {
		err := session.lu.PreserveFD(name.Token(f.name), f.fd.Raw())
		if err != nil && !errors.Is(err, liveupdate.ErrTokenTaken) { // by somebody who died since
			return nil, wrap(err)
		}
	}
	done(Preserved)
	session.files = c.files
	err = session.commit()
	if errors.Is(err, liveupdate.ErrTokenTaken) {
		// It is committed: whoever did it died before it was parked. The manifest beside it is the one before.
		session.generation, session.manifest, err = c.manifest.Generation, c.manifestFD, nil
	}
	if err != nil {
		return nil, wrap(err)
	}
	done(ManifestWritten)
	if err := session.park(ctx, client); err != nil {
		if session.manifest != c.manifestFD {
			session.manifest.Close()
		}
		return nil, err
	}
	done(Stored)
	if session.manifest != c.manifestFD {
		c.manifestFD.Close()
	}
	// It is safe. If this fails, the finished one is kept for nothing until the next update.
	incoming := liveupdate.Incoming
	client.release(ctx, session.name, &incoming)
	return session, nil
}
