// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/luosim"
)

// The tests in this file are programs that park with the orchestrator.

// park commits a session and gives it to the orchestrator; nothing of it stays here.
func park(t *testing.T, client *holdfast.Client, name, text string) {
	t.Helper()
	session := acquire(t, client, name, text)
	if err := session.Park(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	session.Close()
}

func TestParkedMemoryComesBackInTheSameKernel(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		t.Run("before", func(t *testing.T) { park(t, dialWith(t, shelf, nil), "notes", "x") })
		for generation := range uint64(2) { // each with a new orchestrator, too
			t.Run("after a crash", func(t *testing.T) {
				client := dialWith(t, shelf, shelf.Handed(t))
				committed, err := client.Reclaim(t.Context(), "notes")
				if err != nil {
					t.Fatal(err)
				}
				if committed.Incoming() || committed.Manifest().Generation != 1 {
					t.Errorf("%d: incoming %v, generation %d", generation, committed.Incoming(), committed.Manifest().Generation)
				}
				files, err := committed.Retrieve()
				holds(t, files, err, "x")
				session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking())
				if err != nil {
					t.Fatal(err)
				}
				session.Close()
			})
		}
	})
}

func TestParkedMemoryCrossesUpdates(t *testing.T) {
	later := func(generation uint64) func(t *testing.T) {
		return func(t *testing.T) {
			shelf := &custodytest.Shelf{}
			client := dialWith(t, shelf, nil)
			committed := reclaim(t, client, "notes")
			if got := committed.Manifest().Generation; got != generation {
				t.Errorf("generation %d, want %d", got, generation)
			}
			session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking())
			if err != nil {
				t.Fatal(err)
			}
			files, err := session.Files()
			holds(t, files, err, "a b c")
			session.Close()
			if parked, err := client.Parked(t.Context()); err != nil || len(parked) != 1 || parked[0].Name != "notes" {
				t.Errorf("parked: %+v, %v", parked, err)
			}
			if generation == 2 {
				if err := client.Release(t.Context(), "notes"); err != nil {
					t.Error(err)
				}
				shelf.Close()
			}
		}
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		park(t, dialWith(t, &custodytest.Shelf{}, nil), "notes", "a b c")
	}, later(1), later(2))
}

// A client may die at any step of a renewal: the next one reclaims, and goes on.
func TestARenewalThatEndsAtAnyStep(t *testing.T) {
	steps := []holdfast.RenewStep{holdfast.Retrieved, holdfast.Acquired, holdfast.FilesStored, holdfast.Finished,
		holdfast.Preserved, holdfast.ManifestWritten, holdfast.Stored}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		park(t, dialWith(t, &custodytest.Shelf{}, nil), "notes", "x")
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		client := dialWith(t, shelf, nil)
		for _, last := range steps {
			t.Run(string(last), func(t *testing.T) {
				committed, err := client.Reclaim(t.Context(), "notes")
				if err != nil {
					t.Fatal(err)
				}
				died := func() (died bool) {
					defer func() { died = recover() != nil }()
					_, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking(), holdfast.WithProgress(func(step holdfast.RenewStep) {
						if step == last {
							panic("death")
						}
					}))
					if err != nil {
						t.Error(err)
					}
					return false
				}()
				if !died {
					t.Error("it didn't get there")
				}
				committed.Close()
			})
		}
		committed, err := client.Reclaim(t.Context(), "notes")
		if err != nil {
			t.Fatal(err)
		}
		session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking())
		if err != nil {
			t.Fatal(err)
		}
		files, err := session.Files()
		holds(t, files, err, "x")
		session.Close()
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		committed := reclaim(t, dialWith(t, shelf, nil), "notes")
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		committed.Close()
	})
}

func TestParkingWithoutAKeeper(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		client := dial(t)
		session := acquire(t, client, "notes", "x")
		if err := session.Park(t.Context(), client); !errors.Is(err, holdfast.ErrKeeperFull) {
			t.Errorf("%v", err)
		}
		files, err := session.Files()
		holds(t, files, err, "x")
		session.Close()
	})
}

// The kernel would give it back, and nobody could write to it any more.
func TestAFileThatWouldComeBackSealedIsRefused(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		raw, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(raw), "memory")
		defer f.Close()
		session, err := dial(t).Acquire(t.Context(), "notes")
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		if err := session.Preserve("data", f); err == nil {
			t.Error("it was preserved")
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
			t.Fatal(err)
		}
		if err := session.Preserve("data", f); err != nil {
			t.Errorf("sealed on purpose: %v", err)
		}
	})
}
