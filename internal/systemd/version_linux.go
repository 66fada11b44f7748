// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Version returns what PID 1 says it is, such as "262 (262-1)"; "" where PID 1 isn't systemd.
func Version(ctx context.Context) (string, error) {
	if booted, err := isBooted(); !booted {
		return "", err
	}
	bus, err := connect(ctx)
	if err != nil {
		return "", fmt.Errorf("asking PID 1 for its version: %w", err)
	}
	defer bus.Close()
	return versionOf(ctx, bus)
}

func versionOf(ctx context.Context, bus *dbus.Conn) (string, error) {
	var version string
	err := bus.Object(busName, managerPath).
		CallWithContext(ctx, getProperty, 0, managerIface, "Version").Store(&version)
	if err != nil {
		return "", fmt.Errorf("asking PID 1 for its version: %w", err)
	}
	return version, nil
}

// CarriesSince is the first version with which fd stores cross a kexec (its NEWS).
const CarriesSince = 261

// CarriesStores tells whether fd stores cross a kexec with a systemd of this version, as "262 (262-1)" or "262~rc1-1".
func CarriesStores(version string) bool {
	digits := strings.IndexFunc(version+" ", func(c rune) bool { return c < '0' || c > '9' })
	number, _ := strconv.Atoi(version[:digits])
	return number >= CarriesSince
}
