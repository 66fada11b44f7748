// SPDX-License-Identifier: MIT

package orchestrator

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// The tests in this file are what goes wrong with what is parked: each time there is the right error, and nothing is
// lost. They are on an emulated kernel, with a keeper that is in this process.

// host is an orchestrator with clients.
type host struct {
	*Orchestrator
	shelf   *custodytest.Shelf
	client  *holdfast.Client
	varlink *varlink.Client // for what the library doesn't ask for
}

// newHost has a shelf with that many places; 0 is any number.
func newHost(t *testing.T, places int, p *policy.Policy) *host {
	t.Helper()
	return hostOn(t, &custodytest.Shelf{Max: places}, p, nil)
}

// hostOn takes over what is on the shelf. bootTime may be nil.
func hostOn(t *testing.T, shelf *custodytest.Shelf, p *policy.Policy, bootTime func() int64) *host {
	t.Helper()
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{&Orchestrator{Cgroups: cgroups, Log: slog.New(slog.DiscardHandler), bootTime: bootTime}, shelf, nil, nil}
	if h.Custody, err = custody.New(h.Device, h.shelf, shelf.Handed(t), h.Log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Custody.Close)
	h.SetPolicy(p)
	path := filepath.Join(t.TempDir(), "io.holdfast")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Server().Serve(t.Context(), listener)
	}()
	t.Cleanup(func() { <-done; listener.Close() })
	t.Setenv("HOLDFAST_ADDRESS", path)
	if h.client, err = holdfast.Dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.client.Close() })
	if h.varlink, err = varlink.Dial(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.varlink.Close() })
	return h
}

// owner has this process be that owner, who may have so many lines of rule.
func owner(t *testing.T, name string, more ...string) *policy.Policy {
	t.Helper()
	return rules(t, rule(name, os.Geteuid(), more...))
}

// acquire is a session with that text in it.
func (h *host) acquire(t *testing.T, n, text string) *holdfast.Session {
	t.Helper()
	raw, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(raw), "memory")
	defer memory.Close()
	if _, err := memory.WriteString(text); err != nil {
		t.Fatal(err)
	}
	session, err := h.client.Acquire(t.Context(), n)
	if err == nil {
		err = session.Preserve("data", memory)
	}
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// park leaves it with the orchestrator alone.
func (h *host) park(t *testing.T, n, text string) {
	t.Helper()
	session := h.acquire(t, n, text)
	defer session.Close()
	if err := session.Park(t.Context(), h.client); err != nil {
		t.Fatal(err)
	}
}

// has asserts that a session can be reclaimed, and what is in it.
func (h *host) has(t *testing.T, n, text string) {
	t.Helper()
	committed, err := h.client.Reclaim(t.Context(), n)
	if err != nil {
		t.Error(err)
		return
	}
	defer committed.Close()
	is(t, committed, text)
}

func is(t *testing.T, committed *holdfast.Committed, text string) {
	t.Helper()
	files, err := committed.Retrieve()
	if err != nil {
		t.Error(err)
		return
	}
	defer files["data"].Close()
	if got, err := io.ReadAll(io.NewSectionReader(files["data"], 0, 1<<20)); err != nil || string(got) != text {
		t.Errorf("%s: the memory is %q, %v; want %q", committed.Name(), got, err, text)
	}
}

func (h *host) parked(t *testing.T, want ...string) {
	t.Helper()
	list, err := h.client.Parked(t.Context())
	if err != nil {
		t.Error(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, s.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("parked: %q, want %q", got, want)
	}
}

func TestQuota(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "me", "max-parked = 2"))
		defer h.shelf.Close()
		h.park(t, "one", "1")
		h.park(t, "two", "2")
		third := h.acquire(t, "three", "3")
		defer third.Close()
		for range 2 {
			var refused *holdfast.Error
			if err := third.Park(t.Context(), h.client); !errors.As(err, &refused) || refused.Kind != holdfast.ErrQuotaExceeded.Kind || refused.Limit != 2 {
				t.Errorf("a third: %v", err)
			}
		}
		h.parked(t, "one", "two")
		h.has(t, "one", "1")
		h.has(t, "two", "2")
		if err := h.client.Release(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		if err := third.Park(t.Context(), h.client); err != nil {
			t.Errorf("a third, after the first was released: %v", err)
		}
		h.parked(t, "three", "two")
		h.has(t, "three", "3")
	})
}

