// SPDX-License-Identifier: MIT

package custody

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// Unclaimed are the kernel names of the sessions of the previous kernel that the keeper has handed back and whose owners have
// not asked for them. One that was fetched from the kernel since its owner asked isn't among them.
func (c *Custody) Unclaimed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for k, e := range c.parked {
		if k.direction == liveupdate.Incoming && e.unclaimed() {
			names = append(names, k.kernelName)
		}
	}
	slices.Sort(names)
	return names
}

func (e *entry) unclaimed() bool {
	return !e.claimed && !e.lent && e.fdname.Boot != earlier
}

// ReleaseUnclaimed ends one of them, unless it has been claimed by now. bytes is the size of the files beside it, which a
// renewal that was cut short has left; how much is in the session itself can't be asked.
func (c *Custody) ReleaseUnclaimed(ctx context.Context, kernelName string) (released bool, bytes int64, err error) {
	unlock, err := c.Lock(ctx, kernelName)
	if err != nil {
		return false, 0, err
	}
	defer unlock()
	c.mu.Lock()
	e := c.parked[key{kernelName, liveupdate.Incoming}]
	released = e != nil && e.unclaimed()
	c.mu.Unlock()
	if !released {
		return false, 0, nil
	}
	for _, f := range e.files {
		var st unix.Stat_t
		if f.FD.Use(func(raw int) error { return unix.Fstat(raw, &st) }) == nil {
			bytes += st.Size
		}
	}
	if err := c.end(ctx, e, liveupdate.Incoming); err != nil {
		return false, 0, err
	}
	return true, bytes, nil
}

// BootTime is CLOCK_BOOTTIME, in microseconds: the time since the kernel was started, which an update begins anew.
func BootTime() int64 {
	var now unix.Timespec
	// It fails for clocks that don't exist, and this one does.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return now.Nano() / 1000
}
