// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/godbus/dbus/v5"
)

// Times are moments on CLOCK_MONOTONIC. What didn't happen is 0.
type Times struct {
	Initrd, Userspace time.Duration // the starts of PID 1 in the initrd and after
	Shutdown          time.Duration // when PID 1 began to stop the host; systemd 258 and newer say it
	// The same of the kernel before, on its clock, and when systemd-shutdown was about to switch from it. systemd 262 carries
	// them over a kexec (luo_serialization_add_shutdown_timestamps, src/shutdown).
	PreviousShutdown, PreviousSwitch time.Duration
	Unit                             time.Duration // the start of the process of the unit that was asked for
}

// TimesOf asks PID 1 for them, and for the start of a service. Where PID 1 isn't systemd, all are 0.
func TimesOf(ctx context.Context, unit string) (Times, error) {
	var times Times
	if booted, err := isBooted(); !booted {
		return times, err
	}
	bus, err := connect(ctx)
	if err != nil {
		return times, fmt.Errorf("asking PID 1 for its times: %w", err)
	}
	defer bus.Close()
	for _, p := range []struct {
		name string
		dst  *time.Duration
		old  bool // every systemd has it
	}{
		{"InitRDTimestampMonotonic", &times.Initrd, true},
		{"UserspaceTimestampMonotonic", &times.Userspace, true},
		{"ShutdownStartTimestampMonotonic", &times.Shutdown, false},
		{"PreviousShutdownStartTimestampMonotonic", &times.PreviousShutdown, false},
		{"PreviousShutdownLateFinishTimestampMonotonic", &times.PreviousSwitch, false},
	} {
		if err := microseconds(ctx, bus, managerPath, managerIface, p.name, p.dst); err != nil && p.old {
			return times, err
		}
	}
	if unit == "" {
		return times, nil
	}
	var path dbus.ObjectPath
	if err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".LoadUnit", 0, unit).Store(&path); err != nil {
		return times, fmt.Errorf("asking PID 1 about %s: %w", unit, err)
	}
	return times, microseconds(ctx, bus, path, serviceIface, "ExecMainStartTimestampMonotonic", &times.Unit)
}

func microseconds(ctx context.Context, bus *dbus.Conn, path dbus.ObjectPath, iface, property string, dst *time.Duration) error {
	var usec uint64
	err := get(ctx, bus, path, iface, property, &usec)
	*dst = sinceStart(usec)
	return err
}

// sinceStart is 0 for what systemd has no time for (USEC_INFINITY, src/basic/time-util.h), too.
func sinceStart(usec uint64) time.Duration {
	if usec > uint64(math.MaxInt64/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}
