// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// The tests in this file are a program that looks after others, and those others: one process plays them all, since
// whom it acts for is all that tells them apart.

const vm1 = "qemu/vm1"

// delegating is a policy by which this process may act for qemu/*.
func delegating(t *testing.T) *policy.Policy {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(path, []byte(`
		[[rule]]
		name     = "manager"
		cgroup   = "any"
		uid      = "any"
		owner    = "test/manager"
		delegate = ["qemu/*"]
		rate     = "any"
	`), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := policy.LoadFiles(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// handover is what the manager gets for vm1 before that exists.
func handover(t *testing.T, client *holdfast.Client) []*os.File {
	t.Helper()
	files, err := client.As(holdfast.Owner(vm1)).Handover(t.Context(), "ram")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(files) })
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// pidfdOf is there until the end of the test.
func pidfdOf(t *testing.T, pid int) *os.File {
	t.Helper()
	raw, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(raw), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMemoryIsHandedOverUnretrieved(t *testing.T) {
	// The guest, which knows nothing of the manager's rights, is what asks as vm1.
	guest := func(t *testing.T, client *holdfast.Client, files []*os.File, incoming bool) {
		if _, err := client.TakeOver(t.Context(), files); !errors.Is(err, holdfast.ErrNotOwner) {
			t.Errorf("the manager took it for its own: %v", err)
		}
		vm := client.As(holdfast.Owner(vm1))
		defer vm.Close() // which leaves the manager's connection alone
		committed, err := vm.TakeOver(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(files) // TakeOver has its own
		if committed.Incoming() != incoming || committed.Manifest().Owner != vm1 {
			t.Errorf("incoming: %v, manifest %+v", committed.Incoming(), committed.Manifest())
		}
		memory, err := committed.Retrieve()
		holds(t, memory, err, "a b c")
		session, err := holdfast.Renew(t.Context(), vm, committed, holdfast.WithParking())
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		client := dialBy(t, delegating(t), shelf, nil)
		vm := client.As(holdfast.Owner(vm1))
		if _, err := vm.Handover(t.Context(), "ram"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Fatalf("at the first start: %v", err)
		}
		// The manager acquires, the guest fills.
		made, err := vm.Acquire(t.Context(), "ram")
		if err != nil {
			t.Fatal(err)
		}
		dup, err := made.LiveUpdate().Dup()
		if err != nil {
			t.Fatal(err)
		}
		made.Close()
		passed := dup.File()
		defer passed.Close()
		if _, err := client.Adopt(t.Context(), passed); !errors.Is(err, holdfast.ErrNotOwner) {
			t.Errorf("the manager took it for its own: %v", err)
		}
		if _, err := vm.TakeOver(t.Context(), []*os.File{passed}); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Errorf("it holds nothing: %v", err)
		}
		session, err := vm.Adopt(t.Context(), passed)
		if err != nil {
			t.Fatal(err)
		}
		if session.Name() != "ram" || session.Owner() != vm1 {
			t.Errorf("adopted %q of %q", session.Name(), session.Owner())
		}
		if err := session.Preserve("data", memory(t, "a b c")); err != nil {
			t.Fatal(err)
		}
		if err := session.Park(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		session.Close()
		passed.Close()
		// The guest is gone; in the same kernel the memory comes along.
		if parked, err := client.Parked(t.Context()); err != nil || len(parked) != 0 {
			t.Errorf("the manager's own: %v, %v", parked, err)
		}
		if _, err := vm.Parked(t.Context()); err == nil {
			t.Error("the manager's own were taken for vm1's")
		}
		files := handover(t, client)
		if len(files) != 3 || files[1].Name() != "data" {
			t.Errorf("handed over: %v", files)
		}
		guest(t, client, files, false)
	}, func(t *testing.T) {
		client := dialBy(t, delegating(t), &custodytest.Shelf{}, nil)
		files := handover(t, client)
		if len(files) != 1 {
			t.Errorf("handed over: %v", files)
		}
		vm := client.As(holdfast.Owner(vm1))
		if _, err := vm.Adopt(t.Context(), files[0]); !errors.Is(err, holdfast.ErrNotOutgoing) {
			t.Errorf("an incoming session was adopted: %v", err)
		}
		guest(t, client, files, true)
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		client := dialBy(t, delegating(t), shelf, nil)
		vm := client.As(holdfast.Owner(vm1))
		// If the one that it was for dies, the next one gets the same.
		closeAll(handover(t, client))
		guest(t, client, handover(t, client), true)
		if err := vm.Release(t.Context(), "ram"); err != nil {
			t.Error(err)
		}
		if _, err := vm.Handover(t.Context(), "ram"); !errors.Is(err, holdfast.ErrNoSuchSession) {
			t.Errorf("after its release: %v", err)
		}
	})
}

// The guest may die at any step of its renewal: what is handed over to the next one has the memory.
func TestAHandoverAfterARenewalThatEndedAtAnyStep(t *testing.T) {
	steps := []holdfast.RenewStep{holdfast.Retrieved, holdfast.Acquired, holdfast.FilesStored, holdfast.Finished,
		holdfast.Preserved, holdfast.ManifestWritten, holdfast.Stored}
	take := func(t *testing.T, client *holdfast.Client) *holdfast.Committed {
		t.Helper()
		files := handover(t, client)
		defer closeAll(files)
		committed, err := client.As(holdfast.Owner(vm1)).TakeOver(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		return committed
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		park(t, dialBy(t, delegating(t), &custodytest.Shelf{}, nil).As(holdfast.Owner(vm1)), "ram", "x")
	}, func(t *testing.T) {
		client := dialBy(t, delegating(t), &custodytest.Shelf{}, nil)
		vm := client.As(holdfast.Owner(vm1))
		for _, last := range steps {
			committed := take(t, client)
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: it didn't get there", last)
					}
				}()
				_, err := holdfast.Renew(t.Context(), vm, committed, holdfast.WithParking(), holdfast.WithProgress(func(step holdfast.RenewStep) {
					if step == last {
						panic("death")
					}
				}))
				t.Errorf("%s: %v", last, err)
			}()
			committed.Close()
		}
		committed := take(t, client)
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		session, err := holdfast.Renew(t.Context(), vm, committed, holdfast.WithParking())
		if err != nil {
			t.Fatal(err)
		}
		session.Close()
	}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		defer shelf.Close()
		committed := take(t, dialBy(t, delegating(t), shelf, nil))
		files, err := committed.Retrieve()
		holds(t, files, err, "x")
		committed.Close()
	})
}

