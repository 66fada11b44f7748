// SPDX-License-Identifier: MIT

package timeline

import (
	"time"

	"golang.org/x/sys/unix"
)

// Reading is what the clocks said at one moment.
type Reading struct {
	Counter uint64 `json:"counter,string"` // 0: there is none
	// Width is by how many ticks of the counter the moment may be off.
	Width    uint64 `json:"width"`
	BootTime int64  `json:"bootTimeNSec"` // CLOCK_BOOTTIME
	Raw      int64  `json:"rawNSec"`      // CLOCK_MONOTONIC_RAW, which NTP doesn't bend
	RealTime int64  `json:"realTimeNSec"` // since 1970
	// Suspended is for how long the machine was suspended: CLOCK_BOOTTIME counts that, CLOCK_MONOTONIC doesn't.
	Suspended int64 `json:"suspendedNSec,omitempty"`
}

// Read reads the clocks. Of several tries the one counts in which least time went by.
func Read() Reading {
	var best Reading
	for range 8 {
		before := counter()
		r := Reading{BootTime: nanoseconds(unix.CLOCK_BOOTTIME), Raw: nanoseconds(unix.CLOCK_MONOTONIC_RAW)}
		monotonic := nanoseconds(unix.CLOCK_MONOTONIC)
		after := counter()
		r.RealTime = nanoseconds(unix.CLOCK_REALTIME)
		// What is no more than the time between the two readings is none.
		if slept := r.BootTime - monotonic; slept > int64(time.Millisecond) {
			r.Suspended = slept
		}
		r.Counter, r.Width = before+(after-before)/2, after-before
		if best.BootTime == 0 || r.Width < best.Width {
			best = r
		}
	}
	return best
}

// Now is CLOCK_BOOTTIME.
func Now() time.Duration { return time.Duration(nanoseconds(unix.CLOCK_BOOTTIME)) }

// SinceBoot makes CLOCK_BOOTTIME of CLOCK_MONOTONIC, which is what systemd stamps with: they differ by the time that the
// machine was suspended.
func SinceBoot(monotonic time.Duration) time.Duration {
	then := nanoseconds(unix.CLOCK_MONOTONIC)
	return monotonic + time.Duration(nanoseconds(unix.CLOCK_BOOTTIME)-then)
}

func nanoseconds(clock int32) int64 {
	var t unix.Timespec
	// It fails for clocks that don't exist, and these do.
	_ = unix.ClockGettime(clock, &t)
	return t.Nano()
}
