// SPDX-License-Identifier: MIT

package pid1

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/luosim"
)

// round conducts one with a single participant: each phase is told when it comes out of phases.
func round(t *testing.T, phases <-chan string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "io.holdfast.Update")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	server := &varlink.Server{Interfaces: []varlink.Interface{{Name: "io.holdfast.Update", Description: api.Update, Methods: map[string]varlink.Method{
		"Join": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
			for {
				select {
				case phase := <-phases:
					reply := json.RawMessage(`{"id":"x","round":1,"phase":"` + phase + `","deadlineUSec":60000000}`)
					if err := call.Continue(&varlink.Reply{Parameters: reply}); err != nil {
						return nil, err
					}
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		},
		"Vote": func(context.Context, *varlink.Call) (*varlink.Reply, error) { return &varlink.Reply{}, nil },
	}}}, Grace: time.Nanosecond}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	t.Setenv("HOLDFAST_UPDATE_ADDRESS", path)
}

// TestCalledOffInStore has a round called off while PID 1 has all of a session, and doesn't answer. The program's memory can be
// resized again, and the store has nothing of it.
func TestCalledOffInStore(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		m := start(t)
		client := orchestratortest.Dial(t, nil, nil)
		phases := make(chan string)
		round(t, phases)

		raw, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		ram := os.NewFile(uintptr(raw), "ram")
		defer ram.Close()
		if err := ram.Truncate(4096); err != nil {
			t.Fatal(err)
		}

		silent, answers := make(chan struct{}), make(chan struct{})
		m.does(func(what string) bool {
			if what == "BARRIER" {
				select {
				case <-silent:
				default:
					close(silent)
				}
				<-answers
			}
			return true
		})
		resumed := make(chan struct{})
		var stored error
		joined := make(chan error)
		var p *holdfast.Participant
		go func() {
			var err error
			p, err = holdfast.Join(t.Context(), holdfast.ParticipantConfig{
				Name: "x",
				Prepare: func(ctx context.Context, r *holdfast.Round) error {
					session, err := r.Acquire(ctx, client, "ram")
					if err != nil {
						return err
					}
					if err := session.Preserve("ram", ram); err != nil {
						return err
					}
					stored = session.Store(ctx)
					return stored
				},
				Resumed: func() { close(resumed) },
			})
			joined <- err
		}()
		phases <- "idle"
		if err := <-joined; err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		phases <- "preparing"
		<-silent
		if err := ram.Truncate(8192); err == nil {
			t.Error("it isn't preserved")
		}
		if len(m.Store()) == 0 {
			t.Error("PID 1 has nothing of it")
		}
		phases <- "aborted"
		close(answers)
		phases <- "resumed"
		<-resumed
		if stored == nil {
			t.Error("Store was not broken off")
		}
		m.until(t, func() bool { return len(m.Store()) == 0 }, "it stays in the store")
		if err := ram.Truncate(8192); err != nil {
			t.Error(err)
		}
	})
}
