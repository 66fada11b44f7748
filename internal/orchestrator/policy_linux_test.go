// SPDX-License-Identifier: MIT

package orchestrator

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// rules makes a policy of text. As for who it is for: this process may be anywhere.
func rules(t *testing.T, text string) *policy.Policy {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := policy.LoadFiles(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rule is one for a uid, wherever it is.
func rule(name string, uid int, more ...string) string {
	return fmt.Sprintf("[[rule]]\nname = '%s'\ncgroup = 'any'\nuid = %d\nowner = 'test/%s'\n%s\n", name, uid, name, strings.Join(more, "\n"))
}

// noKernel is what whoever the policy lets hears on a machine without the device.
const noKernel = "KernelNotReady problem="

func TestNames(t *testing.T) {
	client := serve(t, rules(t, rule("me", os.Geteuid(), "names = ['ram', 'disk-*']")))
	for _, method := range []string{"Acquire", "Reclaim"} {
		for name, want := range map[string]string{
			"ram": noKernel, "disk-0": noKernel, "rom": "NotPermitted rule=me", "../ram": "NameInvalid name=../ram",
		} {
			if got := refusal(t, client, method, map[string]any{"name": name}); !strings.HasPrefix(got, want) {
				t.Errorf("%s of %s: %s, want %s", method, name, got, want)
			}
		}
	}
}

// TestRate: both ways to a session count, what is refused for other reasons doesn't, and another rule starts afresh.
func TestRate(t *testing.T) {
	o, client := serveWith(t, rules(t, rule("slow", os.Geteuid(), "rate = '3/24h'", "names = ['ram']")), filepath.Join(t.TempDir(), "liveupdate"))
	for i, c := range []struct{ method, name, want string }{
		{"Acquire", "ram", noKernel},
		{"Acquire", "rom", "NotPermitted rule=slow"},
		{"Reclaim", "../", "NameInvalid"},
		{"Reclaim", "ram", noKernel},
		{"Acquire", "ram", noKernel},
		{"Acquire", "ram", "RateLimited"},
		{"Reclaim", "ram", "RateLimited"},
	} {
		if got := refusal(t, client, c.method, map[string]any{"name": c.name}); !strings.HasPrefix(got, c.want) {
			t.Errorf("call %d, %s of %s: %s, want %s", i, c.method, c.name, got, c.want)
		}
	}
	o.SetPolicy(rules(t, rule("quick", os.Geteuid())))
	if got := refusal(t, client, "Acquire", map[string]any{"name": "ram"}); !strings.HasPrefix(got, noKernel) {
		t.Errorf("by another policy: %s", got)
	}
}

func TestRates(t *testing.T) {
	var r rates
	now := time.Now()
	unit := func(i int) places.Place { return places.Place{Name: fmt.Sprintf("u%d.service", i), Root: true} }
	grant := policy.Grant{Rule: "x", Rate: policy.Rate{Burst: 4, Interval: time.Minute}}
	take := func(p places.Place, at time.Duration) (time.Duration, bool) { return r.take(p, grant, now.Add(at)) }

	for i := range 4 {
		if wait, _ := take(unit(0), 0); wait != 0 {
			t.Fatalf("request %d of the burst has to wait for %v", i, wait)
		}
	}
	for i, want := range []bool{true, false, false} {
		if wait, first := take(unit(0), 0); wait != 15*time.Second || first != want {
			t.Errorf("beyond the burst, %d: %v, first: %v", i, wait, first)
		}
	}
	if wait, _ := take(unit(1), 0); wait != 0 {
		t.Error("another unit has to wait")
	}
	if wait, _ := take(unit(0), 15*time.Second-1); wait != 1 {
		t.Errorf("a moment too early: %v", wait)
	}
	if wait, _ := take(unit(0), 15*time.Second); wait != 0 {
		t.Errorf("in time: %v", wait)
	}
	if wait, first := take(unit(0), 15*time.Second); wait == 0 || !first {
		t.Errorf("after it: %v, first: %v", wait, first)
	}
	// However long nobody asks, the burst is what it is.
	for range 4 {
		if wait, _ := take(unit(0), time.Hour); wait != 0 {
			t.Errorf("after an hour: %v", wait)
		}
	}
	if wait, _ := take(unit(0), time.Hour); wait == 0 {
		t.Error("after an hour, a fifth at once")
	}

	// The table is bounded. Who finds it full shares a place, and finds one of its own later.
	for i := range maxRates + 100 {
		take(unit(i), 2*time.Hour)
	}
	if len(r.known) > maxRates+1 {
		t.Errorf("%d are remembered", len(r.known))
	}
	if wait, _ := take(unit(1_000_000), 2*time.Hour); wait == 0 {
		t.Error("what 100 others had taken all of was there")
	}
	if wait, _ := take(unit(1_000_000), 3*time.Hour); wait != 0 {
		t.Error("no place though all had their time")
	}
	if len(r.known) > 2 {
		t.Errorf("%d are remembered for nothing", len(r.known))
	}
	if wait, _ := r.take(unit(0), policy.Grant{Rule: "y"}, now); wait != 0 {
		t.Error("no limit limits")
	}
}

func TestDelegationByOwner(t *testing.T) {
	client := serve(t, rules(t, rule("me", os.Geteuid(), "delegate = ['vm/*', '/machine-*.scope']", "names = ['ram']")))
	for _, method := range []string{"Acquire", "Reclaim"} {
		for _, c := range []struct{ subject, name, want string }{
			{`{"owner": "vm/a"}`, "ram", noKernel},
			{`{"owner": "/machine-b.scope"}`, "ram", noKernel},
			{`{"owner": "test/me"}`, "ram", noKernel}, // oneself
			{`{"owner": "vm/a"}`, "rom", "NotPermitted rule=me"},
			{`{"owner": "vm/a/b"}`, "ram", "NotPermitted rule=me"},
			{`{"owner": "/vmm.service"}`, "ram", "NotPermitted rule=me"},
			{`{"owner": "/machine-b.scope/x.service"}`, "ram", "NotPermitted rule=me"},
			{`{"owner": "uid/0"}`, "ram", "NotPermitted rule=me"},
			{`{"owner": "vm/../a"}`, "ram", "org.varlink.service.InvalidParameter parameter=subject.owner"},
			{`{"owner": ""}`, "ram", "org.varlink.service.InvalidParameter parameter=subject.owner"},
			{`{"owner": "vm/*"}`, "ram", "org.varlink.service.InvalidParameter parameter=subject.owner"},
			{`{}`, "ram", "org.varlink.service.InvalidParameter parameter=subject"},
			{`{"owner": "vm/a", "pidFileDescriptor": 0}`, "ram", "org.varlink.service.InvalidParameter parameter=subject"},
			{`{"owner": "vm/a", "uid": 0}`, "ram", "org.varlink.service.InvalidParameter parameter=subject.uid"},
		} {
			if got := refusal(t, client, method, map[string]any{"name": c.name, "subject": raw(c.subject)}); !strings.HasPrefix(got, c.want) || !strings.HasPrefix(c.want, noKernel) && got != c.want {
				t.Errorf("%s for %s: %s, want %s", method, c.subject, got, c.want)
			}
		}
	}
	// Nor does Identify say anything about others to who isn't trusted with them.
	client = serve(t, rules(t, rule("me", os.Geteuid())))
	if got := refusal(t, client, "Identify", map[string]any{"sessionFileDescriptor": 0, "subject": raw(`{"owner": "vm/a"}`)}); got != "NotPermitted rule=me" {
		t.Errorf("Identify: %s", got)
	}
	// Who may have nothing itself may have nothing for others.
	client = serve(t, rules(t, "[[rule]]\nname='no'\ncgroup='any'\nuid='any'\nallow=false\n"))
	if got := refusal(t, client, "Acquire", map[string]any{"name": "ram", "subject": raw(`{"owner": "vm/a"}`)}); got != "NotPermitted rule=no" {
		t.Errorf("denied itself: %s", got)
	}
}

type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// sleeper is a child that stays until its standard input ends, as a user.
func sleeper(t *testing.T, uid int) (*exec.Cmd, *fd.FD) {
	t.Helper()
	child := exec.Command("cat")
	if uid != os.Geteuid() {
		if os.Geteuid() != 0 {
			t.Skip("starting a process as another user needs root")
		}
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	raw, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := fd.New(raw)
	t.Cleanup(func() { pidfd.Close(); stdin.Close(); child.Wait() })
	return child, pidfd
}

func byPIDFD(index int) raw { return raw(fmt.Sprintf(`{"pidFileDescriptor": %d}`, index)) }

func TestDelegationByPIDFD(t *testing.T) {
	me := rule("me", os.Geteuid(), "delegate = ['test/vm']")
	child, pidfd := sleeper(t, 54321)
	for name, c := range map[string]struct{ vm, want string }{
		"its rule lets it":     {rule("vm", 54321), noKernel},
		"its rule doesn't":     {rule("vm", 54321, "allow = false"), noKernel}, // it doesn't ask
		"its owner is another": {rule("other", 54321), "NotPermitted rule=me"},
		"it has no owner":      {"", "NoOwner"},
	} {
		if c.vm == "" && here(t).Unit != "" {
			continue
		}
		client := serve(t, rules(t, me+c.vm))
		if got := refusal(t, client, "Acquire", map[string]any{"name": "ram", "subject": byPIDFD(0)}, pidfd.Raw()); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	client := serve(t, rules(t, me+rule("vm", 54321)))
	child.Process.Kill()
	child.Wait()
	if got := refusal(t, client, "Acquire", map[string]any{"name": "ram", "subject": byPIDFD(0)}, pidfd.Raw()); got != "NotPermitted rule=me" {
		t.Errorf("after its death: %s", got)
	}
}

// TestWhatIsNoPIDFD: a client may send anything as one.
func TestWhatIsNoPIDFD(t *testing.T) {
	client := serve(t, rules(t, rule("me", os.Geteuid(), "delegate = ['*/*']")))
	const parameter = "org.varlink.service.InvalidParameter parameter=subject.pidFileDescriptor"
	opened := func(raw int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(raw) })
		return raw
	}
	dir := t.TempDir()
	for name, sent := range map[string]int{
		"a file":           opened(unix.Open(filepath.Join(dir, "f"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)),
		"a file so called": opened(unix.Open(filepath.Join(dir, "anon_inode:[pidfd]"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)),
		"a directory":      opened(unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)),
		"a place":          opened(unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)),
		"/proc/PID":        opened(unix.Open("/proc/self", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)),
		"a memfd":          opened(unix.MemfdCreate("[pidfd]", unix.MFD_CLOEXEC)),
		"an eventfd":       opened(unix.Eventfd(0, unix.EFD_CLOEXEC)),
		"an epoll":         opened(unix.EpollCreate1(unix.EPOLL_CLOEXEC)),
		"a socket":         opened(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)),
		"a user namespace": opened(unix.Open("/proc/self/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)),
		"the null device":  opened(unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)),
		"the zero device":  opened(unix.Open("/dev/zero", unix.O_RDWR|unix.O_CLOEXEC, 0)),
	} {
		if got := refusal(t, client, "Acquire", map[string]any{"name": "ram", "subject": byPIDFD(0)}, sent); got != parameter {
			t.Errorf("%s: %s", name, got)
		}
	}
	for _, index := range []int{-1, 1, 1 << 40} {
		if got := refusal(t, client, "Acquire", map[string]any{"name": "ram", "subject": byPIDFD(index)}, 0); got != parameter {
			t.Errorf("index %d: %s", index, got)
		}
	}
	// The same descriptor can't be two things.
	_, self := sleeper(t, os.Geteuid())
	if got := refusal(t, client, "Identify", map[string]any{"sessionFileDescriptor": 0, "subject": byPIDFD(0)}, self.Raw()); got != "org.varlink.service.InvalidParameter parameter=sessionFileDescriptor" {
		t.Errorf("a pidfd as the session too: %s", got)
	}
}

// handedOut is the owner and the kernel name of the session that a call gives; its descriptor is the caller's.
func handedOut(t *testing.T, client *varlink.Client, method string, parameters map[string]any, sent ...int) (owner, kernelName string, fds []*fd.FD) {
	t.Helper()
	var out struct {
		Session struct{ Owner, KernelName string } `json:"session"`
	}
	fds, err := client.Call(t.Context(), iface+"."+method, parameters, sent, &out)
	if err != nil {
		t.Fatalf("%s %v: %v", method, parameters, err)
	}
	return out.Session.Owner, out.Session.KernelName, fds
}

// TestManagerAndMachine: what a manager has got for a machine before that started, the machine itself has after the
// update; and the other way round.
func TestManagerAndMachine(t *testing.T) {
	manager := rule("manager", os.Geteuid(), "delegate = ['test/vm']")
	machine := rule("vm", os.Geteuid(), "names = ['ram', 'rom']")
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			o, client := serveWith(t, rules(t, manager), "")
			owner, kernelName, _ := handedOut(t, client, "Acquire", map[string]any{"name": "ram", "subject": raw(`{"owner": "test/vm"}`)})
			if owner != "test/vm" || kernelName != name.Kernel("test/vm", "ram") {
				t.Errorf("%s, %s", owner, kernelName)
			}
			o.SetPolicy(rules(t, machine))
			handedOut(t, client, "Acquire", map[string]any{"name": "rom"})
		},
		func(t *testing.T) {
			o, client := serveWith(t, rules(t, machine), "")
			_, _, fds := handedOut(t, client, "Reclaim", map[string]any{"name": "ram"})
			defer fd.CloseAll(fds)
			o.SetPolicy(rules(t, manager))
			_, _, roms := handedOut(t, client, "Reclaim", map[string]any{"name": "rom", "subject": raw(`{"owner": "test/vm"}`)})
			defer fd.CloseAll(roms)
			// Whose it is depends on who is asked about.
			for subject, want := range map[string]bool{`null`: false, `{"owner": "test/vm"}`: true, `{"owner": "test/manager"}`: false} {
				var out struct{ Yours bool }
				if _, err := client.Call(t.Context(), iface+".Identify", map[string]any{"sessionFileDescriptor": 0, "subject": raw(subject)}, []int{roms[0].Raw()}, &out); err != nil || out.Yours != want {
					t.Errorf("Identify for %s: %v, %v", subject, out.Yours, err)
				}
			}
			if direction, err := liveupdateDirection(fds[0]); err != nil || direction != liveupdate.Incoming {
				t.Errorf("%v, %v", direction, err)
			}
		})
}

