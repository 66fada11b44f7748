// SPDX-License-Identifier: MIT

package custody

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Keeper holds descriptors while this process isn't there, up to the kexec, and over it where they are sessions.
type Keeper interface {
	// Kind is the word for it in Describe.
	Kind() string
	// Keep puts all of the items there, or none, and has seen them there when it returns. What is there already it
	// leaves, and it replaces nothing: another file of a name there is an error. The descriptors stay the caller's. A
	// *FullError says that there is no room.
	Keep(ctx context.Context, items []Item, room Room) error
	// Drop takes out what has these names.
	Drop(ctx context.Context, names []string) error
	// Settled tells whether nothing is under way, and nothing left that counts as not kept.
	Settled() bool
	// Wait waits until nothing is under way.
	Wait()
}

// Item is a descriptor with its name in the keeper.
type Item struct {
	Name string
	FD   *fd.FD
}

// Room is what bounds what is put there. Its zero value bounds nothing but the whole.
type Room struct {
	// Spare is how many descriptors there must be room for afterwards: 0 where a session follows another, which may need
	// twice as much for a while.
	Spare             int
	Unrenewed         bool // sessions of the previous kernel are there that none of this kernel follows yet
	Owned, OwnedNames int  // descriptors of the same owner with these, and the bytes of their names
	// Stays is for what is better there than not, with an error too: nothing that was put there is taken out again.
	Stays bool
}

// FullError says that a keeper has no room.
type FullError struct {
	Limit int    // descriptors
	Of    string // what sets the limit, in words
}

func (e *FullError) Error() string {
	return fmt.Sprintf("the keeper is full at %d descriptors: %s", e.Limit, e.Of)
}

// QuotaError says that an owner has parked as many sessions as it may.
type QuotaError struct{ Limit int }

func (e *QuotaError) Error() string {
	return fmt.Sprintf("%d sessions are parked already, which is the limit", e.Limit)
}

var (
	// ErrNoKeeper says that there is nothing to keep descriptors with. Nothing can be parked then, and what came from the
	// previous kernel is held by this process alone.
	ErrNoKeeper = errors.New("there is no keeper")
	// ErrAmbiguous says that there are two sessions of a name, and which one is meant wasn't said.
	ErrAmbiguous = errors.New("a session of the previous kernel and one of this kernel have that name: say which")
	// ErrOtherFile says that a file was parked beside a session where another of that name is beside it. A session can't
	// have two files under one token, so it isn't the one that is in it.
	ErrOtherFile = errors.New("another file of that name is parked beside the session")
	// ErrNotHere says that there is no such session.
	ErrNotHere = errors.New("no such session is parked here")
	// ErrNotOutgoing says that a session came from the previous kernel: it can't be parked, since it can't cross again.
	ErrNotOutgoing = errors.New("a session of the previous kernel can't cross another update: retrieve its files, finish it, and park them in a new session")
)

// FilesMax is how many files can be parked beside a session: 128, and a manifest.
const FilesMax = 129

// FileNameMax is the longest name of a file beside a session, in bytes. It becomes part of an FDNAME, which has room for 255.
const FileNameMax = 144

// File is a file beside a session.
type File struct {
	Name string
	FD   *fd.FD

	kept string // its name with the keeper, where that isn't the one that its session gives it
}

// IsMemory tells whether it is a file of the kernel's tmpfs without a name, which is what can be preserved
// (memfd_luo_can_preserve(), mm/memfd_luo.c, Linux 7.2), and more than a path to it (O_PATH).
func IsMemory(f *fd.FD) bool {
	var fs unix.Statfs_t
	var st unix.Stat_t
	err := f.Use(func(raw int) error {
		if flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH != 0 {
			return errors.New("not open")
		}
		if err := unix.Fstatfs(raw, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
			return errors.New("not on a tmpfs")
		}
		return unix.Fstat(raw, &st)
	})
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0
}

// Custody has what is parked. It is safe for concurrent use.
type Custody struct {
	device liveupdate.Device
	keeper Keeper
	boot   string
	log    *slog.Logger

	mu      sync.Mutex
	parked  map[key]*entry
	busy    map[string]chan struct{} // kernel names that somebody works on
	parking map[string]*entry        // those that are being parked
	left    map[string][]File        // files that came back without their session, by the digest of its kernel name
	returns []Return
}

