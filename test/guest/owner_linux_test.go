// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/liveupdate"
)

func notPermitted(reason string) string { return notPermittedBy("built-in", reason) }

func notPermittedBy(rule, reason string) string {
	return fmt.Sprintf(`{"error":"io.holdfast.Sessions.NotPermitted","parameters":{"reason":%q,"rule":%q}}`, reason, rule)
}

func noOwner(cgroup string) string {
	return fmt.Sprintf(`{"error":"io.holdfast.Sessions.NoOwner","parameters":{"cgroup":%q}}`, cgroup)
}

// Those who get no session are told why.
func TestRefused(t *testing.T) {
	needsVM(t, "cgroups that are units")
	serve(t)
	for _, who := range []struct {
		what, cgroup string
		uid          uint32
		want         string
	}{
		{"a login session of a user", loginScope, 1000,
			notPermitted("session-3.scope is a scope, which has no fd store to have its session back from after the update; run this in a .service of the system manager")},
		{"a login session of root", "/user.slice/user-0.slice/session-4.scope", 0,
			notPermitted("session-4.scope is a scope, which has no fd store to have its session back from after the update; run this in a .service of the system manager")},
		{"a user's own unit", "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", 1000,
			notPermitted("user@1000.service/x.service is below user.slice: units of users' managers may not have sessions")},
		{"root's own unit", "/user.slice/user-0.slice/user@0.service/app.slice/x.service", 0,
			notPermitted("user@0.service/x.service is below user.slice: units of users' managers may not have sessions")},
		{"a user's crontab", "/system.slice/cron.service", 1000,
			notPermitted("uid 1000 of cron.service: only uid 0 may have sessions")},
		{"a unit inside a unit", vmm + "/inner.service", 0,
			notPermitted("vmm.service/inner.service is a unit inside another: only units of the system manager may have sessions")},
		{"a scope", "/machine.slice/machine-qemu\\x2d3\\x2dvm1.scope", 0,
			notPermitted("machine-qemu\\x2d3\\x2dvm1.scope is a scope, which has no fd store to have its session back from after the update; run this in a .service of the system manager")},
		{"the root of the cgroups", "/", 0, noOwner("/")},
		{"a plain directory", "/plain", 0, noOwner("/plain")},
		{"a slice", "/system.slice", 0, noOwner("/system.slice")},
	} {
		t.Run(strings.ReplaceAll(who.what, " ", "-"), func(t *testing.T) {
			c := startClient(t, subject{cgroup: who.cgroup, uid: who.uid})
			c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, who.want)
			// A refusal ends nothing: it can be asked again, and other things too.
			c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, who.want)
			c.sessions(t, "Describe", `{}`)
			// And no session was made.
			s, err := liveupdate.Device{}.Create(t.Context(), name.Kernel(peer.Owner(who.cgroup), "ram"))
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		})
	}
}

// A name is an owner's own: another one that asks for the same gets another session, and can't have the first.
func TestAnotherOwnersSession(t *testing.T) {
	needsAnother(t)
	_, first := serve(t)
	second := startClient(t, here.another)
	ours := first.acquire(t, here.me.owner, "ram")
	theirs := second.acquire(t, here.another.owner, "ram")
	if inVM && ours.Name() != "h1-ok2ohkddat64npei.ram" || theirs.Name() == ours.Name() {
		t.Errorf("the kernel names are %q and %q", ours.Name(), theirs.Name())
	}
	foreign, err := liveupdate.Device{}.Create(t.Context(), "somebody-elses")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()

	// The owner is told to whom it is, and no one else.
	whose := func(s *liveupdate.Session, owner string) string {
		yours := owner != ""
		if yours {
			owner = fmt.Sprintf(`"owner":%q,`, owner)
		}
		return fmt.Sprintf(`{"parameters":{"session":{"name":"ram",%s"kernelName":%q,"direction":"outgoing","parked":false,"foreign":false},"yours":%t}}`,
			owner, s.Name(), yours)
	}
	for _, asks := range []struct {
		c    *connection
		s    *liveupdate.Session
		want string
	}{
		{first, ours, whose(ours, here.me.owner)},
		{second.connection, ours, whose(ours, "")},
		{first, theirs, whose(theirs, "")},
		{second.connection, theirs, whose(theirs, here.another.owner)},
		{first, foreign, `{"parameters":{"session":{"kernelName":"somebody-elses","direction":"outgoing","parked":false,"foreign":true},"yours":false}}`},
	} {
		asks.c.identify(t, asks.s).is(t, asks.want)
	}
	// Nor can somebody with no owner take it for its own.
	if inVM {
		startClient(t, subject{cgroup: "/plain"}).identify(t, ours).is(t, whose(ours, ""))
	}
}

