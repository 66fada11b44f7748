// SPDX-License-Identifier: MIT

package custody

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// namesMax bounds the FDNAMEs in the store together, in bytes. A unit gets them as one string of its environment, which
// execve(2) takes up to 128 KiB long; the rest is for listening sockets.
const namesMax = 96 << 10

// patience is how long PID 1 may take for a batch, and for saying what store there is.
const patience = 30 * time.Second

// FDStore is the keeper where there is systemd 261 or newer: the fd store of one's own unit, at PID 1.
//
// PID 1 is slow to ask and takes what it is told in order, so requests that come while it is asked are put together.
type FDStore struct {
	mu      sync.Mutex
	waiting []*request
	working bool

	store *systemd.Store // the connection to PID 1; the worker's
}

type request struct {
	items []Item
	drop  []string
	err   error
	done  chan struct{}
}

// Kind is the word for it in Describe.
func (s *FDStore) Kind() string { return "fdstore" }

// Keep is [Keeper.Keep].
func (s *FDStore) Keep(ctx context.Context, items []Item) error {
	return s.do(ctx, &request{items: items})
}

// Drop is [Keeper.Drop]. PID 1 closes its copies some time after it returns.
func (s *FDStore) Drop(ctx context.Context, names []string) error {
	return s.do(ctx, &request{drop: names})
}

// do has a request done. It doesn't end before that with the context: the descriptors are in use.
func (s *FDStore) do(ctx context.Context, r *request) error {
	r.done = make(chan struct{})
	s.mu.Lock()
	s.waiting = append(s.waiting, r)
	if !s.working {
		s.working = true
		go s.work(context.WithoutCancel(ctx))
	}
	s.mu.Unlock()
	<-r.done
	return r.err
}

func (s *FDStore) work(ctx context.Context) {
	for {
		s.mu.Lock()
		batch := s.waiting
		s.waiting = nil
		if len(batch) == 0 {
			s.working = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		// After that nobody knows what PID 1 has done of it, and what was asked for counts as not done.
		limited, cancel := context.WithTimeout(ctx, patience)
		err := s.serve(limited, batch)
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
	}
}

// serve does a batch. What goes wrong with one request alone is that one's error; what is returned is everybody's.
func (s *FDStore) serve(ctx context.Context, batch []*request) error {
	entries, err := s.entries(ctx)
	if err != nil {
		return err
	}
	has := index(entries)
	sent := map[*request][]Item{}
	for _, r := range batch {
		for _, n := range r.drop {
			if has[n] != nil {
				if err := s.store.Remove(n); err != nil {
					return err
				}
				delete(has, n)
			}
		}
		var missing []Item
		names := 0
		for _, i := range r.items {
			there, err := same(i, has[i.Name])
			if err != nil {
				return err
			}
			if !there {
				missing = append(missing, i)
				names += len(i.Name) + 1
			}
		}
		full := func() bool { return len(has)+len(missing) > s.store.Max || total(has)+names > namesMax }
		if full() {
			// FileDescriptorStoreMax= may have been raised since.
			if err := s.open(ctx); err != nil {
				return err
			}
		}
		if full() {
			r.err = &FullError{s.store.Max}
			continue
		}
		for _, i := range missing {
			if has[i.Name] != nil { // another file, of somebody who died before it was of use
				if err := s.store.Remove(i.Name); err != nil {
					return err
				}
			}
			if err := i.FD.Use(func(raw int) error { return s.store.Send(i.Name, raw) }); err != nil {
				return err
			}
			has[i.Name] = []systemd.Entry{{Name: i.Name}}
		}
		sent[r] = missing
	}
	if err := systemd.Barrier(ctx); err != nil {
		return err
	}
	if len(sent) == 0 {
		return nil
	}
	// PID 1 tells nobody that a store was full, not even by the barrier (service_add_fd_store, src/core/service.c,
	// systemd 262).
	if entries, err = s.entries(ctx); err != nil {
		return err
	}
	has = index(entries)
	for r, items := range sent {
		if err := s.kept(items, has, len(entries)); err != nil {
			for _, i := range items {
				s.store.Remove(i.Name)
			}
			r.err = err
		}
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

func (s *FDStore) kept(items []Item, has map[string][]systemd.Entry, n int) error {
	for _, i := range items {
		there, err := same(i, has[i.Name])
		if err != nil {
			return err
		}
		if !there && n >= s.store.Max {
			return &FullError{s.store.Max}
		}
		if !there {
			return fmt.Errorf("PID 1 did not keep %q in the fd store of %s; has it that file under another name?", i.Name, s.store.Unit)
		}
	}
	return nil
}

func index(entries []systemd.Entry) map[string][]systemd.Entry {
	m := map[string][]systemd.Entry{}
	for _, e := range entries {
		m[e.Name] = append(m[e.Name], e)
	}
	return m
}

func total(has map[string][]systemd.Entry) int {
	sum := 0
	for n, list := range has {
		sum += (len(n) + 1) * len(list)
	}
	return sum
}

// same tells whether the item is among the entries of its name: this very file. Every session has the inode of all
// anonymous files, so those are told by their link, which before Linux 7.2 may be unreadable for a long name.
func same(i Item, entries []systemd.Entry) (bool, error) {
	var st unix.Stat_t
	link := ""
	err := i.FD.Use(func(raw int) error {
		if session, err := liveupdate.FromFD(raw); err == nil {
			link = liveupdate.LinkPrefix + session.Name()
			session.Disown()
			return nil
		}
		return unix.Fstat(raw, &st)
	})
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if link == "" && e.Inode == st.Ino || link != "" && (e.Path == link || e.Path == "") {
			return true, nil
		}
	}
	return false, nil
}

// Check says whether the store crosses an update, and why not.
func (s *FDStore) Check(ctx context.Context) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return systemd.ErrNoNotifySocket
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	store, err := systemd.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	switch {
	case !systemd.CarriesStores(store.Version):
		return fmt.Errorf("systemd %s gives up its fd stores at a kexec; 261 or newer is needed", store.Version)
	case store.Max == 0:
		return fmt.Errorf("%s has FileDescriptorStoreMax=0", store.Unit)
	case store.Preserve != "yes":
		return fmt.Errorf("%s has FileDescriptorStorePreserve=%s, and it must be yes", store.Unit, store.Preserve)
	}
	return nil
}

// None is the keeper where there is none.
type None struct{ Reason error }

// Kind is the word for it in Describe.
func (None) Kind() string { return "none" }

// Keep fails.
func (n None) Keep(context.Context, []Item) error { return fmt.Errorf("%w: %w", ErrNoKeeper, n.Reason) }

// Drop has nothing to do.
func (None) Drop(context.Context, []string) error { return nil }