func TestFullKeeper(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := newHost(t, 8, owner(t, "me"))
		h.park(t, "one", "1") // a session, a file and a manifest, and as much for what follows it
		before := h.shelf.Len()
		second := h.acquire(t, "two", "2")
		defer second.Close()
		for range 2 {
			var refused *holdfast.Error
			if err := second.Park(t.Context(), h.client); !errors.As(err, &refused) || refused.Kind != holdfast.ErrKeeperFull.Kind || refused.Limit != 8 {
				t.Errorf("a second: %v", err)
			}
		}
		if n := h.shelf.Len(); n != before {
			t.Errorf("the keeper has %d, and had %d before it refused", n, before)
		}
		h.parked(t, "one")
		h.has(t, "one", "1")
		h.shelf.Close() // of "two" it had nothing: the rest is its client's
		if _, err := second.LiveUpdate().Direction(); err != nil {
			t.Errorf("the session that was refused: %v", err)
		}
	})
}

// Park needs no device. What needs it says who has it open, and can be done later.
func TestBusyDevice(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		newHost(t, 0, owner(t, "me")).park(t, "ram", "kelp")
	}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "me"))
		defer h.shelf.Close()
		other := h.acquire(t, "rom", "rock")
		defer other.Close()
		device, err := os.OpenFile(liveupdate.DevicePath, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		if err := other.Park(t.Context(), h.client); err != nil {
			t.Errorf("parking while the device is busy: %v", err)
		}
		var refused *holdfast.Error
		if _, err := h.client.Reclaim(t.Context(), "ram"); !errors.As(err, &refused) || refused.Kind != holdfast.ErrDeviceBusy.Kind || refused.Holder == "" {
			t.Errorf("reclaiming while the device is busy: %v", err)
		}
		device.Close()
		h.has(t, "ram", "kelp")
		h.has(t, "rom", "rock")
	})
}

// Who is told that there is no session starts afresh. So that is said only where the kernel says so.
func TestFailedHandOver(t *testing.T) {
	for fault, want := range map[string]error{"eio@2": holdfast.ErrKernelNotReady, "nodevice@2": holdfast.ErrKernelNotReady, "lost@2": holdfast.ErrNoSuchSession} {
		t.Run(fault, func(t *testing.T) {
			luosim.Run(t, luosim.Machine{Faults: []string{fault}}, func(t *testing.T) {
				newHost(t, 0, owner(t, "me")).park(t, "ram", "kelp")
			}, func(t *testing.T) {
				h := newHost(t, 0, owner(t, "me"))
				for range 2 {
					if _, err := h.client.Reclaim(t.Context(), "ram"); !errors.Is(err, want) {
						t.Errorf("reclaim: %v, want %v", err, want)
					}
					if err := h.client.Release(t.Context(), "ram"); !errors.Is(err, want) {
						t.Errorf("release: %v, want %v", err, want)
					}
				}
				h.parked(t)
				if want == holdfast.ErrNoSuchSession {
					return
				}
				if session, err := h.client.Acquire(t.Context(), "ram"); !errors.Is(err, want) {
					t.Errorf("acquire: %v, %v; want %v", session, err, want)
				}
			})
		})
	}
}

// A kexec that fails leaves everything as it was.
func TestFailedKexec(t *testing.T) {
	luosim.Run(t, luosim.Machine{Faults: []string{"freeze@1"}}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "me"))
		h.park(t, "ram", "kelp")
		if err := luosim.Kexec(); !errors.Is(err, unix.EIO) {
			t.Errorf("kexec: %v", err)
		}
		h.has(t, "ram", "kelp")
		h.park(t, "rom", "rock")
	}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "me"))
		defer h.shelf.Close()
		h.has(t, "ram", "kelp")
		h.has(t, "rom", "rock")
	})
}