type key struct {
	kernelName string
	direction  liveupdate.Direction
}

// entry is a parked session.
type entry struct {
	session *liveupdate.Session
	fdname  fdname.Name
	kept    string // its name with the keeper, if that is another
	files   []File
	claimed bool // incoming: its owner has got it since the update
	lent    bool // incoming: it was handed to somebody who asked, whether or not that could be noted
}

// New takes over what the keeper has handed back. Descriptors that aren't anybody's session or file are closed, and
// dropped.
func New(device liveupdate.Device, keeper Keeper, handed []Item, log *slog.Logger) (*Custody, error) {
	boot, err := fdname.ThisBoot()
	if err != nil {
		return nil, err
	}
	c := &Custody{device: device, keeper: keeper, boot: boot, log: log, parked: map[key]*entry{}, busy: map[string]chan struct{}{}, parking: map[string]*entry{}, left: map[string][]File{}}
	c.takeOver(handed)
	return c, nil
}

// Kind is the word for the keeper in Describe.
func (c *Custody) Kind() string { return c.keeper.Kind() }

// Keeps tells whether there is a keeper.
func (c *Custody) Keeps() bool {
	_, none := c.keeper.(None)
	return !none
}

func (c *Custody) takeOver(handed []Item) {
	var useless []string
	files := map[string][]File{}
	markers := map[string]bool{}
	byName := map[string]*entry{}
	for _, item := range handed {
		n, ours := fdname.Parse(item.Name)
		if prefix, file, isFile := parseFile(item.Name); isFile {
			if file == claimedMarker {
				markers[prefix] = true
				item.FD.Close()
			} else {
				files[prefix] = append(files[prefix], File{Name: file, FD: item.FD})
			}
			continue
		}
		session, err := liveupdate.FromFD(item.FD.Raw())
		if err != nil {
			// Left with the keeper: it may be a session that can't be looked at now, or what a newer version has put there.
			c.log.Warn("the keeper handed back what can't be told", "name", item.Name, "reason", err)
			item.FD.Close()
			continue
		}
		item.FD.Disown() // the session's
		direction, err := session.Direction()
		// The name that the kernel says is the one that counts; an FDNAME is a hint.
		if _, _, ok := name.Parse(session.Name()); err != nil || !ok || c.parked[key{session.Name(), direction}] != nil {
			c.log.Warn("the keeper handed back a session that can't be anybody's", "name", item.Name, "kernelName", session.Name(), "reason", err)
			session.Close() // the keeper has its own
			continue
		}
		e := &entry{session: session, kept: item.Name, fdname: n}
		if !ours || n.KernelName != session.Name() {
			e.fdname = fdname.Name{Boot: earlier, KernelName: session.Name()}
		}
		c.parked[key{session.Name(), direction}] = e
		byName[filePrefix(e.fdname)] = e
	}
	for prefix, list := range files {
		e := byName[prefix]
		for _, f := range list {
			// Files of an earlier boot came over the kexec by themselves: PID 1 preserves what is in no session
			// (src/core/luo.c, systemd 262). They belong to a renewal that didn't get further.
			f.kept = prefix + "/" + f.Name
			if e == nil {
				c.left[digestOf(prefix)] = append(c.left[digestOf(prefix)], f)
			} else {
				e.files = append(e.files, f)
			}
		}
	}
	for k, e := range c.parked {
		if k.direction == liveupdate.Incoming {
			e.files = append(e.files, c.takeLeft(k.kernelName)...)
		}
	}
	for prefix := range markers {
		if e := byName[prefix]; e != nil {
			e.claimed = true
		} else {
			useless = append(useless, prefix+"/"+claimedMarker)
		}
	}
	for _, e := range c.parked {
		slices.SortFunc(e.files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	}
	if len(useless) > 0 {
		if err := c.keeper.Drop(context.Background(), useless); err != nil {
			c.log.Warn("could not drop what is of no use", "reason", err)
		}
	}
}

// Names of files have the session's as a digest: all names in a store together are limited.
//
//	f<8 hex digits of the boot id>-<16 hex digits of the SHA-256 of the kernel name>/<file>
const claimedMarker = ".claimed"

func filePrefix(n fdname.Name) string { return "f" + n.Boot + "-" + digest(n.KernelName) }

func digest(kernelName string) string {
	sum := sha256.Sum256([]byte(kernelName))
	return hex.EncodeToString(sum[:8])
}

// digestOf is the digest in a prefix.
func digestOf(prefix string) string { return prefix[len("f")+8+len("-"):] }

// takeLeft takes the files of a session that came back without it.
func (c *Custody) takeLeft(kernelName string) []File {
	d := digest(kernelName)
	files := c.left[d]
	delete(c.left, d)
	return files
}

// dropLeft drops files of a session that came back without it: those of this boot, or all.
func (c *Custody) dropLeft(ctx context.Context, kernelName string, all bool) error {
	prefix := filePrefix(fdname.Name{Boot: c.boot, KernelName: kernelName}) + "/"
	goes := func(f File) bool { return all || strings.HasPrefix(f.kept, prefix) }
	d := digest(kernelName)
	var useless []string
	c.mu.Lock()
	for _, f := range c.left[d] {
		if goes(f) {
			useless = append(useless, f.kept)
		}
	}
	c.mu.Unlock()
	if useless == nil {
		return nil
	}
	if err := c.keeper.Drop(ctx, useless); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left[d] = slices.DeleteFunc(c.left[d], func(f File) bool {
		if goes(f) {
			f.FD.Close()
		}
		return f.FD.Raw() < 0
	})
	if len(c.left[d]) == 0 {
		delete(c.left, d)
	}
	return nil
}

func parseFile(s string) (prefix, file string, ok bool) {
	prefix, file, ok = strings.Cut(s, "/")
	return prefix, file, ok && len(prefix) == 26 && prefix[0] == 'f' && prefix[9] == '-' && file != ""
}

// Lock has one caller at a time work on a kernel name.
func (c *Custody) Lock(ctx context.Context, kernelName string) (unlock func(), err error) {
	c.mu.Lock()
	for c.busy[kernelName] != nil {
		done := c.busy[kernelName]
		c.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		c.mu.Lock()
	}
	done := make(chan struct{})
	c.busy[kernelName] = done
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		delete(c.busy, kernelName)
		c.mu.Unlock()
		close(done)
	}, nil
}

