// SPDX-License-Identifier: MIT

package systemd

import (
	"math"
	"testing"
	"time"
)

func TestSinceStart(t *testing.T) {
	for usec, want := range map[uint64]time.Duration{0: 0, 1500000: 1500 * time.Millisecond, math.MaxUint64: 0, math.MaxInt64: 0} {
		if got := sinceStart(usec); got != want {
			t.Errorf("%d: %v, not %v", usec, got, want)
		}
	}
}
