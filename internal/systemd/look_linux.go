// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// Service is how a service's fd store is set up, and its memory limited.
type Service struct {
	StoreMax  int    // FileDescriptorStoreMax=
	Stored    int    // how much is in the store now
	Preserve  string // FileDescriptorStorePreserve=: no, restart, on-success or yes
	MemoryMax uint64 // MemoryMax= in bytes; [math.MaxUint64] for none
	Slice     string // the slice's name
	Cgroup    string // "" where it isn't running
}

// Services asks PID 1 about services, running or not.
func Services(ctx context.Context, names []string) (map[string]Service, error) {
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 about services: %w", err)
	}
	defer bus.Close()
	services := map[string]Service{}
	for _, name := range names {
		var path dbus.ObjectPath
		if err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".LoadUnit", 0, name).Store(&path); err != nil {
			return services, fmt.Errorf("asking PID 1 about %s: %w", name, err)
		}
		var s Service
		var max, stored uint32
		for _, p := range []struct {
			name string
			to   any
		}{
			{"FileDescriptorStoreMax", &max}, {"NFileDescriptorStore", &stored}, {"FileDescriptorStorePreserve", &s.Preserve},
			{"MemoryMax", &s.MemoryMax}, {"Slice", &s.Slice}, {"ControlGroup", &s.Cgroup},
		} {
			if err := get(ctx, bus, path, serviceIface, p.name, p.to); err != nil {
				return services, err
			}
		}
		s.StoreMax, s.Stored = int(max), int(stored)
		services[name] = s
	}
	return services, nil
}

// Active are those of some units that are started.
func Active(ctx context.Context, names ...string) (active []string, err error) {
	if booted, err := isBooted(); !booted {
		return nil, err
	}
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 for its units: %w", err)
	}
	defer bus.Close()
	units, err := loaded(ctx, bus, names...)
	if err != nil {
		return nil, err
	}
	for _, unit := range units {
		var state string
		if err := get(ctx, bus, unit.path, unitIface, "ActiveState", &state); err != nil {
			return nil, err
		}
		if state == "active" {
			active = append(active, unit.name)
		}
	}
	return active, nil
}

// InhibitDelayMax asks logind for how long it lets an inhibitor delay a shutdown (InhibitDelayMaxSec= in logind.conf(5)). It needs a
// bus daemon.
func InhibitDelayMax(ctx context.Context) (time.Duration, error) {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(context.WithoutCancel(ctx)))
	if err != nil {
		return 0, fmt.Errorf("asking logind for InhibitDelayMaxSec: %w", err)
	}
	defer bus.Close()
	const logind = "org.freedesktop.login1"
	var value dbus.Variant
	var usec uint64
	err = bus.Object(logind, "/org/freedesktop/login1").
		CallWithContext(ctx, getProperty, 0, logind+".Manager", "InhibitDelayMaxUSec").Store(&value)
	if err == nil {
		err = value.Store(&usec)
	}
	if err != nil {
		return 0, fmt.Errorf("asking logind for InhibitDelayMaxSec: %w", err)
	}
	return time.Duration(usec) * time.Microsecond, nil
}
