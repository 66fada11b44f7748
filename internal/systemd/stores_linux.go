// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

// UnitStore is what is in the fd store of a unit of the system manager.
type UnitStore struct {
	Unit    string
	Entries []Entry
}

// Stores looks into the fd stores of all services of the system manager, those that don't run included, and returns the
// ones with something in them. Where PID 1 isn't systemd there are none. With an error, there may be more.
func Stores(ctx context.Context) ([]UnitStore, error) {
	if booted, err := isBooted(); !booted {
		return nil, err
	}
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 for the fd stores: %w", err)
	}
	defer bus.Close()
	units, err := loaded(ctx, bus, "*.service")
	if err != nil {
		return nil, err
	}
	// All are asked before the first answer is waited for: each takes PID 1 some time to get to. First how much is in
	// them, which anybody may ask, and of a masked unit too.
	asked := make([]*dbus.Call, len(units))
	for i, unit := range units {
		asked[i] = bus.Object(busName, unit.path).GoWithContext(ctx, getProperty, 0, make(chan *dbus.Call, 1), serviceIface, "NFileDescriptorStore")
	}
	var filled []loadedUnit
	for i, unit := range units {
		var n uint32
		switch err := (<-asked[i].Done).Store(&n); {
		case isError(err, "org.freedesktop.DBus.Error.UnknownObject"): // it is gone since it was listed
		case err != nil:
			return nil, fmt.Errorf("NFileDescriptorStore of %s: %w", unit.name, err)
		case n > 0:
			filled = append(filled, unit)
		}
	}
	for i, unit := range filled {
		asked[i] = dump(ctx, bus, unit.name)
	}
	var stores []UnitStore
	var closed []string
	var reason error
	for i, unit := range filled {
		entries, err := entries(asked[i], unit.name)
		switch {
		case isError(err, "org.freedesktop.systemd1.NoSuchUnit"):
		case isError(err, "org.freedesktop.DBus.Error.AccessDenied"):
			closed, reason = append(closed, unit.name), os.ErrPermission
		case err != nil:
			closed, reason = append(closed, unit.name), err
		case len(entries) > 0:
			stores = append(stores, UnitStore{unit.name, entries})
		}
	}
	if closed != nil {
		return stores, fmt.Errorf("PID 1 does not show what is in the fd store of %s: %w", strings.Join(closed, ", "), reason)
	}
	return stores, nil
}

func isError(err error, name string) bool {
	var failed dbus.Error
	return errors.As(err, &failed) && failed.Name == name
}

// UnitNames are the services and scopes of the system manager: those that PID 1 has loaded, and those that there are
// files of.
func UnitNames(ctx context.Context) ([]string, error) {
	if booted, err := isBooted(); !booted {
		return nil, err
	}
	bus, err := connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 for its units: %w", err)
	}
	defer bus.Close()
	patterns := []string{"*.service", "*.scope"}
	units, err := loaded(ctx, bus, patterns...)
	if err != nil {
		return nil, err
	}
	var files []struct{ Path, State string }
	err = bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".ListUnitFilesByPatterns", 0, []string{}, patterns).Store(&files)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 for its units' files: %w", err)
	}
	names := make([]string, len(units))
	for i, unit := range units {
		names[i] = unit.name
	}
	for _, f := range files {
		if unit := path.Base(f.Path); !strings.Contains(unit, "@.") {
			names = append(names, unit)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// isBooted is sd_booted(3).
func isBooted() (bool, error) {
	_, err := os.Stat("/run/systemd/system")
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

type loadedUnit struct {
	name string
	path dbus.ObjectPath
}

// loaded are the units that PID 1 knows, whether they run or not. One whose file is gone but whose fd store isn't empty
// is among them.
func loaded(ctx context.Context, bus *dbus.Conn, patterns ...string) ([]loadedUnit, error) {
	// a(ssssssouso), method_list_units_by_patterns (src/core/dbus-manager.c, systemd 262).
	var list []struct {
		Name, Description, Load, Active, Sub, Following string
		Path                                            dbus.ObjectPath
		Job                                             uint32
		JobType                                         string
		JobPath                                         dbus.ObjectPath
	}
	err := bus.Object(busName, managerPath).CallWithContext(ctx, managerIface+".ListUnitsByPatterns", 0, []string{}, patterns).Store(&list)
	if err != nil {
		return nil, fmt.Errorf("asking PID 1 for its units: %w", err)
	}
	units := make([]loadedUnit, len(list))
	for i, unit := range list {
		units[i] = loadedUnit{unit.Name, unit.Path}
	}
	return units, nil
}
