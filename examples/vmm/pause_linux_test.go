// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// TestPause has a machine saved 100 s after its kernel's start, and going on 5 s after the next one's, 3 s later.
func TestPause(t *testing.T) {
	const hz = 2e9
	read := func(at, sinceBoot float64, wall time.Duration) timeline.Reading {
		return timeline.Reading{Counter: uint64(at * hz), BootTime: int64(sinceBoot * 1e9), Raw: int64(sinceBoot * 1e9), RealTime: int64(wall)}
	}
	head := stopped{Stop: 2 * time.Millisecond, Save: 20 * time.Millisecond, Clock: read(100, 100, time.Hour)}
	// The wall clock is read anew, and is off.
	begin, now := read(108, 5, time.Hour+7*time.Second), read(108.5, 5.5, time.Hour+7500*time.Millisecond)

	saved, err := head.with([]byte("state\n of QEMU"))
	if err != nil {
		t.Fatal(err)
	}
	came, state, err := parseSaved(saved)
	if err != nil || came != head || !bytes.Equal(state, []byte("state\n of QEMU")) {
		t.Fatalf("%+v, %q, %v", came, state, err)
	}
	if _, _, err := parseSaved([]byte("state")); err == nil {
		t.Error("a state without a head was parsed")
	}

	want := pause{Clock: "counter", Total: 8522000, Stop: 2000, Save: 20000, Kexec: 3000000, Boot: 5000000, Restore: 500000}
	if got := came.since(begin, now, true); *got != want {
		t.Errorf("%+v, and not %+v", *got, want)
	} else if s := got.String(); s != "stood still for 8.52s: stop 2ms, save 20ms, kexec 3s, boot 5s, restore 500ms" {
		t.Error(s)
	}
	want = pause{Clock: "counter", Total: 8522000, Stop: 2000, Save: 20000, Parked: 8000000, Restore: 500000}
	if got := came.since(begin, now, false); *got != want {
		t.Errorf("in the same kernel: %+v, and not %+v", *got, want)
	}
	// Without a counter, or with one that was set back.
	begin.Counter = 1
	want = pause{Clock: "wall", Total: 7522000, Stop: 2000, Save: 20000, Kexec: 2000000, Boot: 5000000, Restore: 500000}
	if got := came.since(begin, now, true); *got != want {
		t.Errorf("by the wall clock: %+v, and not %+v", *got, want)
	}
}
