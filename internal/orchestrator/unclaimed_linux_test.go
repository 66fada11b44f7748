// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// handed is what PID 1 hands back after an update.
func handed(t *testing.T, sessions ...string) *custodytest.Shelf {
	t.Helper()
	shelf := &custodytest.Shelf{}
	t.Cleanup(shelf.Close)
	var items []custody.Item
	for _, n := range sessions {
		session, err := liveupdate.Device{}.Retrieve(t.Context(), name.Kernel("test/cache", n))
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, custody.Item{Name: fdname.Name{Boot: "0badb007", KernelName: session.Name()}.Session(), FD: fd.New(session.Disown())})
	}
	if err := shelf.Keep(t.Context(), items, custody.Room{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		i.FD.Close()
	}
	return shelf
}

// seen is what List says of each incoming session, by name, and of what came back.
func (h *host) seen(t *testing.T) (sessions map[string]session, returns map[string]returned) {
	t.Helper()
	var out struct {
		Sessions []session
		Returns  []returned
	}
	if _, err := h.varlink.Call(t.Context(), iface+".List", map[string]bool{"all": true}, nil, &out); err != nil {
		t.Fatal(err)
	}
	sessions, returns = map[string]session{}, map[string]returned{}
	for _, s := range out.Sessions {
		if s.Direction == "incoming" {
			sessions[s.Name] = s
		}
	}
	for _, r := range out.Returns {
		returns[r.Name] = r
	}
	return sessions, returns
}

// releasing runs the loop as holdfastd does, until the end of the test or stop.
func (h *host) releasing(t *testing.T) (stop func(), ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.ReleaseUnclaimed(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop, done
}

// TestUnclaimedIsReleasedByPolicy has an update bring three sessions: one is claimed in time, and two aren't. holdfastd is
// started anew meanwhile.
func TestUnclaimedIsReleasedByPolicy(t *testing.T) {
	two := []string{"claimed", "left", "other"}
	var crossing []*holdfast.Session
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t, 0, owner(t, "cache"))
			for _, n := range two {
				session := h.acquire(t, n, n)
				if err := session.Commit(); err != nil {
					t.Fatal(err)
				}
				crossing = append(crossing, session)
			}
		},
		func(t *testing.T) {
			rule := owner(t, "cache", "list-all = true", "release-unclaimed-after = '3s'")
			shelf := handed(t, two...)
			// The kernel was started a moment ago.
			started := custody.BootTime()
			h := hostOn(t, shelf, rule, func() int64 { return custody.BootTime() - started })

			sessions, _ := h.seen(t)
			for _, n := range two {
				if s := sessions[n]; s.ReleaseBootUSec != 3e6 || s.Claimed == nil || *s.Claimed || s.Owner != "test/cache" {
					t.Errorf("before: %+v", s)
				}
			}
			h.has(t, "claimed", "claimed")
			if s := h.list(t)["claimed"]; s.ReleaseBootUSec != 0 {
				t.Errorf("it was claimed, and is to be released: %+v", s)
			}

			// Restarted, it doesn't begin to count anew; and by then the machine has slept.
			stop, _ := h.releasing(t)
			stop()
			h.Custody.Close()
			h = hostOn(t, shelf, rule, func() int64 { return custody.BootTime() - started + 3e6 })
			_, ended := h.releasing(t)
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Fatalf("not released: %+v", h.list(t))
			}
			sessions, returns := h.seen(t)
			if len(sessions) != 1 || sessions["claimed"].Claimed == nil || !*sessions["claimed"].Claimed {
				t.Errorf("after: %+v", sessions)
			}
			for _, n := range two[1:] {
				if r := returns[n]; !r.Released || r.Rule != "cache" || r.Owner != "test/cache" {
					t.Errorf("what came back: %+v", r)
				}
				if _, err := h.Device.Retrieve(t.Context(), name.Kernel("test/cache", n)); err == nil {
					t.Errorf("the kernel still has %s", n)
				}
			}
			h.has(t, "claimed", "claimed")
		})
}