// identify asks what a session is.
func (c *connection) identify(t *testing.T, s *liveupdate.Session) *reply {
	t.Helper()
	dup, err := s.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	raw := dup.Disown()
	defer unix.Close(raw)
	return c.sessions(t, "Identify", `{"sessionFileDescriptor":0}`, raw)
}

// What counts is where a process is when it asks, and not where it was when it connected.
func TestMovedProcess(t *testing.T) {
	needsVM(t, "cgroups that are units")
	serve(t)
	c := startClient(t, here.me)
	ours := c.acquire(t, "/vmm.service", "ram")

	move(t, c.cmd.Process.Pid, other)
	c.acquire(t, "/other.service", "ram")
	c.identify(t, ours).is(t, fmt.Sprintf(
		`{"parameters":{"session":{"name":"ram","kernelName":%q,"direction":"outgoing","parked":false,"foreign":false},"yours":false}}`, ours.Name()))

	move(t, c.cmd.Process.Pid, loginScope)
	c.sessions(t, "Acquire", `{"name":"disk"}`).is(t,
		notPermitted("session-3.scope is a scope, which has no fd store to have its session back from after the update; run this in a .service of the system manager"))

	move(t, c.cmd.Process.Pid, vmm)
	c.acquire(t, "/vmm.service", "disk")
	c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, taken("ram"))
}

// A process that ends leaves its connection to somebody else, and its PID to another process. Neither is taken for it.
func TestRecycledPID(t *testing.T) {
	needsAnother(t)
	type change struct {
		what  string
		first subject
		then  string // a cgroup
	}
	ways := []change{{"of another user to this one", here.another, ""}, {"of this user", here.me, ""}}
	if inVM {
		first := subject{cgroup: "/system.slice/first.service"}
		ways = []change{
			{"of one that may to one that may", first, other},
			{"of one that may not to one that may", subject{cgroup: loginScope}, other},
			{"of one that may to one that may not", first, loginScope},
			{"in the same unit", here.another, other},
		}
	}
	for _, way := range ways {
		t.Run(strings.ReplaceAll(way.what, " ", "-"), func(t *testing.T) {
			t.Run("after-its-first-call", func(t *testing.T) {
				serve(t)
				c := startClient(t, way.first)
				c.sessions(t, "Describe", `{}`) // so that the daemon has looked who it is
				c.end(t)
				recycle(t, c.cmd.Process.Pid, way.then)
				c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, gone)
				mine := dial(t).acquire(t, here.me.owner, "ram")
				c.identify(t, mine).is(t, gone)
			})
			t.Run("before-it-was-accepted", func(t *testing.T) {
				s := listen(t)
				c := startClient(t, way.first)
				c.end(t)
				recycle(t, c.cmd.Process.Pid, way.then)
				s.start(t)
				c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, gone)
			})
		})
	}
}

// cloneArgs is struct clone_args (include/uapi/linux/sched.h, Linux 7.3).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// recycle starts a process of this user with this PID, in a cgroup ("" is that of the tests). It does nothing, and ends
// with the test.
func recycle(t *testing.T, pid int, cgroup string) {
	t.Helper()
	want := new(int32)
	*want = int32(pid)
	var pinner runtime.Pinner
	pinner.Pin(want)
	defer pinner.Unpin()
	args := &cloneArgs{
		exitSignal: uint64(unix.SIGCHLD),
		setTID:     uint64(uintptr(unsafe.Pointer(want))),
		setTIDSize: 1,
	}
	if cgroup != "" {
		dir := openCgroup(t, cgroup)
		defer dir.Close()
		args.flags, args.cgroup = unix.CLONE_INTO_CGROUP, uint64(dir.Fd())
	}
	got, errno := cloneIdle(args)
	if errno == unix.EPERM && !inVM {
		t.Skip("needs CAP_CHECKPOINT_RESTORE, to choose a process's PID")
	}
	if errno != 0 {
		t.Fatalf("clone3 with set_tid %d: %v", pid, errno)
	}
	t.Cleanup(func() {
		unix.Kill(int(got), unix.SIGKILL)
		unix.Wait4(int(got), nil, 0, nil)
	})
	where, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || cgroup != "" && strings.TrimSpace(string(where)) != "0::"+cgroup {
		t.Fatalf("process %d was to be new, in %s: %s, %v", pid, cgroup, where, err)
	}
}

// cloneIdle makes a process that stands still. The child has one thread of a Go program's many, so nothing of the
// runtime may be used in it.
//
//go:noinline
//go:norace
//go:nosplit
func cloneIdle(args *cloneArgs) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	for errno == 0 && pid == 0 {
		unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
	return pid, errno
}
