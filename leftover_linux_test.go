// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/luosim"
)

// The tests in this file are programs that find more than one thing under a name of theirs.

// leftBehind puts on the shelf what PID 1 brings over an update that came in the middle of a Park: files and a manifest,
// and no session.
func leftBehind(t *testing.T, shelf *custodytest.Shelf, owner, portion, text string) {
	t.Helper()
	file := func(content []byte, seals int) *fd.FD {
		raw, err := unix.MemfdCreate("left", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := fd.New(raw)
		t.Cleanup(func() { f.Close() })
		if _, err := unix.Write(raw, content); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	manifest, err := json.Marshal(holdfast.Manifest{Version: 1, Owner: owner, Name: portion, Generation: 1,
		Files: []holdfast.ManifestFile{{Name: "data", Token: name.Token("data"), Size: int64(len(text))}}})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(name.Kernel(owner, portion)))
	prefix := "fc0ffee00-" + hex.EncodeToString(sum[:8]) + "/"
	if err := shelf.Keep(t.Context(), []custody.Item{
		{Name: prefix + "data", FD: file([]byte(text), 0)},
		{Name: prefix + "manifest@1", FD: file(manifest, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)},
	}, custody.Room{}); err != nil {
		t.Fatal(err)
	}
}

func ownerOf(t *testing.T, client *holdfast.Client) string {
	t.Helper()
	session, err := client.Acquire(t.Context(), "whose")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	return session.Owner()
}

// again reclaims, and makes sure of what came.
func again(t *testing.T, client *holdfast.Client, want string) *holdfast.Committed {
	t.Helper()
	committed, err := client.Reclaim(t.Context(), "notes")
	if err != nil {
		t.Fatal(err)
	}
	files, err := committed.Retrieve()
	holds(t, files, err, want)
	return committed
}

func TestWhatAnUpdateLeftOfAParkIsDropped(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		leftBehind(t, shelf, ownerOf(t, dialWith(t, shelf, nil)), "notes", "old")
		client := dialWith(t, shelf, shelf.Handed(t))
		if _, err := client.Reclaim(t.Context(), "notes"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Errorf("before anything was committed: %v", err)
		}
		park(t, client, "notes", "new")
		if shelf.Len() != 3 { // the session, its file and its manifest
			t.Errorf("the keeper has %d", shelf.Len())
		}
		if err := client.Release(t.Context(), "notes"); err != nil || shelf.Len() != 0 {
			t.Errorf("after the release: %v, and the keeper has %d", err, shelf.Len())
		}
	})
}

func TestWhatWasCommittedLaterIsWhatComesBack(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		park(t, dialWith(t, &custodytest.Shelf{}, nil), "notes", "old")
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		client := dialWith(t, shelf, nil)
		reclaim(t, client, "notes").Close()
		park(t, client, "notes", "new")
		session, err := holdfast.Renew(t.Context(), client, again(t, client, "new"), holdfast.WithParking())
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
		again(t, client, "new").Close()
	})
}

func TestAFinishedSessionHidesNothing(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		park(t, dialWith(t, &custodytest.Shelf{}, nil), "notes", "x")
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		client := dialWith(t, shelf, nil)
		files, err := client.Handover(t.Context(), "notes")
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(files) // a manager that has not closed them yet
		committed, err := client.TakeOver(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		session, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking())
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
		again(t, client, "x").Close()
	})
}

// silent is a keeper that keeps and doesn't say so.
type silent struct {
	*custodytest.Shelf
	now bool
}

func (k *silent) Keep(ctx context.Context, items []custody.Item, room custody.Room) error {
	err := k.Shelf.Keep(ctx, items, room)
	if err == nil && k.now {
		err = errors.New("no answer")
	}
	return err
}

func TestRenewalsWithASilentKeeper(t *testing.T) {
	for _, step := range []holdfast.RenewStep{holdfast.Acquired, holdfast.ManifestWritten} {
		luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
			park(t, dialWith(t, &custodytest.Shelf{}, nil), "notes", "x")
		}, func(t *testing.T) {
			k := &silent{Shelf: &custodytest.Shelf{}}
			defer k.Close()
			client := dialWith(t, k, nil)
			committed := reclaim(t, client, "notes")
			if _, err := holdfast.Renew(t.Context(), client, committed, holdfast.WithParking(), holdfast.WithProgress(func(s holdfast.RenewStep) {
				k.now = k.now || s == step
			})); err == nil {
				t.Error("renewed without an answer")
			}
			k.now = false
			// The keeper has the session of the first try for good, so its name stays taken.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			session, err := holdfast.Renew(ctx, client, committed, holdfast.WithParking())
			switch {
			case err == nil:
				session.Close()
			case step == holdfast.Acquired && errors.Is(err, holdfast.ErrNameTaken):
				committed.Close()
			default:
				t.Errorf("%v: %v", step, err)
			}
		})
	}
}
