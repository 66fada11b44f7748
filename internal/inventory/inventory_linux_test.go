// SPDX-License-Identifier: MIT

package inventory

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

const (
	ours    = "h1-ok2ohkddat64npei.ram"
	foreign = "somebody else's"
)

// childVariable has this program be a child that holds what it was started with.
const childVariable = "INVENTORY_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		fdtest.Main(m)
	case "unreadable":
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1)) // until the test closes it
}

// child is a process that holds copies of the sessions until stop is called.
func child(t *testing.T, kind string, sessions ...*liveupdate.Session) (pid int, stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+kind)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, s := range sessions {
		dup, err := s.Dup()
		if err != nil {
			t.Fatal(err)
		}
		f := dup.File()
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the child said %q: %v", line, err)
	}
	return cmd.Process.Pid, func() {
		t.Helper()
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func create(t *testing.T, kernelName string) *liveupdate.Session {
	t.Helper()
	s, err := liveupdate.Device{}.Create(t.Context(), kernelName)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func look(t *testing.T) *Inventory {
	t.Helper()
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	found := &Inventory{}
	if err := found.AddProcesses(t.Context(), cgroups); err != nil {
		t.Fatal(err)
	}
	found.Sort()
	return found
}

// is compares what was found: "NAME DIRECTION: HOLDERS" for each session.
func (i *Inventory) is(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, s := range i.Sessions {
		line := fmt.Sprintf("%s %v:", s.KernelName, s.Direction)
		for _, h := range s.Holders {
			if h.Store {
				line += " store of " + h.Unit
			} else {
				line += fmt.Sprintf(" %d", h.PID)
			}
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		t.Errorf("found:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// pids are those of holders, in their order.
func pids(list ...int) string {
	slices.Sort(list)
	return strings.Trim(fmt.Sprint(list), "[]")
}

func TestProcessesOverAnUpdate(t *testing.T) {
	me := os.Getpid() // each boot is a process of its own, which comes by here
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		look(t).is(t)
		ram, vm := create(t, ours), create(t, foreign)
		second, err := ram.Dup()
		if err != nil {
			t.Fatal(err)
		}
		it, stop := child(t, "holder", ram, vm)
		look(t).is(t,
			fmt.Sprintf("%s outgoing: %s", ours, pids(me, it)),
			fmt.Sprintf("%s outgoing: %s", foreign, pids(me, it)))
		second.Close()
		vm.Close()
		look(t).is(t,
			fmt.Sprintf("%s outgoing: %s", ours, pids(me, it)),
			fmt.Sprintf("%s outgoing: %d", foreign, it))
		stop()
		// The child had it last, so it is gone: nothing here has kept it, and its name is free.
		look(t).is(t, fmt.Sprintf("%s outgoing: %d", ours, me))
		create(t, foreign)
	}, func(t *testing.T) {
		// What nobody has retrieved can't be found.
		look(t).is(t)
		ram, err := liveupdate.Device{}.Retrieve(t.Context(), ours)
		if err != nil {
			t.Fatal(err)
		}
		it, stop := child(t, "holder", ram)
		ram.Close()
		next := create(t, ours)
		look(t).is(t,
			fmt.Sprintf("%s outgoing: %d", ours, me),
			fmt.Sprintf("%s incoming: %d", ours, it))
		stop()
		look(t).is(t, fmt.Sprintf("%s outgoing: %d", ours, me))
		next.Close()
		look(t).is(t)
	})
}

func TestWhoRunsIsSeen(t *testing.T) {
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	me, err := cgroups.OfPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if seen := look(t).Seen; !slices.Contains(seen, peer.Identity{UID: me.UID, Cgroup: me.Cgroup, Owner: me.Owner}) {
		t.Errorf("%+v isn't among %+v", me, seen)
	}
}

func TestUnreadableProcessIsUnseen(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		s := create(t, ours)
		defer s.Close()
		it, stop := child(t, "unreadable", s)
		defer stop()
		var found *Inventory
		withoutPtrace(t, func() { found = look(t) })
		if !slices.ContainsFunc(found.Unseen, func(u Unseen) bool { return u.PID == it && u.Err != nil }) {
			t.Errorf("process %d isn't among those that could not be looked at: %v", it, found.Unseen)
		}
		// luosim shows its link all the same, and which direction the session has nobody can tell by that.
		if got := found.Session(ours, liveupdate.Outgoing).Holders; len(got) != 1 || got[0].PID != os.Getpid() {
			t.Errorf("%s is held by %v; want this process, %d", ours, got, os.Getpid())
		}
	})
}

// withoutPtrace runs f on a thread that may not look at any process that it couldn't look at as another user. The thread
// ends with it.
func withoutPtrace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
		if err := unix.Capset(header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestKernelThreadsHaveNothingOpen(t *testing.T) {
	if kernelThread(os.Getpid()) {
		t.Error("this process was taken for a thread of the kernel's")
	}
	if s := state(os.Getpid()); s != "R" && s != "S" {
		t.Errorf("the state of this process is %q", s)
	}
}

// store is the fd store of a unit: pairs of FDNAME and kernel name.
func store(unit string, entries ...string) systemd.UnitStore {
	s := systemd.UnitStore{Unit: unit}
	for i := 0; i < len(entries); i += 2 {
		s.Entries = append(s.Entries, systemd.Entry{Name: entries[i], Path: liveupdate.LinkPrefix + entries[i+1]})
	}
	s.Entries = append(s.Entries, systemd.Entry{Name: "memory", Path: "/memfd:data (deleted)"}, systemd.Entry{Name: "nothing"})
	return s
}

func TestStores(t *testing.T) {
	const now, before = "b11111111-", "b00000000-"
	for name, c := range map[string]struct {
		processes []Session
		stores    []systemd.UnitStore
		want      []string
	}{
		"by their FDNAMEs": {
			stores: []systemd.UnitStore{store("a.service", now+ours, ours, "x", foreign), store("b.service")},
			want:   []string{ours + " outgoing: store of a.service", foreign + " Direction(0): store of a.service"},
		},
		"of two boots": {
			stores: []systemd.UnitStore{store("a.service", now+ours, ours, before+ours, ours)},
			want:   []string{ours + " outgoing: store of a.service", ours + " incoming: store of a.service"},
		},
		"one in two stores": {
			stores: []systemd.UnitStore{store("b.service", "x", ours), store("a.service", now+ours, ours)},
			want:   []string{ours + " outgoing: store of a.service store of b.service"},
		},
		"twice in one": {
			stores: []systemd.UnitStore{store("a.service", "x", foreign, "y", foreign)},
			want:   []string{foreign + " Direction(0): store of a.service"},
		},
		"PID 1's descriptor says what it is": {
			processes: []Session{
				{ours, liveupdate.Incoming, []Holder{{PID: 1, Unit: "init.scope"}, {PID: 7}}},
				{foreign, liveupdate.Incoming, []Holder{{PID: 1, Unit: "init.scope"}}},
			},
			stores: []systemd.UnitStore{store("a.service", now+ours, ours, "x", foreign)},
			want:   []string{ours + " incoming: store of a.service 7", foreign + " incoming: store of a.service"},
		},
		"PID 1 has two of a name": {
			processes: []Session{
				{ours, liveupdate.Incoming, []Holder{{PID: 1, Unit: "init.scope"}}},
				{ours, liveupdate.Outgoing, []Holder{{PID: 1, Unit: "init.scope"}}},
			},
			stores: []systemd.UnitStore{store("a.service", now+ours, ours), store("b.service", before+ours, ours)},
			want:   []string{ours + " outgoing: store of a.service", ours + " incoming: store of b.service"},
		},
		"PID 1 has one that is in no store": {
			processes: []Session{{"systemd", liveupdate.Incoming, []Holder{{PID: 1, Unit: "init.scope"}}}},
			stores:    []systemd.UnitStore{store("a.service")},
			want:      []string{"systemd incoming: 1"},
		},
		"another that a process has": {
			processes: []Session{{ours, liveupdate.Incoming, []Holder{{PID: 7}}}},
			stores:    []systemd.UnitStore{store("a.service", now+ours, ours)},
			want:      []string{ours + " outgoing: store of a.service", ours + " incoming: 7"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			found := &Inventory{}
			for _, s := range c.processes {
				found.Session(s.KernelName, s.Direction).Holders = s.Holders
			}
			found.AddStores(c.stores, "11111111")
			found.Sort()
			found.is(t, c.want...)
		})
	}
}
