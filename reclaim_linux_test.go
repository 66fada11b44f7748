// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// The tests in this file are programs without an fd store, over updates of the emulated kernel.

// dial starts an orchestrator, as each boot does, and connects to it. Nothing can be parked with it.
func dial(t *testing.T) *holdfast.Client {
	t.Helper()
	return dialBy(t, nil, nil, nil)
}

func dialWith(t *testing.T, keeper custody.Keeper, handed []custody.Item) *holdfast.Client {
	t.Helper()
	return dialBy(t, nil, keeper, handed)
}

func dialBy(t *testing.T, rules *policy.Policy, keeper custody.Keeper, handed []custody.Item) *holdfast.Client {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", "")
	return orchestratortest.Dial(t, rules, keeper, handed...)
}

func memory(t *testing.T, text string) *os.File {
	t.Helper()
	raw, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(raw), "memory")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

// acquire makes a session with a file in it, and doesn't commit it.
func acquire(t *testing.T, client *holdfast.Client, name, text string) *holdfast.Session {
	t.Helper()
	session, err := client.Acquire(t.Context(), name)
	if err == nil {
		err = session.Preserve("data", memory(t, text))
	}
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// hold commits a session for the next boot: it stays open until the kexec.
func hold(t *testing.T, client *holdfast.Client, name, text string) {
	t.Helper()
	if err := acquire(t, client, name, text).Commit(); err != nil {
		t.Fatal(err)
	}
}

func reclaim(t *testing.T, client *holdfast.Client, name string) *holdfast.Committed {
	t.Helper()
	committed, err := client.Reclaim(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if !committed.Incoming() || committed.Name() != name {
		t.Errorf("reclaimed %q, incoming: %v", committed.Name(), committed.Incoming())
	}
	return committed
}

// holds asserts what is in the files.
func holds(t *testing.T, files map[string]*os.File, err error, want string) {
	t.Helper()
	if err != nil || len(files) != 1 || files["data"] == nil {
		t.Fatalf("the files are %v, %v", files, err)
	}
	defer files["data"].Close()
	if got, err := io.ReadAll(io.NewSectionReader(files["data"], 0, 1<<20)); err != nil || string(got) != want {
		t.Errorf("the memory is %q, %v; want %q", got, err, want)
	}
}

func TestMemoryIsReclaimedAfterEachUpdate(t *testing.T) {
	var later []func(t *testing.T)
	for generation := uint64(1); generation <= 2; generation++ {
		later = append(later, func(t *testing.T) {
			client := dial(t)
			committed := reclaim(t, client, "notes")
			if m := committed.Manifest(); m.Generation != generation || m.Size() != 5 || !strings.HasPrefix(m.Owner, "uid/") && !strings.HasPrefix(m.Owner, "/") {
				t.Errorf("the manifest is %+v", m)
			}
			files, err := committed.Retrieve()
			holds(t, files, err, "a b c")
			var steps []holdfast.RenewStep
			session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithoutStore(),
				holdfast.WithProgress(func(step holdfast.RenewStep) { steps = append(steps, step) }))
			if err != nil {
				t.Fatal(err)
			}
			if want := []holdfast.RenewStep{holdfast.Retrieved, holdfast.Finished, holdfast.Acquired, holdfast.Preserved,
				holdfast.ManifestWritten, holdfast.Released}; !slices.Equal(steps, want) {
				t.Errorf("the steps were %v, want %v", steps, want)
			}
			if session.Generation() != generation+1 {
				t.Errorf("generation %d", session.Generation())
			}
			files, err = session.Files()
			holds(t, files, err, "a b c")
			if generation == 2 {
				session.Close()
			}
		})
	}
	luosim.Run(t, luosim.Machine{}, append([]func(t *testing.T){func(t *testing.T) {
		client := dial(t)
		if c, err := client.Reclaim(t.Context(), "notes"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Fatalf("at the first start: %v, %v", c, err)
		}
		hold(t, client, "notes", "a b c")
	}}, later...)...)
}

func TestWhatCanNotBeReclaimed(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		client := dial(t)
		hold(t, client, "committed", "x")
		acquire(t, client, "not-committed", "x")
		closed := acquire(t, client, "closed", "x")
		if err := closed.Commit(); err != nil {
			t.Fatal(err)
		}
		closed.Close()
		if c, err := client.Reclaim(t.Context(), "committed"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Errorf("in the kernel that made it: %v, %v", c, err)
		}
	}, func(t *testing.T) {
		client := dial(t)
		for _, name := range []string{"never", "not-committed", "closed"} {
			if c, err := client.Reclaim(t.Context(), name); !errors.Is(err, holdfast.ErrNoSuchSession) {
				t.Errorf("%s: %v, %v", name, c, err)
			}
		}
		if c, err := client.Reclaim(t.Context(), "../committed"); !errors.Is(err, holdfast.ErrNameInvalid) {
			t.Errorf("%v, %v", c, err)
		}
		committed := reclaim(t, client, "committed")
		// It was lent: whoever dies now may have it again.
		again := reclaim(t, client, "committed")
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		committed.Close()
		files, err = again.Retrieve()
		holds(t, files, err, "x")
		again.Close()
		if session, err := client.Acquire(t.Context(), "committed"); err != nil {
			t.Errorf("a claimed one is in nobody's way: %v", err)
		} else {
			session.Close()
		}
		if err := client.Release(t.Context(), "committed"); err != nil {
			t.Error(err)
		}
		if c, err := client.Reclaim(t.Context(), "committed"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Errorf("after its release: %v, %v", c, err)
		}
	})
}

