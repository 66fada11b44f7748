// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/examples/internal/pass"
	"github.com/holdfast-project/holdfast/examples/vmm/qemu"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/luosim"

	// What holdfast-updated is made of: "go test" must not take an earlier result for today's when that has changed.
	_ "github.com/holdfast-project/holdfast/internal/updated"
)

const (
	kernelVariable  = "VMM_KERNEL"       // the bzImage that a machine runs, such as "hfvm build 7.2" makes
	dirVariable     = "VMM_TEST_DIR"     // what built has made
	machineVariable = "VMM_TEST_MACHINE" // this program is to be one of that name
	deathVariable   = "VMM_TEST_DEATH"   // WHO STEP, of that machine
)

// patience is for what has to happen.
const patience = 2 * time.Minute

// TestMain is the tests, or the process beside a machine's QEMU.
func TestMain(m *testing.M) {
	name := os.Getenv(machineVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	if who, when, any := strings.Cut(os.Getenv(deathVariable), " "); any {
		step = func(m *machine, now string) {
			if now != when {
				return
			}
			when = "" // not twice
			switch who {
			case "machine":
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			case "qemu":
				m.qemu.Kill()
			}
		}
	}
	dir := os.Getenv(dirVariable)
	ctx, stop := notified()
	defer stop()
	err := runMachine(ctx, options{mebibytes: 96, kernel: dir + "/kernel", initrd: dir + "/initrd", append: "console=ttyS0 panic=-1 quiet no_timer_check"}, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// built has made what each boot needs, before the first one.
func built(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it takes root: each machine has a user of its own, and nobody else may start an update")
	}
	kernel := os.Getenv(kernelVariable)
	if kernel == "" {
		t.Skipf("$%s names no kernel for the machine", kernelVariable)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	if luosim.Boot() > 0 {
		return
	}
	dir := t.TempDir()
	t.Setenv(dirVariable, dir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{filepath.Dir(dir), dir, dir + "/policy.d"} {
		must(os.MkdirAll(d, 0o755))
		must(os.Chmod(d, 0o755)) // machines are other users
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./guest", "../../cmd/holdfast-updated", "../../cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image, err := os.ReadFile(kernel)
	must(err)
	must(os.WriteFile(dir+"/kernel", image, 0o644))
	init, err := os.ReadFile(dir + "/guest")
	must(err)
	var initrd bytes.Buffer
	must(qemu.WriteInitrd(&initrd, init))
	must(os.WriteFile(dir+"/initrd", initrd.Bytes(), 0o644))
	self, err := os.ReadFile("/proc/self/exe")
	must(err)
	must(os.WriteFile(dir+"/machine", self, 0o755))
	rules := "[[rule]]\nname = 'vmm'\ncgroup = 'any'\nuid = 0\nowner = 'vmm'\nnames = ['vm', 'report']\ndelegate = ['qemu/*']\n"
	for name, uid := range users {
		rules += fmt.Sprintf("[[rule]]\nname = '%s'\ncgroup = 'any'\nuid = %d\nowner = 'qemu/%[1]s'\nnames = ['vm']\nmax-parked = 1\n", name, uid)
	}
	must(os.WriteFile(dir+"/policy.d/test.toml", []byte(rules), 0o644))
}

// users are the machines', by which the policy tells them apart here.
var users = map[string]uint32{"vm1": 64051, "vm2": 64052}

// host has an orchestrator, and holdfast-updated, and does what the manager does, save for the scopes.
type host struct {
	*testing.T
	ctx    context.Context
	dir    string
	client *holdfast.Client
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func newHost(t *testing.T) *host {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's ends before what is cleaned up
	t.Cleanup(cancel)
	h := &host{T: t, ctx: ctx, dir: os.Getenv(dirVariable)}
	rules, err := policy.Load(h.dir + "/policy.d")
	h.must(err)
	shelf := &custodytest.Shelf{}
	t.Cleanup(shelf.Close)
	h.client = orchestratortest.Dial(t, rules, shelf)
	address := os.Getenv("HOLDFAST_ADDRESS")
	for d := filepath.Dir(address); d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		h.must(os.Chmod(d, 0o755))
	}
	h.must(os.Chmod(address, 0o666))

	update := h.dir + "/io.holdfast.Update"
	t.Setenv("HOLDFAST_UPDATE_ADDRESS", update)
	os.Remove(update)
	updated := exec.Command(h.dir+"/holdfast-updated", "--listen", update, "--policy", h.dir+"/policy.d")
	updated.Stderr = os.Stderr
	h.must(updated.Start())
	t.Cleanup(func() {
		updated.Process.Kill()
		updated.Wait()
	})
	h.eventually("holdfast-updated answers", func() bool {
		conn, err := net.Dial("unix", update)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	h.must(os.Chmod(update, 0o666))
	return h
}

func (h *host) eventually(what string, is func() bool) {
	h.Helper()
	for !is() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-h.ctx.Done():
			h.Fatalf("it does not come to this: %s", what)
		}
	}
}

// process is a machine's.
type process struct {
	h     *host
	name  string
	cmd   *exec.Cmd
	came  answer
	ended chan struct{}
	err   error
}

// begin starts a machine, which may die on its way, and then the answer is empty.
func (h *host) begin(name, death string) *process {
	h.Helper()
	p, here, files := h.beginning(name, death)
	defer here.Close()
	h.must(pass.Send(here, files))
	pass.CloseAll(files)
	data := make([]byte, 64<<10)
	n, err := here.Read(data)
	if err == nil {
		h.must(json.Unmarshal(data[:n], &p.came))
	}
	return p
}

// beginning does so up to where the machine waits for its files.
func (h *host) beginning(name, death string) (*process, *net.UnixConn, []*os.File) {
	h.Helper()
	files, err := h.client.As(holdfast.Owner("qemu/"+name)).Handover(h.ctx, sessionName)
	if err != nil && !errors.Is(err, holdfast.ErrNoSuchSession) {
		h.Fatal(err)
	}
	here, there, err := pass.Pair()
	h.must(err)
	console, err := os.OpenFile(h.console(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	h.must(err)
	defer console.Close()
	p := &process{h: h, name: name, ended: make(chan struct{}), cmd: exec.Command(h.dir + "/machine")}
	p.cmd.Env = append(os.Environ(), machineVariable+"="+name, deathVariable+"="+death)
	p.cmd.ExtraFiles = []*os.File{there}
	p.cmd.Stdout, p.cmd.Stderr = console, os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: users[name], Gid: users[name]}}
	h.must(p.cmd.Start())
	there.Close()
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	h.Cleanup(p.kill)
	return p, here, files
}

// start starts a machine that has to come up.
func (h *host) start(name, want, why string) *process {
	h.Helper()
	p := h.begin(name, "")
	if p.came.Came != want || p.came.Error != "" || (why == "") != (p.came.Why == "") || !strings.Contains(p.came.Why, why) {
		h.Fatalf("%s is %+v, and not %s %s", name, p.came, want, why)
	}
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
	p.h.gone(p.name)
}

// gone waits for the end of QEMU, as the manager does by the scope.
func (h *host) gone(name string) {
	h.Helper()
	h.eventually("all of "+name+" has ended", func() bool { return len(h.processes(name, "")) == 0 })
}

// processes are those of a machine's user, whose name begins so.
func (h *host) processes(name, comm string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	h.must(err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		said, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err == nil && unix.Stat("/proc/"+e.Name(), &st) == nil && st.Uid == users[name] && strings.HasPrefix(string(said), comm) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stop has it saved, as when its scope is stopped.
func (p *process) stop() {
	p.h.Helper()
	p.h.must(p.cmd.Process.Signal(syscall.SIGWINCH))
	select {
	case <-p.ended:
	case <-p.h.ctx.Done():
		p.h.Fatalf("%s doesn't stop", p.name)
	}
	p.h.gone(p.name)
}

func (h *host) console(name string) string { return filepath.Join(h.dir, name+".log") }

var said = regexp.MustCompile(`tick (\d+) word ([0-9a-f]+) (ram .*?)\r?\n`)

// ticks are those that it has counted since it was fresh, none missing, and its memory right.
func (h *host) ticks(name string) int {
	h.Helper()
	data, err := os.ReadFile(h.console(name))
	h.must(err)
	all := said.FindAllSubmatch(data, -1)
	for i, one := range all {
		if string(one[1]) != strconv.Itoa(i+1) || !bytes.Equal(one[2], all[0][2]) || string(one[3]) != "ram 8 MiB ok" {
			h.Fatalf("tick %d of %s: %s", i+1, name, one[0])
		}
	}
	return len(all)
}

// goesOn waits for two more ticks.
func (p *process) goesOn() {
	p.h.Helper()
	before := p.h.ticks(p.name)
	p.h.eventually(p.name+" goes on", func() bool {
		select {
		case <-p.ended:
			p.h.Fatalf("%s has ended: %v", p.name, p.err)
		default:
		}
		return p.h.ticks(p.name) >= before+2
	})
}

// anew forgets what the machine has said: it starts afresh.
func (h *host) anew(name string) {
	h.Helper()
	if err := os.Remove(h.console(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		h.Fatal(err)
	}
}

func (h *host) load() {
	h.Helper()
	image, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC)
	h.must(err)
	defer unix.Close(image)
	h.must(unix.KexecFileLoad(image, -1, "", unix.KEXEC_FILE_NO_INITRAMFS))
}

// tool starts holdfast, and returns what waits for its end.
func (h *host) tool(args ...string) func() string {
	h.Helper()
	cmd := exec.CommandContext(h.ctx, h.dir+"/holdfast", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	h.must(cmd.Start())
	return func() string {
		err := cmd.Wait()
		return fmt.Sprintf("%s%v", &out, err)
	}
}

// comes waits for a participant's state in a phase.
func (h *host) comes(phase, name, state string) {
	h.Helper()
	conn, err := varlink.Dial(h.ctx, os.Getenv("HOLDFAST_UPDATE_ADDRESS"))
	h.must(err)
	defer conn.Close()
	h.eventually(fmt.Sprintf("%s is %s in %s", name, state, phase), func() bool {
		var s struct {
			Phase        string
			Participants []struct{ Name, State string }
		}
		fds, err := conn.Call(h.ctx, "io.holdfast.Update.Status", nil, nil, &s)
		fd.CloseAll(fds)
		h.must(err)
		if s.Phase != phase {
			return false
		}
		for _, p := range s.Participants {
			if p.Name == name && p.State == state {
				return true
			}
		}
		return false
	})
}

// gate takes part too, so that a phase is over when the test says so.
type gate struct{ open chan struct{} }

func (h *host) gate() (prepare, quiesce gate) {
	h.Helper()
	prepare, quiesce = gate{make(chan struct{}, 1)}, gate{make(chan struct{}, 1)}
	wait := func(ctx context.Context, g gate) error {
		select {
		case <-g.open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p, err := holdfast.Join(h.ctx, holdfast.ParticipantConfig{Name: "gate",
		Prepare: func(ctx context.Context, _ *holdfast.Round) error { return wait(ctx, prepare) },
		Quiesce: func(ctx context.Context, _ *holdfast.Round) error { return wait(ctx, quiesce) },
	})
	h.must(err)
	h.Cleanup(func() { p.Close() })
	return prepare, quiesce
}

// switches waits for the end of this kernel.
func (h *host) switches(update func() string) {
	h.Helper()
	h.Fatalf("the host still runs after a good update: %s", update())
}

// whole is what a machine says of its pause.
func (p *process) whole() {
	p.h.Helper()
	pause := p.came.Pause
	if pause == nil || pause.Total <= 0 || pause.Stop <= 0 || pause.Save <= 0 || pause.Restore <= 0 ||
		pause.Total != pause.Stop+pause.Save+pause.Kexec+pause.Boot+pause.Parked+pause.Restore {
		p.h.Errorf("the pause of %s: %+v", p.name, pause)
		return
	}
	p.h.Logf("%s: %s", p.name, &p.came)
}

// TestRounds has an update called off while all stand still, and then one in which a machine's QEMU is killed.
func TestRounds(t *testing.T) {
	built(t)
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := newHost(t)
		vm1, vm2 := h.start("vm1", "fresh", ""), h.start("vm2", "fresh", "")
		vm1.goesOn()
		vm2.goesOn()

		// They count while they are prepared, and stand still once they are quiesced.
		prepare, quiesce := h.gate()
		h.load()
		update := h.tool("update", "--yes")
		h.comes("preparing", "vm1", "ready")
		h.comes("preparing", "vm2", "ready")
		vm1.goesOn()
		vm2.goesOn()
		prepare.open <- struct{}{}
		h.comes("quiescing", "vm1", "ready")
		h.comes("quiescing", "vm2", "ready")
		before := h.ticks("vm1")
		// One of them has no QEMU any more that could go on.
		for _, pid := range h.processes("vm2", "qemu") {
			h.must(unix.Kill(pid, unix.SIGKILL))
		}
		h.eventually("the QEMU of vm2 is dead", func() bool { return len(h.processes("vm2", "qemu")) == 0 })
		if now := h.ticks("vm1"); now != before {
			t.Errorf("vm1 has counted from %d to %d while it was quiesced", before, now)
		}
		if said := h.tool("cancel", "--reason", "second thoughts")(); !strings.HasSuffix(said, "<nil>") {
			t.Error(said)
		}
		if said := update(); !strings.Contains(said, "second thoughts") {
			t.Error(said)
		}
		vm1.goesOn()
		vm2.goesOn()

		h.load()
		h.tool("wait", "--settled", "-t", "30s")()
		update = h.tool("update", "--yes")
		h.comes("preparing", "vm1", "ready")
		h.comes("preparing", "vm2", "ready")
		for _, pid := range h.processes("vm2", "qemu") {
			h.must(unix.Kill(pid, unix.SIGKILL))
		}
		h.comes("preparing", "vm2", "gone")
		<-vm2.ended
		h.gone("vm2") // and so would its scope be
		vm1.goesOn()
		prepare.open <- struct{}{}
		quiesce.open <- struct{}{}
		h.switches(update)
	}, func(t *testing.T) {
		h := newHost(t)
		vm1 := h.start("vm1", "update", "")
		vm1.goesOn()
		vm1.whole()
		if data, err := os.ReadFile(h.console("vm2")); err != nil || !strings.Contains(string(data), "QEMU has ended: signal: killed; nothing of the machine is saved") {
			t.Errorf("the console of vm2 doesn't end with why: %v", err)
		}
		h.anew("vm2")
		vm2 := h.start("vm2", "fresh", "")
		vm2.goesOn()
		vm2.stop()
		vm2 = h.start("vm2", "parked", "")
		vm2.goesOn()
		vm2.whole()
	})
}

// TestDeaths kills the machine's process, or QEMU, at each step of stopping and of starting, before an update and after
// one. What was parked whole comes back; what wasn't is a fresh start that says so.
func TestDeaths(t *testing.T) {
	built(t)
	const spent = "has run on since its state was saved"
	ends := []struct{ who, step, came string }{
		{"machine", "preserved", "fresh"},
		{"machine", "stopped", "fresh"},
		{"machine", "saved", "fresh"},
		{"machine", "written", "fresh"},
		{"machine", "parked", "parked"},
		{"machine", "ended", "parked"},
		{"qemu", "preserved", "fresh"},
		{"qemu", "stopped", "fresh"},
		{"qemu", "saved", "parked"}, // its state is in hand
		{"qemu", "written", "parked"},
		{"qemu", "parked", "parked"},
	}
	begins := []struct{ who, step, came, why string }{
		{"machine", "retrieved", "as before", ""},
		{"machine", "restored", "as before", ""},
		{"machine", "spent", "fresh", spent},
		{"machine", "continued", "fresh", spent},
		{"machine", "released", "fresh", ""},
		{"qemu", "restored", "", ""}, // another one goes on
		{"qemu", "spent", "fresh", spent},
		{"qemu", "continued", "fresh", ""},
		{"qemu", "released", "fresh", ""},
	}
	// back has a machine that was parked so be killed on its way, and started again.
	back := func(h *host, i int, came string) {
		b := begins[i]
		what := fmt.Sprintf("%s is killed at %q after %s", b.who, b.step, came)
		p := h.begin("vm1", b.who+" "+b.step)
		if b.came == "" {
			if p.came.Came != came {
				h.Errorf("%s: it is %+v", what, p.came)
			}
			p.goesOn()
			p.stop()
			return
		}
		<-p.ended
		h.gone("vm1")
		want := b.came
		if want == "as before" {
			want = came
		} else {
			h.anew("vm1")
		}
		p = h.begin("vm1", "")
		if p.came.Came != want || p.came.Error != "" || !strings.Contains(p.came.Why, b.why) || (b.why == "") != (p.came.Why == "") {
			h.Fatalf("%s: it is %+v, and not %s %s", what, p.came, want, b.why)
		}
		p.goesOn()
		p.stop()
	}
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			h := newHost(t)
			vm1 := h.start("vm1", "fresh", "")
			vm1.goesOn()
			vm1.stop()
			for _, e := range ends {
				p := h.begin("vm1", e.who+" "+e.step)
				if p.came.Came != "parked" {
					h.Fatalf("before %v: %+v", e, p.came)
				}
				p.stop()
				if e.came == "fresh" {
					h.anew("vm1")
				}
				p = h.begin("vm1", "")
				if p.came.Came != e.came || p.came.Error != "" {
					h.Fatalf("after %v: it is %+v", e, p.came)
				}
				p.goesOn()
				p.stop()
			}
			for i := range begins {
				back(h, i, "parked")
			}

			// The manager dies before it has passed anything on, or before it is answered.
			p, conn, files := h.beginning("vm1", "")
			conn.Close()
			pass.CloseAll(files)
			<-p.ended
			p, conn, files = h.beginning("vm1", "")
			h.must(pass.Send(conn, files))
			conn.Close()
			pass.CloseAll(files)
			p.goesOn()
			p.stop()
			t.Fatal(luosim.Kexec())
		},
		func(t *testing.T) {
			h := newHost(t)
			back(h, 0, "update")
			t.Fatal(luosim.Kexec())
		},
		func(t *testing.T) {
			h := newHost(t)
			back(h, 1, "update")
			t.Fatal(luosim.Kexec())
		},
		func(t *testing.T) {
			h := newHost(t)
			back(h, 2, "update")
			t.Fatal(luosim.Kexec())
		},
		func(t *testing.T) {
			h := newHost(t)
			back(h, 3, "update")
			t.Fatal(luosim.Kexec())
		},
		func(t *testing.T) {
			h := newHost(t)
			back(h, 5, "update")
		})
}

// TestSwitchWhilePreserved has the kernel switched when the RAM is in a session, and nothing was saved: what is there then is
// no machine.
func TestSwitchWhilePreserved(t *testing.T) {
	built(t)
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := newHost(t)
		vm1 := h.start("vm1", "fresh", "")
		vm1.goesOn()
		h.gate()
		h.load()
		h.tool("update", "--yes")
		h.comes("preparing", "vm1", "ready")
		t.Fatal(luosim.Kexec())
	}, func(t *testing.T) {
		h := newHost(t)
		h.anew("vm1")
		vm1 := h.start("vm1", "fresh", "the update came before it was saved")
		vm1.goesOn()

		// It is stopped when it is saved for an update, which is called off then.
		prepare, _ := h.gate()
		h.load()
		update := h.tool("update", "--yes")
		prepare.open <- struct{}{}
		h.comes("quiescing", "vm1", "ready")
		vm1.stop()
		if said := h.tool("cancel")(); !strings.HasSuffix(said, "<nil>") {
			t.Error(said)
		}
		update()
		h.start("vm1", "parked", "").goesOn()
	})
}
