// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// manifestPrefix is before the generation in the FDNAME of a manifest. What a session is, the kernel says; what belongs to
// it, its manifest; the names are hints.
const manifestPrefix = ".manifest-"

func storePrefix(kernelName string) (string, error) {
	boot, err := fdname.ThisBoot()
	return fdname.Name{Boot: boot, KernelName: kernelName}.Session(), err
}

// openStore finds one's own fd store and makes sure that what is in it crosses an update.
func openStore(ctx context.Context) (*systemd.Store, error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil, &NoStoreError{Reason: "it wasn't started by systemd as a service, or has NotifyAccess=none"}
	}
	store, err := systemd.OpenStore(ctx)
	if err != nil {
		return nil, &NoStoreError{Reason: "systemd didn't say", Err: err}
	}
	switch {
	case !systemd.CarriesStores(store.Version):
		err = &NoStoreError{Unit: store.Unit, Reason: fmt.Sprintf("systemd %s gives up its fd stores at a kexec; 261 or newer is needed", store.Version)}
	case store.Max == 0:
		err = &NoStoreError{Unit: store.Unit, Reason: "it has FileDescriptorStoreMax=0; set it to 16 or more in [Service], and FileDescriptorStorePreserve=yes"}
	case store.Preserve != "yes" && store.Preserve != "on-success":
		err = &NoStoreError{Unit: store.Unit, Reason: fmt.Sprintf("FileDescriptorStorePreserve=%s gives it up when the service stops, as it does before a kexec; set it to yes", store.Preserve)}
	}
	if err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// item is a descriptor that is to be in the store.
type item struct {
	fdname string
	fd     *fd.FD
	link   string // of a session; files are told by their inode
}

// in tells whether the store has it: this very file, not only something of that name.
func (i item) in(entries []systemd.Entry) (bool, error) {
	var stat unix.Stat_t
	if i.link == "" {
		if err := i.fd.Use(func(raw int) error { return unix.Fstat(raw, &stat) }); err != nil {
			return false, err
		}
	}
	for _, e := range entries {
		// Every session has the inode of all anonymous files. Before Linux 7.2 the link of a long name may be
		// unreadable, and then there is only the FDNAME.
		if i.link == "" && e.Dev == stat.Dev && e.Inode == stat.Ino && sameButBoot(e.Name, i.fdname) ||
			i.link != "" && e.Name == i.fdname && (e.Path == i.link || e.Path == "") {
			return true, nil
		}
	}
	return false, nil
}

// sameButBoot tells whether two FDNAMEs are of the same file of the same session. The boot may be another one: files
// that were in a store without a session of theirs are taken over the kexec by PID 1 itself, with their names
// (src/core/luo.c, systemd 262), and it drops a second name for a file that it has.
func sameButBoot(a, b string) bool {
	x, okX := fdname.Parse(a)
	y, okY := fdname.Parse(b)
	return okX && okY && x.KernelName == y.KernelName && x.File == y.File
}

// namesMax bounds the FDNAMEs in a store together, in bytes. A unit gets them as one string of its environment, which
// execve(2) takes up to 128 KiB long; the rest is for listening sockets and for a renewal.
const namesMax = 96 << 10

// refuse makes sure that nothing of this session's name is committed in the store but itself: a program that starts
// afresh, though its memory is there, must not get that memory lost.
func refuse(entries []systemd.Entry, store *systemd.Store, kernelName string, items []item) error {
	if there, err := items[len(items)-1].in(entries); there || err != nil {
		return err // the session itself is there: what else there is, is left over from before it
	}
	for _, e := range entries {
		n, ours := fdname.Parse(e.Name)
		if !ours || n.KernelName != kernelName || n.File != "" && !strings.HasPrefix(n.File, manifestPrefix) {
			continue
		}
		if own, err := isOne(e, items); own || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		return fmt.Errorf("holdfast: the fd store of %s holds memory that was committed as %s (%s): take it back by Restored and Renew, "+
			"or give it up by \"systemctl clean --what=fdstore %s\": %w", store.Unit, kernelName, e.Name, store.Unit, ErrIncomingWaiting)
	}
	return nil
}

// isOne tells whether an entry is one of the items.
func isOne(e systemd.Entry, items []item) (bool, error) {
	for _, i := range items {
		if in, err := i.in([]systemd.Entry{e}); in || err != nil {
			return in, err
		}
	}
	return false, nil
}

