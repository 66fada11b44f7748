// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
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
	Mode  uint32 // of the file, as stat(2) has it, and so the next two
	Dev   uint64
	Inode uint64
	Path  string // the link of the descriptor, as "anon_inode:[luo_session] x"
}

const (
	busName      = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
	getProperty  = "org.freedesktop.DBus.Properties.Get"
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
	return entries(dump(ctx, s.bus, s.Unit), s.Unit)
}

// dump asks PID 1 for what is in a unit's store, without waiting for the answer.
func dump(ctx context.Context, bus *dbus.Conn, unit string) *dbus.Call {
	return bus.Object(busName, managerPath).GoWithContext(ctx, managerIface+".DumpUnitFileDescriptorStore", 0, make(chan *dbus.Call, 1), unit)
}

// entries waits for the answer to dump.
func entries(asked *dbus.Call, unit string) ([]Entry, error) {
	// a(suuutuusu), bus_service_method_dump_file_descriptor_store (src/core/dbus-service.c, systemd 262).
	var dumped []struct {
		Name                 string
		Mode                 uint32
		DevMajor, DevMinor   uint32
		Inode                uint64
		RDevMajor, RDevMinor uint32
		Path                 string
		Flags                uint32
	}
	err := (<-asked.Done).Store(&dumped)
	if isError(err, "org.freedesktop.systemd1.FileDescriptorStoreDisabled") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking into the fd store of %s: %w", unit, err)
	}
	entries := make([]Entry, len(dumped))
	for i, d := range dumped {
		entries[i] = Entry{Name: d.Name, Mode: d.Mode, Dev: unix.Mkdev(d.DevMajor, d.DevMinor), Inode: d.Inode, Path: d.Path}
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