// TestUnclaimedIsKept has nothing released: without a word of the policy, with "never", where the time isn't over, and of
// a session whose owner has knocked.
func TestUnclaimedIsKept(t *testing.T) {
	var crossing []*holdfast.Session
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t, 0, owner(t, "cache"))
			for _, n := range []string{"left", "kernels"} {
				session := h.acquire(t, n, n)
				if err := session.Commit(); err != nil {
					t.Fatal(err)
				}
				crossing = append(crossing, session)
			}
		},
		func(t *testing.T) {
			h := hostOn(t, handed(t, "left"), owner(t, "cache", "list-all = true"), nil)
			// Nobody has retrieved this one. Its owner forgets to ask for it.
			if _, err := h.client.Acquire(t.Context(), "kernels"); err == nil {
				t.Fatal("a session of the previous kernel was passed over")
			}
			_, ended := h.releasing(t)
			for _, rule := range []string{"", "release-unclaimed-after = 'never'", fmt.Sprintf("release-unclaimed-after = '%dd'", 90000)} {
				h.SetPolicy(owner(t, "cache", "list-all = true", rule))
				if sessions, returns := h.seen(t); len(sessions) != 2 || len(returns) != 0 || sessions["kernels"].ReleaseBootUSec != 0 {
					t.Errorf("%s: %+v, %+v", rule, sessions, returns)
				}
			}
			select {
			case <-ended:
				t.Error("nobody looks any more")
			default:
			}
			// A reload has it looked at, at once.
			h.SetPolicy(owner(t, "cache", "list-all = true", "release-unclaimed-after = '1s'"))
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Fatalf("not released: %+v", h.list(t))
			}
			if sessions, _ := h.seen(t); len(sessions) != 1 || sessions["kernels"].KernelName == "" {
				t.Errorf("the owner of one has knocked, and there is %+v", sessions)
			}
			h.has(t, "kernels", "kernels")
		})
}

// TestReleasedWhileReclaimed races the two: whoever reclaims gets all of it, or hears that it isn't there.
func TestReleasedWhileReclaimed(t *testing.T) {
	var crossing []*holdfast.Session
	var all []string
	for i := range 20 {
		all = append(all, fmt.Sprintf("s%d", i))
	}
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t, 0, owner(t, "cache", "rate = 'any'"))
			for _, n := range all {
				session := h.acquire(t, n, n)
				if err := session.Commit(); err != nil {
					t.Fatal(err)
				}
				crossing = append(crossing, session)
			}
		},
		func(t *testing.T) {
			h := hostOn(t, handed(t, all...), owner(t, "cache", "rate = 'any'", "list-all = true"), nil)
			h.releasing(t)
			got := 0
			for i := len(all) - 1; i >= 0; i-- {
				if i == len(all)/2 {
					h.SetPolicy(owner(t, "cache", "rate = 'any'", "list-all = true", "release-unclaimed-after = '1s'"))
				}
				committed, err := h.client.Reclaim(t.Context(), all[i])
				if err != nil {
					continue
				}
				is(t, committed, all[i])
				committed.Close()
				got++
			}
			sessions, returns := h.seen(t)
			t.Logf("%d of %d were reclaimed in time", got, len(all))
			if len(sessions) != got || len(returns) != len(all) {
				t.Errorf("%d are there, of %d that were reclaimed; %d came back or were released", len(sessions), got, len(returns))
			}
		})
}

// list is seen's sessions.
func (h *host) list(t *testing.T) map[string]session {
	t.Helper()
	sessions, _ := h.seen(t)
	return sessions
}

// TestLentIsNotReleased: an owner has asked, and the keeper can't note that. It counts as claimed all the same.
func TestLentIsNotReleased(t *testing.T) {
	ram := name.Kernel("test/cache", "ram")
	var crossing []*holdfast.Session
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			session := newHost(t, 0, owner(t, "cache")).acquire(t, "ram", "ram")
			if err := session.Commit(); err != nil {
				t.Fatal(err)
			}
			crossing = append(crossing, session)
		},
		func(t *testing.T) {
			shelf := handed(t, "ram")
			c, err := custody.New(liveupdate.Device{}, &refusing{Shelf: shelf}, shelf.Handed(t), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.Unclaimed(); !slices.Equal(got, []string{ram}) {
				t.Errorf("before: %q", got)
			}
			lent, err := c.Reclaim(t.Context(), ram, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer lent.Close()
			if got := c.Unclaimed(); len(got) > 0 {
				t.Errorf("lent, and unclaimed: %q", got)
			}
			if released, _, err := c.ReleaseUnclaimed(t.Context(), ram); released || err != nil {
				t.Errorf("released: %t, %v", released, err)
			}
		})
}
