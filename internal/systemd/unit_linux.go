// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Unit is where the processes of a unit are, and as whom they run.
type Unit struct {
	Name string
	// Cgroup is "" where it isn't running.
	Cgroup string
	Slice  string // the slice's name
	User   string // User=; "" is root
}

// FindUnit asks PID 1 about a unit, a .service or .scope, running or not.
func FindUnit(ctx context.Context, name string) (*Unit, error) {
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 about %s: %w", name, err)
	}
	defer bus.Close()
	var path dbus.ObjectPath
	if err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".LoadUnit", 0, name).Store(&path); err != nil {
		return nil, fmt.Errorf("asking PID 1 about %s: %w", name, err)
	}
	unit := &Unit{Name: name}
	iface := serviceIface
	if strings.HasSuffix(name, ".scope") {
		iface = "org.freedesktop.systemd1.Scope"
	}
	// A unit that is only an alias has its processes under its own name.
	if err := get(ctx, bus, path, unitIface, "Id", &unit.Name); err != nil {
		return nil, err
	}
	if err := get(ctx, bus, path, iface, "ControlGroup", &unit.Cgroup); err != nil {
		return nil, err
	}
	if err := get(ctx, bus, path, iface, "Slice", &unit.Slice); err != nil {
		return nil, err
	}
	if iface == serviceIface {
		if err := get(ctx, bus, path, iface, "User", &unit.User); err != nil {
			return nil, err
		}
	}
	return unit, nil
}

func get(ctx context.Context, bus *dbus.Conn, path dbus.ObjectPath, iface, property string, dst any) error {
	var value dbus.Variant
	err := bus.Object(busName, path).CallWithContext(ctx, getProperty, 0, iface, property).Store(&value)
	if err == nil {
		err = value.Store(dst)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", property, path, err)
	}
	return nil
}