func (c *Custody) get(kernelName string, direction liveupdate.Direction) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked[key{kernelName, direction}]
}

func (c *Custody) set(kernelName string, direction liveupdate.Direction, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e == nil {
		delete(c.parked, key{kernelName, direction})
	} else {
		c.parked[key{kernelName, direction}] = e
	}
}

// Park keeps an outgoing session, and the files in it, for its owner, who may have limit sessions parked. It takes the
// session and the files over, also with an error, and returns once all is safe with the keeper. A session that is parked
// already may be parked again, with nil for the same files, or with those that are to be beside it from now on: one of a name
// that is there must be the one that is there.
func (c *Custody) Park(ctx context.Context, session *liveupdate.Session, files []File, limit int) (err error) {
	keep := false
	defer func() {
		if !keep {
			session.Close()
			closeFiles(files)
		}
	}()
	direction, err := session.Direction()
	if err != nil {
		return err
	}
	if direction != liveupdate.Outgoing {
		return ErrNotOutgoing
	}
	kernelName := session.Name()
	unlock, err := c.Lock(ctx, kernelName)
	if err != nil {
		return err
	}
	defer unlock()
	old := c.get(kernelName, liveupdate.Outgoing)
	e := &entry{session: session, files: files, fdname: fdname.Name{Boot: c.boot, KernelName: kernelName}}
	room, ok := c.reserve(kernelName, limit, e)
	if !ok {
		return &QuotaError{limit}
	}
	defer c.unreserve(kernelName)
	if old != nil && files != nil {
		if err := sameFiles(old.files, files); err != nil {
			return err
		}
	}
	// A Park that this process died in has left files without a session, which nobody was told are kept.
	if err := c.dropLeft(ctx, kernelName, false); err != nil {
		return err
	}
	items, done, err := e.items()
	if err != nil {
		return err
	}
	defer done()
	if err := c.keeper.Keep(ctx, items, room); err != nil {
		return err
	}
	keep = true
	var useless []string
	if old != nil {
		// Names are unique among outgoing sessions, so it is the same one.
		old.session.Close()
		for _, f := range old.files {
			if files == nil {
				e.files = append(e.files, f)
				continue
			}
			if !slices.ContainsFunc(files, func(n File) bool { return n.Name == f.Name }) {
				useless = append(useless, old.keptFile(f))
			}
			f.FD.Close()
		}
	}
	if len(useless) > 0 {
		if err := c.keeper.Drop(ctx, useless); err != nil {
			c.log.Warn("could not drop what was replaced", "kernelName", kernelName, "reason", err)
		}
	}
	c.set(kernelName, liveupdate.Outgoing, e)
	if c.get(kernelName, liveupdate.Incoming) == nil {
		// What an update left of one that was never parked as a whole would be taken for this one's after the next.
		if err := c.dropLeft(ctx, kernelName, true); err != nil {
			c.log.Warn("could not drop what was left of an earlier one", "kernelName", kernelName, "reason", err)
		}
	}
	return nil
}

