// SPDX-License-Identifier: MIT

//go:build linux

// Package custodytest has a keeper for tests: PID 1 with a store that crosses updates can't be had outside a machine of
// its own.
package custodytest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/fd"
)

// Shelf keeps descriptors in this process. It outlives any number of custodies, and no update.
type Shelf struct {
	Max int // descriptors; 0 is no limit

	mu    sync.Mutex
	items []custody.Item
}

// Kind is the word for it.
func (s *Shelf) Kind() string { return "shelf" }

// Keep is [custody.Keeper.Keep].
func (s *Shelf) Keep(_ context.Context, items []custody.Item, room custody.Room) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []custody.Item
	for _, i := range items {
		there := slices.IndexFunc(s.items, func(other custody.Item) bool { return other.Name == i.Name })
		if there < 0 {
			missing = append(missing, i)
		} else if inode(i.FD) != inode(s.items[there].FD) {
			return fmt.Errorf("another file is named %q", i.Name)
		}
	}
	if s.Max > 0 && len(missing) > 0 && len(s.items)+len(missing)+room.Spare > s.Max {
		return &custody.FullError{Limit: s.Max}
	}
	for _, i := range missing {
		dup, err := i.FD.Dup()
		if err != nil {
			return err
		}
		s.items = append(s.items, custody.Item{Name: i.Name, FD: dup})
	}
	return nil
}

func inode(f *fd.FD) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(f.Raw(), &st); err != nil {
		panic(err)
	}
	return st.Ino
}

// Settled is always so.
func (*Shelf) Settled() bool { return true }

// Wait doesn't.
func (*Shelf) Wait() {}

// Drop is [custody.Keeper.Drop].
func (s *Shelf) Drop(_ context.Context, names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.drop(n)
	}
	return nil
}

func (s *Shelf) drop(name string) {
	s.items = slices.DeleteFunc(s.items, func(i custody.Item) bool {
		if i.Name == name {
			i.FD.Close()
		}
		return i.Name == name
	})
}

// Handed is what it hands back to a new process.
func (s *Shelf) Handed(t *testing.T) []custody.Item {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []custody.Item
	for _, i := range s.items {
		dup, err := i.FD.Dup()
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, custody.Item{Name: i.Name, FD: dup})
	}
	return items
}

// Len is how many descriptors it has.
func (s *Shelf) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.items)
}

// Close closes them.
func (s *Shelf) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.items {
		i.FD.Close()
	}
	s.items = nil
}
