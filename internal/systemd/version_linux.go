// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"fmt"
	"os"
)

// Version returns what PID 1 says it is, such as "262 (262-1)"; "" where PID 1 isn't systemd.
func Version(ctx context.Context) (string, error) {
	// sd_booted(3).
	if _, err := os.Stat("/run/systemd/system"); os.IsNotExist(err) {
		return "", nil
	}
	bus, err := connect(ctx)
	if err != nil {
		return "", fmt.Errorf("asking PID 1 for its version: %w", err)
	}
	defer bus.Close()
	var version string
	err = bus.Object(busName, managerPath).
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, managerIface, "Version").Store(&version)
	if err != nil {
		return "", fmt.Errorf("asking PID 1 for its version: %w", err)
	}
	return version, nil
}