func TestSubjects(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		client := dialBy(t, delegating(t), custody.None{Reason: errors.New("this is a test")}, nil)
		// By its process: whose sessions that has, the policy says.
		me := client.As(holdfast.Process(pidfdOf(t, os.Getpid())))
		session, err := me.Acquire(t.Context(), "ram")
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		if session.Owner() != "test/manager" {
			t.Errorf("owner %q", session.Owner())
		}
		f := dupSession(t, session)
		if id, err := me.Identify(t.Context(), f); err != nil || !id.Yours || id.Owner != "test/manager" {
			t.Errorf("identify: %+v, %v", id, err)
		}
		if id, err := client.As(holdfast.Owner(vm1)).Identify(t.Context(), f); err != nil || id.Yours {
			t.Errorf("identify as vm1: %+v, %v", id, err)
		}
		if _, err := client.As(holdfast.Owner(vm1)).Describe(t.Context()); err != nil {
			t.Error(err)
		}

		child := exec.Command("sleep", "infinity")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		gone := client.As(holdfast.Process(pidfdOf(t, child.Process.Pid)))
		child.Process.Kill()
		child.Wait()
		for what, as := range map[string]*holdfast.Client{
			"an owner that is nobody's to act for": client.As(holdfast.Owner("lxc/c1")),
			"a service":                            client.As(holdfast.Owner("/cache.service")),
			"a process that has ended":             gone,
		} {
			if s, err := as.Acquire(t.Context(), "ram"); !errors.Is(err, holdfast.ErrNotPermitted) {
				t.Errorf("%s: %v, %v", what, s, err)
			}
		}
		closed := pidfdOf(t, os.Getpid())
		closed.Close()
		for what, as := range map[string]*holdfast.Client{
			"no pidfd":        client.As(holdfast.Process(memory(t, "x"))),
			"a closed one":    client.As(holdfast.Process(closed)),
			"no owner's name": client.As(holdfast.Owner("../x")),
		} {
			s, err := as.Acquire(t.Context(), "ram")
			if err == nil {
				s.Close()
				t.Errorf("%s: a session", what)
			}
		}
	})
}

func TestWhatIsNoHandover(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		client := dialBy(t, delegating(t), custody.None{Reason: errors.New("this is a test")}, nil)
		session := acquire(t, client, "notes", "x")
		defer session.Close()
		if _, err := client.TakeOver(t.Context(), nil); err == nil {
			t.Error("nothing was taken over")
		}
		if _, err := client.TakeOver(t.Context(), []*os.File{memory(t, "x"), dupSession(t, session)}); err == nil {
			t.Error("a file came before its session")
		}
		if _, err := client.Adopt(t.Context(), memory(t, "x")); !errors.Is(err, liveupdate.ErrNotASession) {
			t.Errorf("a file was adopted: %v", err)
		}
		client.Close()
		if _, err := client.As(holdfast.Owner(vm1)).Handover(t.Context(), "ram"); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func dupSession(t *testing.T, session *holdfast.Session) *os.File {
	t.Helper()
	dup, err := session.LiveUpdate().Dup()
	if err != nil {
		t.Fatal(err)
	}
	f := dup.File()
	t.Cleanup(func() { f.Close() })
	return f
}