// keep puts what isn't there yet into the store, in order, and looks whether it is there then: PID 1 tells nobody
// that a store was full, not even by the barrier (service_add_fd_store, src/core/service.c, systemd 262).
func keep(ctx context.Context, store *systemd.Store, items []item) error {
	entries, err := store.Entries(ctx)
	if err != nil {
		return err
	}
	var missing []item
	for _, i := range items {
		there, err := i.in(entries)
		if err != nil {
			return err
		}
		if !there {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if need := len(entries) + len(missing); need > store.Max {
		return &StoreFullError{Unit: store.Unit, Max: store.Max, Need: need}
	}
	names := 0
	for _, e := range entries {
		names += len(e.Name) + 1
	}
	for _, i := range missing {
		names += len(i.fdname) + 1
	}
	if names > namesMax {
		return &NoStoreError{Unit: store.Unit, Reason: fmt.Sprintf(
			"the names of what it holds would have %d bytes, and with more than %d the unit could not be started any more; use fewer or larger files", names, namesMax)}
	}
	for _, i := range missing {
		// What has its name and is another file was stored by somebody who died before it was committed: see refuse.
		if slices.ContainsFunc(entries, func(e systemd.Entry) bool { return e.Name == i.fdname }) {
			if err := store.Remove(i.fdname); err != nil {
				return err
			}
		}
		if err := i.fd.Use(func(raw int) error { return store.Send(i.fdname, raw) }); err != nil {
			return err
		}
	}
	if err := systemd.Barrier(ctx); err != nil {
		return err
	}
	if entries, err = store.Entries(ctx); err != nil {
		return err
	}
	for _, i := range missing {
		there, err := i.in(entries)
		if err != nil {
			return err
		}
		if !there && len(entries) >= store.Max {
			return &StoreFullError{Unit: store.Unit, Max: store.Max, Need: len(entries) + 1}
		}
		if !there {
			return &NoStoreError{Unit: store.Unit, Reason: fmt.Sprintf(
				"PID 1 did not keep %q; is this the main process, or has the unit NotifyAccess=all? Is it stored under another name already?", i.fdname)}
		}
	}
	return nil
}

// Store commits the session, if that wasn't done, and gives it and its files to the fd store of one's own unit to
// keep. When it returns, it has seen all of it there. A further call makes sure that all is still there.
//
// The errors to expect are a [*NoStoreError] for a unit that can't have a store, a [*StoreFullError], and
// [ErrIncomingWaiting] where the store holds memory that was committed under the same name before. After an error, Store
// may be called again.
func (s *Session) Store(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked {
		return fmt.Errorf("holdfast: store %q: it is parked with the orchestrator, and must be in one place only", s.name)
	}
	store, err := openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	entries, err := store.Entries(ctx)
	if err != nil {
		return err
	}
	items, done, err := s.items()
	if err != nil {
		return err
	}
	err = refuse(entries, store, s.lu.Name(), items)
	done()
	if err != nil {
		return err
	}
	return s.storeIn(ctx, store)
}

func (s *Session) storeIn(ctx context.Context, store *systemd.Store) error {
	if err := s.commit(); err != nil {
		return err
	}
	items, done, err := s.items()
	if err != nil {
		return err
	}
	defer done()
	s.storing = true
	if err := keep(ctx, store, items); err != nil {
		var noStore *NoStoreError
		var full *StoreFullError
		if errors.As(err, &noStore) || errors.As(err, &full) {
			return err
		}
		return fmt.Errorf("holdfast: store %q: %w", s.name, err)
	}
	s.stored = true
	return nil
}

// items is what is to be in the store: files first and the session last, so that with a session in the store its files
// are there too. It is good until done is called.
func (s *Session) items() (items []item, done func(), err error) {
	prefix, err := storePrefix(s.lu.Name())
	if err != nil {
		return nil, nil, err
	}
	// A copy for the time of this call: the session itself stays liveupdate's.
	dup, err := s.lu.Dup()
	if err != nil {
		return nil, nil, err
	}
	session := fd.New(dup.Disown())
	items = fileItems(prefix, s.files)
	if s.manifest != nil {
		items = append(items, item{fdname: manifestName(prefix, s.generation), fd: s.manifest})
	}
	items = append(items, item{fdname: prefix, fd: session, link: liveupdate.LinkPrefix + s.lu.Name()})
	return items, func() { session.Close() }, nil
}

func manifestName(prefix string, generation uint64) string {
	return fmt.Sprintf("%s/%s%d", prefix, manifestPrefix, generation)
}

func fileItems(prefix string, files []heldFile) []item {
	var items []item
	for _, f := range files {
		items = append(items, item{fdname: prefix + "/" + f.name, fd: f.fd})
	}
	return items
}

// Discard takes the session, its files and its manifest out of the fd store of one's own unit, and closes it: it will
// not be there after the update. Files stay where other descriptors hold them. A closed session can't be discarded.
func (s *Session) Discard(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	items, done, err := s.items()
	if err != nil {
		return err
	}
	defer done()
	slices.Reverse(items) // the session first: without it, nothing in the store promises anything
	store, err := openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	entries, err := store.Entries(ctx)
	if err != nil {
		return err
	}
	for _, i := range items {
		for _, e := range entries {
			in, err := i.in([]systemd.Entry{e})
			if err == nil && in {
				err = store.Remove(e.Name)
			}
			if err != nil {
				return fmt.Errorf("holdfast: discard %q: %w", s.name, err)
			}
		}
	}
	if err := systemd.Barrier(ctx); err != nil {
		return err
	}
	return s.close()
}
