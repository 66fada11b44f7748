// SPDX-License-Identifier: MIT

//go:build linux

package custody_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

func TestMain(m *testing.M) {
	luosim.Enter(luosim.Machine{})
	fdtest.Main(m)
}

func start(t *testing.T, s *custodytest.Shelf) *custody.Custody {
	t.Helper()
	c, err := custody.New(liveupdate.Device{}, s, s.Handed(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newShelf(t *testing.T, max int) *custodytest.Shelf {
	s := &custodytest.Shelf{Max: max}
	t.Cleanup(s.Close)
	return s
}

func session(t *testing.T, owner, portion string) *liveupdate.Session {
	t.Helper()
	s, err := liveupdate.Device{}.Create(t.Context(), name.Kernel(owner, portion))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func memory(t *testing.T, text string) *fd.FD {
	t.Helper()
	raw, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := fd.New(raw)
	if _, err := unix.Write(raw, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return f
}

func text(t *testing.T, f *fd.FD) string {
	t.Helper()
	b := make([]byte, 64)
	n, err := unix.Pread(f.Raw(), b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestWhatIsParkedComesBackToANewProcess(t *testing.T) {
	s := newShelf(t, 0)
	c := start(t, s)
	if err := c.Park(t.Context(), session(t, "/a.service", "ram"), []custody.File{{Name: "data", FD: memory(t, "kelp")}}, 1); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c = start(t, s)
	defer c.Close()
	lent, err := c.Reclaim(t.Context(), name.Kernel("/a.service", "ram"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lent.Close()
	if lent.Direction != liveupdate.Outgoing || len(lent.Files) != 1 || lent.Files[0].Name != "data" || text(t, lent.Files[0].FD) != "kelp" {
		t.Errorf("got %v session with %d files", lent.Direction, len(lent.Files))
	}
	if _, err := c.Reclaim(t.Context(), name.Kernel("/b.service", "ram"), nil); !errors.Is(err, custody.ErrNotHere) {
		t.Errorf("another owner's: %v", err)
	}
}

func TestReleaseEndsASession(t *testing.T) {
	s := newShelf(t, 0)
	c := start(t, s)
	defer c.Close()
	if err := c.Park(t.Context(), session(t, "/a.service", "ram"), []custody.File{{Name: "data", FD: memory(t, "kelp")}}, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Release(t.Context(), name.Kernel("/a.service", "ram"), nil); err != nil {
		t.Fatal(err)
	}
	if s.Len() > 0 {
		t.Errorf("the keeper still has %d", s.Len())
	}
	session(t, "/a.service", "ram").Close() // the name is free
	if _, err := c.Release(t.Context(), name.Kernel("/a.service", "ram"), nil); !errors.Is(err, custody.ErrNotHere) {
		t.Errorf("released twice: %v", err)
	}
}

func TestLimits(t *testing.T) {
	s := newShelf(t, 6)
	c := start(t, s)
	defer c.Close()
	if err := c.Park(t.Context(), session(t, "/a.service", "one"), []custody.File{{Name: "data", FD: memory(t, "kelp")}}, 1); err != nil {
		t.Fatal(err)
	}
	var quota *custody.QuotaError
	if err := c.Park(t.Context(), session(t, "/a.service", "two"), nil, 1); !errors.As(err, &quota) || quota.Limit != 1 {
		t.Errorf("over the quota: %v", err)
	}
	var full *custody.FullError
	if err := c.Park(t.Context(), session(t, "/b.service", "one"), []custody.File{{Name: "data", FD: memory(t, "kelp")}}, 1); !errors.As(err, &full) || full.Limit != 6 {
		t.Errorf("a full keeper: %v", err)
	}
	// Nothing of what was refused is held here.
	for _, n := range []string{name.Kernel("/a.service", "two"), name.Kernel("/b.service", "one")} {
		again, err := liveupdate.Device{}.Create(t.Context(), n)
		if err != nil {
			t.Errorf("%s: %v", n, err)
			continue
		}
		again.Close()
	}
	if list := c.List(); len(list) != 1 {
		t.Errorf("parked: %v", list)
	}
}

func TestParkedAgain(t *testing.T) {
	s := newShelf(t, 0)
	c := start(t, s)
	defer c.Close()
	first := session(t, "/a.service", "ram")
	for _, step := range []struct {
		files []custody.File
		want  []string
	}{
		{[]custody.File{{Name: "data", FD: memory(t, "kelp")}, {Name: "index", FD: memory(t, "1")}}, []string{"data", "index"}},
		{nil, []string{"data", "index"}},
		{[]custody.File{{Name: "more", FD: memory(t, "rock")}}, []string{"more"}},
	} {
		again, err := first.Dup()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Park(t.Context(), again, step.files, 1); err != nil {
			t.Fatal(err)
		}
		lent, err := c.Reclaim(t.Context(), name.Kernel("/a.service", "ram"), nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range lent.Files {
			got = append(got, f.Name)
		}
		if !slices.Equal(got, step.want) || s.Len() != len(got)+1 {
			t.Errorf("files %v, want %v; the keeper has %d", got, step.want, s.Len())
		}
		lent.Close()
	}
	first.Close()
}

// An update, with nothing handed back but what the kernel has: the keeper of this test doesn't cross.
func TestTheKernelIsTheStoreAfterAnUpdate(t *testing.T) {
	if luosim.Boot() == 1 {
		held := session(t, "/a.service", "crossing")
		if err := held.PreserveFD(1, memory(t, "kelp").Raw()); err != nil {
			t.Fatal(err)
		}
		t.Fatal(luosim.Kexec())
	}
	s := newShelf(t, 0)
	kernelName := name.Kernel("/a.service", "crossing")
	// A file in no session goes over by itself, with PID 1.
	sum := sha256.Sum256([]byte(kernelName))
	over := memory(t, "rock")
	s.Keep(t.Context(), []custody.Item{{Name: "fc0ffee00-" + hex.EncodeToString(sum[:8]) + "/left", FD: over}}, custody.Room{})
	over.Close()
	c := start(t, s)
	for range 2 { // lent again and again, and to a client of a new process here
		lent, err := c.Reclaim(t.Context(), kernelName, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(lent.Files) != 1 || lent.Files[0].Name != "left" || text(t, lent.Files[0].FD) != "rock" {
			t.Errorf("lent with %d files", len(lent.Files))
		}
		f, err := lent.Session.Retrieve(1)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "kelp" {
			t.Errorf("%q, %v", b, err)
		}
		f.Close()
		lent.Close()
		c.Close()
		c = start(t, s)
		if p, here := c.Get(kernelName, liveupdate.Incoming); !here || !p.Claimed {
			t.Errorf("here: %v, %+v", here, p)
		}
	}
	defer c.Close()
	if _, err := c.Release(t.Context(), kernelName, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reclaim(t.Context(), kernelName, nil); !errors.Is(err, custody.ErrNotHere) {
		t.Errorf("released: %v", err)
	}
	if s.Len() > 0 {
		t.Errorf("the keeper still has %d", s.Len())
	}
}
