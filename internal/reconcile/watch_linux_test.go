// SPDX-License-Identifier: MIT

package reconcile

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/luosim"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

const rule = `[[rule]]
name = "everybody"
cgroup = "any"
uid = "any"
owner = "test"
list-all = true
`

// serve starts an orchestrator without a keeper, as each boot of an emulated machine does, to which this process is "test".
func serve(t *testing.T) (*holdfast.Client, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "50-test.toml"), []byte(rule), 0o644); err != nil {
		t.Fatal(err)
	}
	rules, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	client := orchestratortest.Dial(t, rules, nil)
	return client, os.Getenv("HOLDFAST_ADDRESS")
}

// TestWatchAfterAnUpdate has one of two sessions come back. What becomes of the other is asked with time left and without.
func TestWatchAfterAnUpdate(t *testing.T) {
	noted := []timeline.Session{{Name: "ram", KernelName: name.Kernel("test", "ram")}, {Name: "index", KernelName: name.Kernel("test", "index")}}
	// The timeline's own session is not anybody's memory.
	carried := append(slices.Clone(noted), timeline.Session{Name: "report", KernelName: name.Kernel("test", "report")})
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			client, _ := serve(t)
			r, err := timeline.Open(t.Context(), client, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			// Before there was an update, all is settled.
			if w := (&Watch{Recorder: r}); len(w.Outcomes()) > 0 {
				t.Error(w.Outcomes())
			} else {
				w.Run(t.Context()) // returns: there was no update
			}
			for _, s := range noted {
				session, err := client.Acquire(t.Context(), s.Name)
				if err == nil {
					err = session.Commit() // and it stays open up to the kexec
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r.Changed(1, "preparing", "", nil)
			r.Carried(carried)
			r.Changed(1, "committing", "", nil)
		},
		func(t *testing.T) {
			client, path := serve(t)
			r, err := timeline.Open(t.Context(), client, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for deadline, want := range map[time.Duration]State{time.Hour: Waiting, time.Nanosecond: Lost} {
				changed := make(chan struct{}, 100)
				w := &Watch{Ask: func(ctx context.Context) (Listing, error) { return Ask(ctx, path) }, Recorder: r, Within: func(string) time.Duration { return deadline },
					Log: slog.New(slog.DiscardHandler), Changed: func() { changed <- struct{}{} }}
				// Whoever waits until all is settled must not come too early.
				if open := w.Outcomes(); !slices.ContainsFunc(open, func(o Outcome) bool { return o.Name == "index" && o.State == Waiting }) ||
					!slices.ContainsFunc(open, func(o Outcome) bool { return o.Owner == "/holdfastd.service" && o.State == Waiting }) {
					t.Errorf("before the first look: %+v", open)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { w.Run(ctx); close(ended) }()
				states := func(ram State) bool {
					return slices.ContainsFunc(w.Outcomes(), func(o Outcome) bool {
						return o.Name == "ram" && o.State == ram && (ram != Reclaimed || o.Owner == "test")
					}) &&
						slices.ContainsFunc(w.Outcomes(), func(o Outcome) bool { return o.Name == "index" && o.State == want })
				}
				<-changed
				committed, err := client.Reclaim(t.Context(), "ram")
				if err != nil {
					t.Fatal(err)
				}
				committed.Close()
				limit := time.After(10 * time.Second)
				for !states(Reclaimed) {
					select {
					case <-changed:
					case <-limit:
						t.Fatalf("deadline %v: %+v", deadline, w.Outcomes())
					}
				}
				if n := len(w.Outcomes()); n != len(noted) {
					t.Errorf("%d outcomes: %+v", n, w.Outcomes())
				}
				cancel()
				<-ended
			}
			report, err := r.Report()
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(report.Owners, func(o timeline.Owner) bool { return o.Owner == "test" })
			if i < 0 || len(report.Owners) != 1 {
				t.Fatalf("%+v", report.Owners)
			}
			for _, s := range report.Owners[i].Sessions {
				want := map[string]string{"ram": "reclaimed", "index": "waiting"}[s.Name]
				if want == "" || s.State != want {
					t.Errorf("%+v, want %s", s, want)
				}
			}
			// One that is claimed at one look, and finished and gone at the next, has come back.
			claimed := true
			for _, l := range []Listing{{Sessions: []Session{{KernelName: name.Kernel("test", "index"), Direction: "incoming", Claimed: &claimed}}}, {}} {
				w := &Watch{Recorder: r, Log: slog.New(slog.DiscardHandler), Within: func(string) time.Duration { return time.Nanosecond },
					Ask: func(context.Context) (Listing, error) { return l, nil }}
				w.Run(t.Context()) // to the end: all is back
				for _, o := range w.Outcomes() {
					if o.State != Reclaimed {
						t.Errorf("%+v: %+v", l, o)
					}
				}
			}
		})
}