// sameFiles makes sure that files of the same name are the same.
func sameFiles(old, files []File) error {
	for _, f := range files {
		for _, o := range old {
			if o.Name != f.Name {
				continue
			}
			a, err := fileOf(o.FD)
			if err != nil {
				return err
			}
			b, err := fileOf(f.FD)
			if err != nil {
				return err
			}
			if a != b {
				return fmt.Errorf("%q: %w", f.Name, ErrOtherFile)
			}
		}
	}
	return nil
}

// items are what of it is to be with the keeper: files first and the session last, so that with a session its files are
// there too. They are good until done is called.
func (e *entry) items() (items []Item, done func(), err error) {
	for _, f := range e.files {
		items = append(items, Item{e.keptFile(f), f.FD})
	}
	dup, err := e.session.Dup()
	if err != nil {
		return nil, nil, err
	}
	session := fd.New(dup.Disown())
	return append(items, Item{e.keptAs(), session}), func() { session.Close() }, nil
}

// keptFile is the name of a file with the keeper.
func (e *entry) keptFile(f File) string { return cmp.Or(f.kept, filePrefix(e.fdname)+"/"+f.Name) }

// keptAs is the name of the session with the keeper.
func (e *entry) keptAs() string { return cmp.Or(e.kept, e.fdname.Session()) }

func (e *entry) names() []string {
	names := []string{e.keptAs()}
	for _, f := range e.files {
		names = append(names, e.keptFile(f))
	}
	if e.claimed {
		names = append(names, filePrefix(e.fdname)+"/"+claimedMarker)
	}
	return names
}

func (e *entry) close() {
	e.session.Close()
	closeFiles(e.files)
}

func closeFiles(files []File) {
	for _, f := range files {
		f.FD.Close()
	}
}

// renewal is how many descriptors a session needs, at most, while it is followed by one of the next kernel, beyond those
// that it needs itself: the one of the previous kernel, that it was claimed, and a manifest.
const renewal = 3

// reserve tells whether the owner of the kernel name may park it as e, and in what room. It counts names: one of the
// previous kernel and the one of this kernel that follows it are one, and what is parked already may be parked again. It
// counts as parked from now on, until unreserve.
func (c *Custody) reserve(kernelName string, limit int, e *entry) (room Room, ok bool) {
	digest, _, _ := name.Parse(kernelName)
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]*entry{}
	for n, other := range c.parking {
		names[n] = other
	}
	for k, other := range c.parked {
		if k.direction == liveupdate.Outgoing || names[k.kernelName] == nil {
			names[k.kernelName] = other
		}
	}
	known := names[kernelName] != nil
	names[kernelName] = e
	n := 0
	for k, other := range names {
		if d, _, _ := name.Parse(k); d == digest {
			n++
			kept := other.names()
			room.Owned += len(kept)
			for _, k := range kept {
				room.OwnedNames += len(k) + 1
			}
		}
	}
	switch {
	case known:
		// What follows a session of the previous kernel must not be refused where that one wasn't.
	case limit >= 0 && n > limit:
		return room, false
	default:
		room.Spare = renewal * len(names)
		for k := range c.parked {
			if k.direction == liveupdate.Incoming && c.parked[key{k.kernelName, liveupdate.Outgoing}] == nil {
				room.Unrenewed = true
			}
		}
	}
	c.parking[kernelName] = e
	return room, true
}

func (c *Custody) unreserve(kernelName string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.parking, kernelName)
}

// Lent is a copy of a parked session, and of its files, for its owner. The original stays here.
type Lent struct {
	Session   *liveupdate.Session
	Direction liveupdate.Direction
	Files     []File
}

// Close closes the copies.
func (l *Lent) Close() {
	l.Session.Close()
	closeFiles(l.Files)
}

