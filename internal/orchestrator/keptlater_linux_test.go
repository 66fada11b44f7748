// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// refusing is a keeper that keeps nothing until it is told to.
type refusing struct {
	*custodytest.Shelf
	mu    sync.Mutex
	keeps bool
}

func (r *refusing) Keep(ctx context.Context, items []custody.Item, room custody.Room) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.keeps {
		return &custody.FullError{Limit: 1}
	}
	return r.Shelf.Keep(ctx, items, room)
}

// TestWhatCanNotBeKeptIsKeptLater: a session of the previous kernel that the keeper has no room for is lent all the same,
// and kept as soon as there is room, unless it was released by then.
func TestWhatCanNotBeKeptIsKeptLater(t *testing.T) {
	ram, gone := name.Kernel("test/cache", "ram"), name.Kernel("test/cache", "gone")
	var crossing []*holdfast.Session
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t, 0, owner(t, "cache"))
			for _, n := range []string{"ram", "gone"} {
				session := h.acquire(t, n, n)
				if err := session.Commit(); err != nil {
					t.Fatal(err)
				}
				crossing = append(crossing, session)
			}
		},
		func(t *testing.T) {
			keeper := &refusing{Shelf: &custodytest.Shelf{}}
			defer keeper.Close()
			c, err := custody.New(liveupdate.Device{}, keeper, nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, n := range []string{ram, gone} {
				lent, err := c.Reclaim(t.Context(), n, nil)
				if err != nil {
					t.Fatal(err)
				}
				lent.Close()
			}
			if _, err := c.Release(t.Context(), gone, nil); err != nil {
				t.Fatal(err)
			}
			keeper.mu.Lock()
			keeper.keeps = true
			keeper.mu.Unlock()
			for end := time.Now().Add(30 * time.Second); keeper.Len() == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("it isn't kept, and there is room")
				}
			}
			items := keeper.Handed(t)
			for _, i := range items {
				kept, err := liveupdate.FromFD(i.FD.Raw())
				if err != nil {
					t.Fatal(err)
				}
				if kept.Name() != ram {
					t.Errorf("%s is kept", kept.Name())
				}
				kept.Disown()
				i.FD.Close()
			}
			if len(items) != 1 {
				t.Errorf("%d are kept", len(items))
			}
		})
}
