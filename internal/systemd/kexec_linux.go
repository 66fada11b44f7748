// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

const kexecTarget = "kexec.target"

// Kexec has PID 1 stop everything and switch to the loaded kernel, as systemctl kexec does where there is no logind. It
// returns when that failed, or can't be watched any more: with success PID 1 ends before its job is done.
func Kexec(ctx context.Context) error {
	bus, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("asking PID 1 for %s: %w", kexecTarget, err)
	}
	defer bus.Close()
	// Without a bus in between, PID 1 sends its signals to each of its own connections that asked for them.
	removed := make(chan *dbus.Signal, 64)
	bus.Signal(removed)
	manager := bus.Object(busName, managerPath)
	if err := manager.CallWithContext(ctx, managerIface+".Subscribe", 0).Err; err != nil {
		return fmt.Errorf("asking PID 1 for its jobs: %w", err)
	}
	var job dbus.ObjectPath
	// The mode is systemctl's for what ends the system: nothing that is started later calls it off
	// (start_special(), src/systemctl/systemctl-start-special.c, systemd 262).
	if err := manager.CallWithContext(ctx, managerIface+".StartUnit", 0, kexecTarget, "replace-irreversibly").Store(&job); err != nil {
		return fmt.Errorf("starting %s: %w", kexecTarget, err)
	}
	for {
		select {
		case s, open := <-removed:
			if !open {
				return kexecEnded(ctx)
			}
			if s.Name != managerIface+".JobRemoved" || len(s.Body) < 4 || s.Body[1] != job {
				continue
			}
			if result := s.Body[3]; result != "done" {
				return fmt.Errorf("PID 1 did not reach %s: its job is %v; see systemctl status %s", kexecTarget, result, kexecTarget)
			}
			// All that is left is systemd-shutdown.
			<-ctx.Done()
			return context.Cause(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// kexecEnded returns when PID 1, which hung up, says that it isn't on its way to a kexec any more. It says nothing where it
// has become systemd-shutdown.
func kexecEnded(ctx context.Context) error {
	for {
		if underWay, err := KexecUnderWay(ctx); err == nil && !underWay {
			return fmt.Errorf("PID 1 gave up its way to %s; see systemctl status %s", kexecTarget, kexecTarget)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// KexecUnderWay tells whether PID 1 is on its way to a kexec. Where PID 1 isn't systemd it never is.
func KexecUnderWay(ctx context.Context) (bool, error) {
	if booted, err := isBooted(); !booted {
		return false, err
	}
	bus, err := connect(ctx)
	if err != nil {
		return false, fmt.Errorf("asking PID 1 about %s: %w", kexecTarget, err)
	}
	defer bus.Close()
	var path dbus.ObjectPath
	if err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".LoadUnit", 0, kexecTarget).Store(&path); err != nil {
		return false, fmt.Errorf("asking PID 1 about %s: %w", kexecTarget, err)
	}
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	var state string
	if err := get(ctx, bus, path, unitIface, "Job", &job); err != nil {
		return false, err
	}
	if err := get(ctx, bus, path, unitIface, "ActiveState", &state); err != nil {
		return false, err
	}
	return job.ID != 0 || state == "active", nil
}

// Booted tells whether PID 1 is systemd.
func Booted() (bool, error) { return isBooted() }