// Reclaim lends a session: the incoming one if there is one, else the outgoing one, or the one that is asked for. The
// kernel itself is asked too: after an update it has whatever nobody has retrieved.
func (c *Custody) Reclaim(ctx context.Context, kernelName string, want *liveupdate.Direction) (*Lent, error) {
	unlock, err := c.Lock(ctx, kernelName)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if want == nil || *want == liveupdate.Incoming {
		e, err := c.incoming(ctx, kernelName)
		if err == nil {
			if err := c.claim(ctx, e); err != nil {
				return nil, err
			}
			return e.lend(liveupdate.Incoming)
		}
		// One that somebody has retrieved may be finished already, and the one of this kernel what matters.
		next := want == nil && errors.Is(err, liveupdate.ErrAlreadyRetrieved) && c.get(kernelName, liveupdate.Outgoing) != nil
		if !errors.Is(err, ErrNotHere) && !next {
			return nil, err
		}
	}
	if want == nil || *want == liveupdate.Outgoing {
		if e := c.get(kernelName, liveupdate.Outgoing); e != nil {
			return e.lend(liveupdate.Outgoing)
		}
	}
	return nil, ErrNotHere
}

// Get is what List says of one session, if it is here.
func (c *Custody) Get(kernelName string, d liveupdate.Direction) (p Parked, here bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.parked[key{kernelName, d}]
	if e == nil {
		return Parked{}, false
	}
	return Parked{kernelName, d, e.claimed}, true
}

// Adopt takes an incoming session that was retrieved from the kernel, for its owner to reclaim. The caller has the Lock
// of its name.
func (c *Custody) Adopt(ctx context.Context, session *liveupdate.Session) error {
	// It can be had from the kernel once. From which boot it is nobody says.
	e := &entry{session: session, fdname: fdname.Name{Boot: earlier, KernelName: session.Name()}}
	c.mu.Lock()
	e.files = c.takeLeft(session.Name())
	c.mu.Unlock()
	c.set(session.Name(), liveupdate.Incoming, e)
	err := c.keepEntry(ctx, e)
	if err != nil {
		c.keepLater(context.WithoutCancel(ctx), e)
	}
	return err
}

// keepLater goes on trying to have an incoming session kept that this process alone holds.
func (c *Custody) keepLater(ctx context.Context, e *entry) {
	time.AfterFunc(again, func() {
		unlock, err := c.Lock(ctx, e.fdname.KernelName)
		if err != nil {
			return
		}
		defer unlock()
		if c.get(e.fdname.KernelName, liveupdate.Incoming) != e {
			return
		}
		if err := c.keepEntry(ctx, e); err != nil {
			c.keepLater(ctx, e)
		}
	})
}

// again is how long to wait before a keeper that failed is asked once more.
const again = 5 * time.Second

// incoming is the entry of an incoming session, or ErrNotHere.
func (c *Custody) incoming(ctx context.Context, kernelName string) (*entry, error) {
	if e := c.get(kernelName, liveupdate.Incoming); e != nil {
		return e, nil
	}
	session, err := c.device.Retrieve(ctx, kernelName)
	if errors.Is(err, liveupdate.ErrNoSuchSession) {
		return nil, ErrNotHere
	}
	if err != nil {
		return nil, err
	}
	if err := c.Adopt(ctx, session); err != nil {
		c.log.Error("holds a session that the keeper hasn't", "kernelName", kernelName, "reason", err)
	}
	return c.get(kernelName, liveupdate.Incoming), nil
}

// earlier stands in the FDNAMEs of sessions that were retrieved here for the boot that they came from.
const earlier = "00000000"

func (c *Custody) keepEntry(ctx context.Context, e *entry) error {
	items, done, err := e.items()
	if err != nil {
		return err
	}
	defer done()
	if err := c.keeper.Keep(ctx, items, Room{Stays: true}); err != nil && !errors.Is(err, ErrNoKeeper) {
		return err
	}
	return nil // without a keeper it is as safe as this process
}