func liveupdateDirection(f *fd.FD) (liveupdate.Direction, error) {
	s, err := liveupdate.FromFD(f.Raw())
	if err != nil {
		return 0, err
	}
	defer s.Disown()
	return s.Direction()
}

// TestBrokenPolicy: what a file that can't be understood would decide is denied, and it shows.
func TestBrokenPolicy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(path, []byte("="), 0o644); err != nil {
		t.Fatal(err)
	}
	broken, err := policy.LoadFiles(path)
	if err == nil {
		t.Fatal("no error")
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		o, client := serveWith(t, broken, "")
		problem := func() string {
			var out struct{ Problem string }
			if _, err := client.Call(t.Context(), iface+".Describe", nil, nil, &out); err != nil {
				t.Fatal(err)
			}
			return out.Problem
		}
		for _, method := range []string{"Acquire", "Reclaim"} {
			if got := refusal(t, client, method, map[string]any{"name": "ram"}); got != "NotPermitted rule=broken-file" {
				t.Errorf("%s: %s", method, got)
			}
		}
		// "Not yours" would have who stored a session throw it away.
		if got := refusal(t, client, "Identify", map[string]any{"sessionFileDescriptor": 0}); got != "NotPermitted rule=broken-file" {
			t.Errorf("Identify: %s", got)
		}
		if problem() != "policyBroken" {
			t.Errorf("Describe: %q", problem())
		}
		o.SetPolicy(rules(t, rule("me", os.Geteuid())))
		if problem() != "" {
			t.Errorf("Describe: %q", problem())
		}
		_, _, fds := handedOut(t, client, "Acquire", map[string]any{"name": "ram"})
		fd.CloseAll(fds)
	})
}

// TestReloadUnderLoad: each request sees one policy, the old or the new one.
func TestReloadUnderLoad(t *testing.T) {
	a, b := rules(t, rule("a", os.Geteuid(), "names = ['x']")), rules(t, rule("b", os.Geteuid(), "names = ['y']"))
	o, client := serveWith(t, a, filepath.Join(t.TempDir(), "liveupdate"))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				o.SetPolicy(b)
				o.SetPolicy(a)
			}
		}
	}()
	for range 500 {
		if got := refusal(t, client, "Acquire", map[string]any{"name": "z"}); !slices.Contains([]string{"NotPermitted rule=a", "NotPermitted rule=b"}, got) {
			t.Fatal(got)
		}
	}
	close(stop)
	<-done
}
