// SPDX-License-Identifier: MIT

package custody

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// namesMax bounds the FDNAMEs in the store together, in bytes. A unit gets them as one string of its environment, which
// execve(2) takes up to 128 KiB long; the rest is for listening sockets.
const namesMax = 120 << 10

// patience is how long PID 1 may take for a batch, and for saying what store there is.
const patience = 40 * time.Second

const (
	// batchMax is how many requests PID 1 is asked for at a time, for all of which it has its patience once.
	batchMax = 32
	// shareMin is how many descriptors an owner may have in a small store.
	shareMin = 16
	// settle is how long what counts as not kept stays with PID 1, at least.
	settle = time.Second
)

// FDStore is the keeper where there is systemd 261 or newer: the fd store of one's own unit, at PID 1.
//
// PID 1 is slow to ask and takes what it is told in order, so requests that come while it is asked are put together.
type FDStore struct {
	// Patience is how long PID 1 may take for a batch; 40 s if it is 0. It must not be changed once the store is in use.
	Patience time.Duration

	mu      sync.Mutex
	waiting []*request
	working bool

	idle     sync.Cond   // working has become false
	settling atomic.Bool // there is something unsure, and a request that does nothing else is on its way

	// The worker's own:
	store  *systemd.Store  // the connection to PID 1
	unsure map[string]bool // names of what was sent to PID 1 and counts as not kept
}

type request struct {
	items []Item
	room  Room
	drop  []string
	err   error
	done  chan struct{}
}

// Kind is the word for it in Describe.
func (s *FDStore) Kind() string { return "fdstore" }

// Keep is [Keeper.Keep].
func (s *FDStore) Keep(ctx context.Context, items []Item, room Room) error {
	return s.do(ctx, &request{items: items, room: room})
}

// Settled is [Keeper.Settled].
func (s *FDStore) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.working && !s.settling.Load()
}

// Wait is [Keeper.Wait].
func (s *FDStore) Wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.working {
		s.idle.Wait()
	}
}

// Drop is [Keeper.Drop]. PID 1 closes its copies some time after it returns.
func (s *FDStore) Drop(ctx context.Context, names []string) error {
	return s.do(ctx, &request{drop: names})
}

// do has a request done. It doesn't end before that with the context: the descriptors are in use.
func (s *FDStore) do(ctx context.Context, r *request) error {
	r.done = make(chan struct{})
	s.mu.Lock()
	s.queue(ctx, r)
	s.mu.Unlock()
	<-r.done
	return r.err
}

// queue has a request done some time. The lock is held.
func (s *FDStore) queue(ctx context.Context, r *request) {
	s.idle.L = &s.mu
	s.waiting = append(s.waiting, r)
	if !s.working {
		s.working = true
		go s.work(context.WithoutCancel(ctx))
	}
}

