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
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// What is stored is named so that the generations of a session don't get mixed up: removing an FDNAME removes every
// entry of that name, and a renewed session has the kernel name of the one before it.
//
//	session   b<8 hex digits of the boot id>-<kernel name>
//	file      …/<file name>
//	manifest  …/.manifest-<generation>
//
// The names are hints. What a session is, the kernel says; what belongs to it, its manifest.
const manifestPrefix = ".manifest-"

func storePrefix(kernelName string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	if len(boot) < 8 {
		return "", fmt.Errorf("the boot id %q is too short", boot)
	}
	return "b" + string(boot[:8]) + "-" + kernelName, nil
}

// storedName is an FDNAME taken apart.
type storedName struct {
	prefix     string // the session's entry
	kernelName string
	file       string // empty for the session's entry; a manifest's begins with manifestPrefix
}

func parseStoredName(fdname string) (storedName, bool) {
	prefix, file, hasFile := strings.Cut(fdname, "/")
	if len(prefix) < 10 || prefix[0] != 'b' || prefix[9] != '-' || hasFile && file == "" {
		return storedName{}, false
	}
	for _, c := range []byte(prefix[1:9]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return storedName{}, false
		}
	}
	if _, _, ok := name.Parse(prefix[10:]); !ok {
		return storedName{}, false
	}
	return storedName{prefix: prefix, kernelName: prefix[10:], file: file}, true
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
		if i.link == "" && e.Inode == stat.Ino && sameButBoot(e.Name, i.fdname) ||
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
	x, okX := parseStoredName(a)
	y, okY := parseStoredName(b)
	return okX && okY && x.kernelName == y.kernelName && x.file == y.file
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
	for _, i := range missing {
		// What has its name and is another file was stored by somebody who died before it was committed.
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
// The errors to expect are a [*NoStoreError] for a unit that can't have a store, and a [*StoreFullError].
func (s *Session) Store(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	store, err := openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	return s.storeIn(ctx, store)
}

func (s *Session) storeIn(ctx context.Context, store *systemd.Store) error {
	if err := s.commit(); err != nil {
		return err
	}
	prefix, err := storePrefix(s.lu.Name())
	if err != nil {
		return err
	}
	// A copy for the time of this call: the session itself stays liveupdate's.
	dup, err := s.lu.Dup()
	if err != nil {
		return err
	}
	session := fd.New(dup.Disown())
	defer session.Close()
	// The files go first and the session last: with a session in the store, its files are there too.
	items := append(fileItems(prefix, s.files),
		item{fdname: manifestName(prefix, s.generation), fd: s.manifest},
		item{fdname: prefix, fd: session, link: liveupdate.LinkPrefix + s.lu.Name()})
	if err := keep(ctx, store, items); err != nil {
		var noStore *NoStoreError
		var full *StoreFullError
		if errors.As(err, &noStore) || errors.As(err, &full) {
			return err
		}
		return fmt.Errorf("holdfast: store %q: %w", s.name, err)
	}
	return nil
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

// Discard takes the session and its files out of the fd store of one's own unit, and closes it: it will not be there
// after the update. Files stay where other descriptors hold them.
func (s *Session) Discard(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	prefix, err := storePrefix(s.lu.Name())
	if err != nil {
		return err
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
	// The session first: without it, nothing in the store promises anything.
	names := []string{prefix}
	for _, e := range entries {
		if n, ours := parseStoredName(e.Name); ours && n.kernelName == s.lu.Name() && n.file != "" {
			names = append(names, e.Name)
		}
	}
	for _, n := range names {
		if err := store.Remove(n); err != nil {
			return err
		}
	}
	if err := systemd.Barrier(ctx); err != nil {
		return err
	}
	s.close()
	return nil
}