// A client that doesn't ask first must not overlook what is there.
func TestWhatWaitsIsNotOverlooked(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		hold(t, dial(t), "notes", "x")
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		client := dialWith(t, shelf, nil)
		for range 2 {
			if session, err := client.Acquire(t.Context(), "notes"); !errors.Is(err, holdfast.ErrIncomingWaiting) {
				t.Fatalf("%v, %v", session, err)
			}
		}
		committed := reclaim(t, client, "notes")
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		committed.Close()
	})
}

func TestWithoutAStoreMustBeSaid(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		hold(t, dial(t), "notes", "x")
	}, func(t *testing.T) {
		client := dial(t)
		committed := reclaim(t, client, "notes")
		session, err := holdfast.Renew(t.Context(), client, committed)
		var none *holdfast.NoStoreError
		if !errors.As(err, &none) {
			t.Fatalf("%v, %v", session, err)
		}
		if !committed.Incoming() {
			t.Error("something was done to it")
		}
		if session, err = holdfast.Renew(t.Context(), client, committed, holdfast.WithoutStore()); err != nil {
			t.Fatal(err)
		}
		if err := session.Store(t.Context()); !errors.As(err, &none) {
			t.Errorf("storing it: %v", err)
		}
		files, err := session.Files()
		holds(t, files, err, "x")
		session.Close()
	})
}

// Whatever the kernel refuses in the middle of a renewal, the memory is there, and the next try goes on.
func TestRenewGoesOnAfterAnError(t *testing.T) {
	luosim.Run(t, luosim.Machine{Faults: []string{"finish=1@2"}}, func(t *testing.T) {
		hold(t, dial(t), "notes", "x")
	}, func(t *testing.T) {
		client := dial(t)
		committed := reclaim(t, client, "notes")
		if session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithoutStore()); !errors.Is(err, unix.EBUSY) {
			t.Fatalf("%v, %v", session, err)
		}
		session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithoutStore())
		if err != nil {
			t.Fatal(err)
		}
		files, err := session.Files()
		holds(t, files, err, "x")
	}, func(t *testing.T) {
		committed := reclaim(t, dial(t), "notes")
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		committed.Close()
	})
}

// After FINISH only this process's descriptors hold the memory. They must, though it can't be preserved again.
func TestMemoryThatCanNotBePreservedAgainIsKept(t *testing.T) {
	luosim.Run(t, luosim.Machine{Faults: []string{"preserve@2"}}, func(t *testing.T) {
		hold(t, dial(t), "notes", "x")
	}, func(t *testing.T) {
		client := dial(t)
		committed := reclaim(t, client, "notes")
		for range 2 {
			if session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithoutStore()); !errors.Is(err, unix.ENOMEM) {
				t.Fatalf("%v, %v", session, err)
			}
			files, err := committed.Retrieve()
			holds(t, files, err, "x")
		}
		committed.Close()
	})
}

// A manifest that can't be had is no reason to start afresh.
func TestAManifestThatTheKernelCanNotRestore(t *testing.T) {
	luosim.Run(t, luosim.Machine{Faults: []string{"retrieve=0@2"}}, func(t *testing.T) {
		hold(t, dial(t), "notes", "x")
	}, func(t *testing.T) {
		client := dial(t)
		for range 2 {
			if c, err := client.Reclaim(t.Context(), "notes"); !errors.Is(err, liveupdate.ErrNoMemory) || errors.Is(err, holdfast.ErrNoSuchSession) {
				t.Errorf("%v, %v", c, err)
			}
		}
	})
}