func TestParkingAnIncomingSession(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		newHost(t, 0, owner(t, "me")).park(t, "ram", "kelp")
	}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "me"))
		defer h.shelf.Close()
		kernelName := name.Kernel("test/me", "ram")
		fds, err := h.varlink.Call(t.Context(), iface+".Reclaim", map[string]any{"name": "ram"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.varlink.Call(t.Context(), iface+".Park", map[string]any{"sessionFileDescriptor": 0}, []int{fds[0].Raw()}, nil)
		fd.CloseAll(fds)
		var refused *varlink.Error
		var said struct{ KernelName string }
		if !errors.As(err, &refused) || refused.Name != iface+".NotOutgoing" || refused.Decode(&said) != nil || said.KernelName != kernelName {
			t.Errorf("%v", err)
		}
		h.has(t, "ram", "kelp")
	})
}

// Whoever may see all sessions releases those whose owner is gone: by the kernel name, which List has.
func TestReleaseOfAnOrphan(t *testing.T) {
	release := func(h *host, kernelName string) error {
		_, err := h.varlink.Call(t.Context(), iface+".Release", map[string]any{"kernelName": kernelName}, nil, nil)
		return err
	}
	orphan, rom := name.Kernel("test/gone", "ram"), name.Kernel("test/gone", "rom")
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "gone"))
		h.park(t, "ram", "kelp")
		h.park(t, "rom", "rock")
		h.SetPolicy(owner(t, "operator", "list-all = true"))
		h.park(t, "ram", "the operator's own")
		before := h.shelf.Len()
		if err := release(h, orphan); err != nil {
			t.Fatal(err)
		}
		if n := h.shelf.Len(); n != before-3 {
			t.Errorf("the keeper has %d of %d", n, before)
		}
		if err := release(h, orphan); errorName(err) != "NoSuchSession" {
			t.Errorf("released twice: %v", err)
		}
		session, err := liveupdate.Device{}.Create(t.Context(), orphan)
		if err != nil {
			t.Errorf("its name: %v", err)
		} else {
			session.Close()
		}
		h.has(t, "ram", "the operator's own")
		h.SetPolicy(owner(t, "gone"))
		h.has(t, "rom", "rock")
		h.park(t, "ram", "kelp") // for the next kernel
	}, func(t *testing.T) {
		h := newHost(t, 0, owner(t, "gone"))
		defer h.shelf.Close()
		h.has(t, "rom", "rock")
		h.SetPolicy(owner(t, "operator", "list-all = true"))
		// Of one the orchestrator has a copy, since it was reclaimed; the other is in the kernel only.
		for _, kernelName := range []string{orphan, rom} {
			if err := release(h, kernelName); err != nil {
				t.Errorf("%s: %v", kernelName, err)
			}
		}
		h.has(t, "ram", "the operator's own")
		h.SetPolicy(owner(t, "gone"))
		for _, n := range []string{"ram", "rom"} {
			if _, err := h.client.Reclaim(t.Context(), n); !errors.Is(err, holdfast.ErrNoSuchSession) {
				t.Errorf("%s after its release: %v", n, err)
			}
		}
	})
}

func errorName(err error) string {
	var refused *varlink.Error
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Name[len(iface)+1:]
}

// Whatever the kernel refuses in the middle of a renewal, the memory is parked then, and another process goes on.
func TestRenewalThatTheKernelRefuses(t *testing.T) {
	for fault, want := range map[string]error{"finish=2@2": unix.EBUSY, "preserve@2": unix.ENOMEM} {
		t.Run(fault, func(t *testing.T) {
			luosim.Run(t, luosim.Machine{Faults: []string{fault}}, func(t *testing.T) {
				newHost(t, 0, owner(t, "me")).park(t, "ram", "kelp")
			}, func(t *testing.T) {
				h := newHost(t, 0, owner(t, "me"))
				defer h.shelf.Close()
				for range 2 {
					committed, err := h.client.Reclaim(t.Context(), "ram")
					if err != nil {
						t.Fatal(err)
					}
					if session, err := holdfast.Renew(t.Context(), h.client, committed, holdfast.WithParking()); !errors.Is(err, want) {
						t.Errorf("renew: %v, %v; want %v", session, err, want)
					}
					committed.Close()
				}
				h.has(t, "ram", "kelp")
				if want == unix.ENOMEM {
					return // for ever
				}
				committed, err := h.client.Reclaim(t.Context(), "ram")
				if err != nil {
					t.Fatal(err)
				}
				session, err := holdfast.Renew(t.Context(), h.client, committed, holdfast.WithParking())
				if err != nil {
					t.Fatal(err)
				}
				session.Close()
				h.has(t, "ram", "kelp")
			})
		})
	}
}