// claim remembers, with the keeper, that the owner has got an incoming session.
func (c *Custody) claim(ctx context.Context, e *entry) error {
	c.mu.Lock()
	e.lent = true
	c.mu.Unlock()
	if err := c.keepEntry(ctx, e); err != nil { // it may not be there yet
		// Its owner becomes a second holder, which is better than none.
		c.log.Error("lends a session that the keeper hasn't", "kernelName", e.fdname.KernelName, "reason", err)
		return nil
	}
	if e.claimed {
		return nil
	}
	raw, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	marker := fd.New(raw)
	defer marker.Close()
	if err := c.keeper.Keep(ctx, []Item{{filePrefix(e.fdname) + "/" + claimedMarker, marker}}, Room{Stays: true}); err != nil && !errors.Is(err, ErrNoKeeper) {
		// Without it only IncomingWaiting comes once more, after a restart of this process.
		c.log.Warn("could not note that a session was claimed", "kernelName", e.fdname.KernelName, "reason", err)
	}
	c.mu.Lock()
	e.claimed = true
	c.mu.Unlock()
	return nil
}

func (e *entry) lend(direction liveupdate.Direction) (*Lent, error) {
	session, err := e.session.Dup()
	if err != nil {
		return nil, err
	}
	l := &Lent{Session: session, Direction: direction}
	for _, f := range e.files {
		dup, err := f.FD.Dup()
		if err != nil {
			l.Close()
			return nil, err
		}
		l.Files = append(l.Files, File{Name: f.Name, FD: dup})
	}
	return l, nil
}

// Release ends a parked session: the one that is asked for, or, where only one of that name is known, that one. Whoever
// it was lent to keeps what it has.
func (c *Custody) Release(ctx context.Context, kernelName string, want *liveupdate.Direction) (liveupdate.Direction, error) {
	unlock, err := c.Lock(ctx, kernelName)
	if err != nil {
		return 0, err
	}
	defer unlock()
	in, out := c.get(kernelName, liveupdate.Incoming), c.get(kernelName, liveupdate.Outgoing)
	switch {
	case want != nil:
	case in != nil && out != nil:
		return 0, ErrAmbiguous
	default:
		d := liveupdate.Incoming
		if out != nil {
			d = liveupdate.Outgoing
		}
		want = &d
	}
	if *want == liveupdate.Outgoing {
		if out == nil {
			return 0, ErrNotHere
		}
		return *want, c.end(ctx, out, *want)
	}
	if in != nil {
		return *want, c.end(ctx, in, *want)
	}
	session, err := c.device.Retrieve(ctx, kernelName)
	switch {
	case errors.Is(err, liveupdate.ErrNoSuchSession), errors.Is(err, liveupdate.ErrAlreadyRetrieved):
		return 0, ErrNotHere
	case err != nil:
		return 0, err
	}
	return *want, session.Close()
}

// DropOutgoing ends a parked session of this kernel, if there is one. The caller has the Lock of its name.
func (c *Custody) DropOutgoing(ctx context.Context, kernelName string) (dropped bool, err error) {
	e := c.get(kernelName, liveupdate.Outgoing)
	if e == nil {
		return false, nil
	}
	return true, c.end(ctx, e, liveupdate.Outgoing)
}

func (c *Custody) end(ctx context.Context, e *entry, direction liveupdate.Direction) error {
	if err := c.keeper.Drop(ctx, e.names()); err != nil {
		return err
	}
	if err := c.dropLeft(ctx, e.fdname.KernelName, true); err != nil {
		return err
	}
	c.set(e.fdname.KernelName, direction, nil)
	e.close()
	return nil
}

// Parked is what List says of a session.
type Parked struct {
	KernelName string
	Direction  liveupdate.Direction
	Claimed    bool
}

// List are the parked sessions, by kernel name. What the kernel still has isn't among them: it can't be listed.
func (c *Custody) List() []Parked {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Parked
	for _, k := range slices.SortedFunc(maps.Keys(c.parked), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.kernelName, b.kernelName), cmp.Compare(a.direction, b.direction))
	}) {
		list = append(list, Parked{k.kernelName, k.direction, c.parked[k].claimed})
	}
	return list
}

// Empty tells whether there is nothing that only the keeper could hand to a new process.
func (c *Custody) Empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.parked) == 0 && len(c.left) == 0 && len(c.parking) == 0 && c.keeper.Settled()
}

// Close closes what this process has. The keeper has its own, once what is under way is there: that is waited for.
func (c *Custody) Close() {
	c.keeper.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.parked {
		e.close()
	}
	for _, files := range c.left {
		closeFiles(files)
	}
	c.parked, c.left = nil, nil
}