func (s *FDStore) work(ctx context.Context) {
	for {
		s.mu.Lock()
		batch := s.waiting[:min(len(s.waiting), batchMax)]
		s.waiting = s.waiting[len(batch):]
		if len(batch) == 0 {
			s.working = false
			s.idle.Broadcast()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		// After that nobody knows what PID 1 has done of it, and what was asked for counts as not done.
		limit := cmp.Or(s.Patience, patience)
		if len(batch) == 1 && batch[0].items == nil && batch[0].drop == nil {
			limit = settle // somebody may come who waits for it
		}
		limited, cancel := context.WithTimeout(ctx, limit)
		err := s.serve(limited, batch)
		if limited.Err() != nil && err != nil {
			err = fmt.Errorf("PID 1 has not answered within %v: %v", limit, err) // a deadline of the client's is another matter
		}
		cancel()
		for _, r := range batch {
			if r.err == nil {
				r.err = err
			}
			close(r.done)
		}
		if err != nil && s.store != nil {
			// Whatever is wrong with the connection: the next one asks by another.
			s.store.Close()
			s.store = nil
		}
		if len(s.unsure) > 0 && !s.settling.Swap(true) {
			// Else a session that nobody has any more would keep its name taken. Whatever is asked for next does it too.
			time.AfterFunc(settle, func() {
				// Both at once: in between, it would seem to be settled.
				s.mu.Lock()
				defer s.mu.Unlock()
				s.settling.Store(false)
				s.queue(ctx, &request{done: make(chan struct{})})
			})
		}
	}
}

// serve does a batch. What goes wrong with one request alone is that one's error; what is returned is everybody's.
func (s *FDStore) serve(ctx context.Context, batch []*request) (err error) {
	if len(s.unsure) > 0 {
		// Before the look: what was sent may still be on its way.
		if err := systemd.Barrier(ctx); err != nil {
			return err
		}
	}
	entries, err := s.entries(ctx)
	if err != nil {
		return err
	}
	has := newContents(entries)
	var settled []string
	for n := range s.unsure {
		if err := s.remove(has, n); err != nil {
			return err
		}
		settled = append(settled, n)
	}
	sent := map[*request][]Item{}
	defer func() {
		for r, items := range sent {
			if err == nil && r.err == nil || r.room.Stays {
				continue
			}
			if s.unsure == nil {
				s.unsure = map[string]bool{}
			}
			for _, i := range items {
				s.unsure[i.Name] = true
			}
		}
	}()
	reopened := false
	for _, r := range batch {
		for _, n := range r.drop {
			if err := s.remove(has, n); err != nil {
				return err
			}
		}
		missing, err := has.missing(r.items)
		if err != nil {
			r.err = err
			continue
		}
		if len(missing) == 0 {
			continue
		}
		r.err = s.fits(has, missing, r.room)
		if !reopened && has.count+len(missing)+r.room.Spare > s.store.Max {
			// FileDescriptorStoreMax= may have been raised since.
			reopened = true
			if err := s.open(ctx); err != nil {
				return err
			}
			r.err = s.fits(has, missing, r.room)
		}
		if r.err != nil {
			continue
		}
		for _, i := range missing {
			// Before, since nobody knows what became of one that failed.
			sent[r] = append(sent[r], i)
			// It may be by what the client has sent, so it is nobody else's error.
			if r.err = s.send(has, i); r.err != nil {
				break
			}
		}
	}
	if has.same && len(settled) == 0 {
		return nil
	}
	if err := systemd.Barrier(ctx); err != nil {
		return err
	}
	for _, n := range settled {
		delete(s.unsure, n)
	}
	if len(sent) == 0 {
		return nil
	}
	// PID 1 tells nobody that a store was full, not even by the barrier (service_add_fd_store, src/core/service.c,
	// systemd 262).
	if entries, err = s.entries(ctx); err != nil {
		return err
	}
	has = newContents(entries)
	for r, items := range sent {
		missing, err := has.missing(items)
		switch {
		case r.err != nil:
		case err != nil:
			r.err = err
		case len(missing) > 0 && has.count >= s.store.Max:
			r.err = s.full()
		case len(missing) > 0:
			r.err = fmt.Errorf("PID 1 did not keep %q in the fd store of %s", missing[0].Name, s.store.Unit)
		}
	}
	return nil
}

// send gives PID 1 an item that it hasn't.
func (s *FDStore) send(has *contents, i Item) error {
	key, err := fileOf(i.FD)
	if err != nil {
		return err
	}
	f := i.FD
	if has.files[key] && key.regular {
		// It has the file under another name. Of one open file it silently takes no second (service_add_fd_store), so it
		// gets the file opened once more.
		if f, err = reopen(f); err != nil {
			return err
		}
		defer f.Close()
	}
	has.add(i.Name, key)
	return f.Use(func(raw int) error { return s.store.Send(i.Name, raw) })
}

func (s *FDStore) remove(has *contents, n string) error {
	if has.byName[n] == nil {
		return nil
	}
	has.remove(n)
	return s.store.Remove(n)
}

func (s *FDStore) full() error {
	return &FullError{s.store.Max, "FileDescriptorStoreMax= of " + s.store.Unit}
}

// fits tells whether there is room.
func (s *FDStore) fits(has *contents, missing []Item, room Room) error {
	names := 0
	for _, i := range missing {
		names += len(i.Name) + 1
	}
	// What is new leaves room for what follows the sessions that are there: at the renewal of each it is there twice for a
	// while. After an update those that are yet to be renewed have only their own names; their files' come back.
	most, mostNames := s.store.Max-room.Spare, namesMax
	if room.Spare > 0 {
		mostNames = namesMax / 2
	}
	if room.Unrenewed {
		most, mostNames = min(most, s.store.Max/2), namesMax/3
	}
	if has.count+len(missing) > most {
		return s.full()
	}
	if has.names+names > mostNames {
		return &FullError{has.count, fmt.Sprintf("their names have %d bytes, and may have %d", has.names, mostNames)}
	}
	// So that no owner can fill it alone.
	share, shareNames := max(s.store.Max/4, shareMin), namesMax/4
	if room.Spare == 0 {
		share, shareNames = 2*share, 2*shareNames
	}
	if room.Owned > share || room.OwnedNames > shareNames {
		return &FullError{share, "an owner's share"}
	}
	return nil
}

// entries asks PID 1 what is there. It hangs up when it executes itself anew, as at each upgrade of systemd.
func (s *FDStore) entries(ctx context.Context) ([]systemd.Entry, error) {
	if s.store != nil {
		if entries, err := s.store.Entries(ctx); err == nil {
			return entries, nil
		}
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s.store.Entries(ctx)
}

// open connects to PID 1 anew.
func (s *FDStore) open(ctx context.Context) error {
	store, err := systemd.OpenStore(ctx)
	if err != nil {
		return err
	}
	if s.store != nil {
		s.store.Close()
	}
	s.store = store
	return nil
}

// contents is what is in the store.
type contents struct {
	byName map[string][]file
	files  map[file]bool
	count  int  // of entries
	names  int  // bytes of their names, with what ends each
	same   bool // as it was found
}

// file tells files apart. Every session has the inode of all anonymous files, so those are told by their name.
type file struct {
	dev, inode uint64
	regular    bool // not a session or another anonymous inode
	session    string
}

func newContents(entries []systemd.Entry) *contents {
	c := &contents{byName: map[string][]file{}, files: map[file]bool{}}
	for _, e := range entries {
		f := file{dev: e.Dev, inode: e.Inode, regular: e.Mode&unix.S_IFMT == unix.S_IFREG}
		if session, ok := strings.CutPrefix(e.Path, liveupdate.LinkPrefix); ok {
			f = file{session: session}
		} else if e.Path == "" && !f.regular {
			// Before Linux 7.2 the link of a session with a long name may be unreadable.
			f = file{}
		}
		c.add(e.Name, f)
	}
	c.same = true
	return c
}

func (c *contents) add(n string, f file) {
	c.byName[n] = append(c.byName[n], f)
	c.files[f] = true
	c.count++
	c.names += len(n) + 1
	c.same = false
}

func (c *contents) remove(n string) {
	c.count -= len(c.byName[n])
	c.names -= len(c.byName[n]) * (len(n) + 1)
	delete(c.byName, n)
	c.same = false
}

// missing are those that aren't there.
func (c *contents) missing(items []Item) ([]Item, error) {
	var missing []Item
	for _, i := range items {
		key, err := fileOf(i.FD)
		if err != nil {
			return nil, err
		}
		there := c.byName[i.Name]
		switch {
		case len(there) == 0:
			missing = append(missing, i)
		case !slices.Contains(there, key) && (key.session == "" || !slices.Contains(there, file{})):
			return nil, fmt.Errorf("the keeper has another file named %q", i.Name)
		}
	}
	return missing, nil
}

func fileOf(f *fd.FD) (key file, err error) {
	err = f.Use(func(raw int) error {
		if session, err := liveupdate.FromFD(raw); err == nil {
			key.session = session.Name()
			session.Disown()
			return nil
		}
		var st unix.Stat_t
		err := unix.Fstat(raw, &st)
		key.dev, key.inode, key.regular = st.Dev, st.Ino, st.Mode&unix.S_IFMT == unix.S_IFREG
		return err
	})
	return key, err
}

// reopen opens the file once more, for the same uses.
func reopen(f *fd.FD) (again *fd.FD, err error) {
	err = f.Use(func(raw int) error {
		flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		// Its owner may have a lease on it, which open(2) would wait for: 45 seconds (fcntl(2), F_SETLEASE).
		opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(raw), flags&unix.O_ACCMODE|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("the keeper has the file under another name, and it can't be opened for a second: %w", err)
		}
		again = fd.New(opened)
		return nil
	})
	return again, err
}

// ErrNoStore says that there is no store which crosses an update, and that there will be none by waiting.
var ErrNoStore = errors.New("there is no fd store that crosses an update")

// Check says whether the store crosses an update. [ErrNoStore], with the reason, says that it does not; any other error,
// that PID 1 could not be asked.
func (s *FDStore) Check(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return fmt.Errorf("%w: %w", ErrNoStore, systemd.ErrNoNotifySocket)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	store, err := systemd.OpenStore(ctx)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: PID 1 isn't systemd: %w", ErrNoStore, err)
	}
	if err != nil {
		return err
	}
	defer store.Close()
	switch {
	case !systemd.CarriesStores(store.Version):
		return fmt.Errorf("%w: systemd %s gives up its fd stores at a kexec; 261 or newer is needed", ErrNoStore, store.Version)
	case store.Max == 0:
		return fmt.Errorf("%w: %s has FileDescriptorStoreMax=0", ErrNoStore, store.Unit)
	case store.Preserve != "yes":
		return fmt.Errorf("%w: %s has FileDescriptorStorePreserve=%s, and it must be yes", ErrNoStore, store.Unit, store.Preserve)
	}
	return nil
}

// None is the keeper where there is none.
type None struct {
	Reason error
	Before *FDStore // has what was kept before there was none; or nil
}

// Kind is the word for it in Describe.
func (None) Kind() string { return "none" }

// Keep fails.
func (n None) Keep(context.Context, []Item, Room) error {
	return fmt.Errorf("%w: %w", ErrNoKeeper, n.Reason)
}

// Settled is always so.
func (None) Settled() bool { return true }

// Wait doesn't.
func (None) Wait() {}

// Drop drops what was kept before.
func (n None) Drop(ctx context.Context, names []string) error {
	if n.Before == nil {
		return nil
	}
	return n.Before.Drop(ctx, names)
}
