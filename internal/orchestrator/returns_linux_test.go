// SPDX-License-Identifier: MIT

package orchestrator

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// TestListTellsWhatCameBack has three sessions cross: one is reclaimed, one released, and one nobody asks for. That one of
// this kernel is lent and released too is nobody's business.
func TestListTellsWhatCameBack(t *testing.T) {
	all := owner(t, "cache", "list-all = true")
	var crossing []*holdfast.Session
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t, 0, all)
			for _, n := range []string{"back", "gone", "left"} {
				session := h.acquire(t, n, n)
				if err := session.Commit(); err != nil {
					t.Fatal(err)
				}
				crossing = append(crossing, session) // held up to the kexec
			}
		},
		func(t *testing.T) {
			h := newHost(t, 0, all)
			h.park(t, "new", "of this kernel")
			h.has(t, "new", "of this kernel")
			if err := h.client.Release(t.Context(), "new"); err != nil {
				t.Fatal(err)
			}
			before := bootUSec(t)
			h.has(t, "back", "back")
			after := bootUSec(t)
			h.has(t, "back", "back")
			if err := h.client.Release(t.Context(), "back"); err != nil {
				t.Fatal(err)
			}
			if err := h.client.Release(t.Context(), "gone", holdfast.OnlyDirection(liveupdate.Incoming)); err != nil {
				t.Fatal(err)
			}
			var out struct{ Returns []returned }
			if _, err := h.varlink.Call(t.Context(), iface+".List", map[string]bool{"all": true}, nil, &out); err != nil {
				t.Fatal(err)
			}
			if len(out.Returns) != 2 {
				t.Fatalf("%+v", out.Returns)
			}
			back, gone := out.Returns[0], out.Returns[1]
			if back.Name != "back" || back.Owner != "test/cache" || back.KernelName != name.Kernel("test/cache", "back") || back.Released || back.BootUSec < before || back.BootUSec > after {
				t.Errorf("%+v, between %d and %d", back, before, after)
			}
			if gone.Name != "gone" || !gone.Released || gone.BootUSec < after {
				t.Errorf("%+v, after %d", gone, after)
			}
			// Whoever may not see all sees none of it.
			out.Returns = nil
			if _, err := h.varlink.Call(t.Context(), iface+".List", nil, nil, &out); err != nil || out.Returns != nil {
				t.Errorf("%+v, %v", out.Returns, err)
			}
		})
}

func bootUSec(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano()).Microseconds()
}
