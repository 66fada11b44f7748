// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
)

// Store is the file descriptor store of the unit that this process runs in.
type Store struct {
	Unit     string
	Version  string // of systemd
	Max      int    // FileDescriptorStoreMax=
	Preserve string // FileDescriptorStorePreserve=: no, restart, on-success or yes

	bus *dbus.Conn
}

// Entry is one descriptor in a store.
type Entry struct {
	Name  string
	Inode uint64 // of the file, in the kernel's own numbers
	Path  string // the link of the descriptor, as "anon_inode:[luo_session] x"
}

const (
	busName      = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
)

// OpenStore finds the store of this process's own unit. As root it asks PID 1 over its private socket, so that
// it works before and without dbus-daemon, else over the system bus. The caller closes it.
func OpenStore(ctx context.Context) (*Store, error) {
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 about the fd store: %w", err)
	}
	store, err := describe(ctx, bus)
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("asking PID 1 about the fd store: %w", err)
	}
	return store, nil
}

func connect(ctx context.Context) (*dbus.Conn, error) {
	if os.Geteuid() == 0 {
		return dialPrivate(ctx)
	}
	return dbus.ConnectSystemBus(dbus.WithContext(context.WithoutCancel(ctx)))
}

func describe(ctx context.Context, bus *dbus.Conn) (*Store, error) {
	store := &Store{bus: bus}
	var path dbus.ObjectPath
	// 0 is whoever asks, by the pidfd of the connection (method_get_unit_by_pid, src/core/dbus-manager.c, systemd 262).
	if err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".GetUnitByPID", 0, uint32(0)).Store(&path); err != nil {
		return nil, err
	}
	var err error
	if store.Version, err = versionOf(ctx, bus); err != nil {
		return nil, err
	}
	if err := get(ctx, bus, path, unitIface, "Id", &store.Unit); err != nil {
		return nil, err
	}
	var max uint32
	if err := get(ctx, bus, path, serviceIface, "FileDescriptorStoreMax", &max); err != nil {
		return nil, err
	}
	if err := get(ctx, bus, path, serviceIface, "FileDescriptorStorePreserve", &store.Preserve); err != nil {
		return nil, err
	}
	store.Max = int(max)
	return store, nil
}

// Close ends the connection to PID 1. What is stored stays.
func (s *Store) Close() error { return s.bus.Close() }

// Entries looks at what is in the store now.
func (s *Store) Entries(ctx context.Context) ([]Entry, error) {
	// a(suuutuusu), bus_service_method_dump_file_descriptor_store (src/core/dbus-service.c, systemd 262).
	var dump []struct {
		Name                 string
		Mode                 uint32
		DevMajor, DevMinor   uint32
		Inode                uint64
		RDevMajor, RDevMinor uint32
		Path                 string
		Flags                uint32
	}
	err := s.bus.Object(busName, managerPath).
		CallWithContext(ctx, managerIface+".DumpUnitFileDescriptorStore", 0, s.Unit).Store(&dump)
	var failed dbus.Error
	if errors.As(err, &failed) && failed.Name == "org.freedesktop.systemd1.FileDescriptorStoreDisabled" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking into the fd store of %s: %w", s.Unit, err)
	}
	entries := make([]Entry, len(dump))
	for i, d := range dump {
		entries[i] = Entry{Name: d.Name, Inode: d.Inode, Path: d.Path}
	}
	return entries, nil
}

// Send asks PID 1 to keep a copy of a descriptor. Whether it did, only Entries tells, after a Barrier.
//
// Polling is switched off: PID 1 would else drop a descriptor whose poll shows a hang-up.
func (s *Store) Send(name string, raw int) error {
	return Notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, raw)
}

// Remove asks PID 1 to close every entry of that name. It closes them some time after the Barrier.
func (s *Store) Remove(name string) error {
	return Notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}
