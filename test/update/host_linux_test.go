// SPDX-License-Identifier: MIT

package update

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/luosim"

	// What the daemons are made of: "go test" must not take an earlier result for today's when that has changed.
	_ "github.com/holdfast-project/holdfast/internal/orchestrator"
	_ "github.com/holdfast-project/holdfast/internal/updated"
)

// patience is how long anything may take that has to happen. Nothing here takes as long unless it hangs.
const patience = 60 * time.Second

// What tells this program where the binaries are, and that it is to be a participant.
const (
	binariesVariable    = "UPDATE_TEST_BINARIES"
	participantVariable = "UPDATE_TEST_PARTICIPANT" // NAME DIRECTORY OPTIONAL
	socketVariable      = "UPDATE_TEST_SOCKET"      // where a participant that has no parent listens
)

func TestMain(m *testing.M) {
	if what := os.Getenv(participantVariable); what != "" {
		var name, dir string
		var optional bool
		if _, err := fmt.Sscan(what, &name, &dir, &optional); err != nil {
			panic(err)
		}
		if err := participate(name, dir, optional, os.Getenv(socketVariable)); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(commandVariable); dir != "" {
		if err := command(dir); err != nil {
			fmt.Fprintln(os.Stderr, "command:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(binariesVariable) != "" {
		return m.Run() // under luosim
	}
	dir, err := os.MkdirTemp("", "holdfast-update-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "../../cmd/holdfast", "../../cmd/holdfastd", "../../cmd/holdfast-updated")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	os.Setenv(binariesVariable, dir)
	return m.Run()
}

// member is what kind of participant there is to be.
type member struct {
	name     string
	optional bool
	lost     bool // it isn't ready for the good update
}

// three is enough for most.
var three = []member{{name: "a"}, {name: "b"}, {name: "c"}}

// update runs a test on a host with participants, and goes over a good update at its end, after which the memory of all of
// them is looked at.
func update(t *testing.T, faults []string, members []member, test func(h *host)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it takes root: nobody else may start an update")
	}
	t.Parallel()
	luosim.Run(t, luosim.Machine{Faults: faults},
		func(t *testing.T) {
			h := newHost(t, members)
			test(h)
			if !t.Failed() {
				h.load()
				got := h.tool("update", "--yes")
				t.Fatalf("the host still runs after a good update: exit status %d, %s", got.status, got.stderr)
			}
		},
		func(t *testing.T) {
			h := newHost(t, members)
			for i, m := range members {
				h.participants[i].back(m)
			}
		})
}

// host is the machine with all that runs on it.
type host struct {
	t            *testing.T
	dir          string
	holdfastd    *exec.Cmd
	updated      *exec.Cmd
	participants []*process
}

func newHost(t *testing.T, members []member) *host {
	t.Helper()
	return newHostWith(t, members, nil)
}

// newHostWith has orchestrated start what answers instead of holdfastd, unless it is nil.
func newHostWith(t *testing.T, members []member, orchestrated func()) *host {
	t.Helper()
	h := &host{t: t, dir: filepath.Join(os.Getenv(binariesVariable), strings.ReplaceAll(t.Name(), "/", "-"))}
	policy := filepath.Join(h.dir, "policy.d")
	if err := os.MkdirAll(policy, 0o755); err != nil {
		t.Fatal(err)
	}
	const rule = "[[rule]]\nname = 'all'\ncgroup = 'any'\nuid = 0\nowner = 'test'\nrequired = true\n"
	if err := os.WriteFile(filepath.Join(policy, "test.toml"), []byte(rule), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Setenv("HOLDFAST_UPDATE_ADDRESS", filepath.Join(h.dir, "io.holdfast.Update"))
	if orchestrated == nil {
		os.Setenv("HOLDFAST_ADDRESS", filepath.Join(h.dir, "io.holdfast"))
		h.startHoldfastd()
	} else {
		orchestrated()
	}
	h.startUpdated()
	for _, m := range members {
		h.participants = append(h.participants, nil)
		h.join(len(h.participants)-1, m)
	}
	return h
}

func (h *host) command(name string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(os.Getenv(binariesVariable), name), args...)
}

// daemon starts one and waits until it answers.
func (h *host) daemon(name, address string) *exec.Cmd {
	h.t.Helper()
	os.Remove(address)
	cmd := h.command(name, "--listen", address, "--policy", filepath.Join(h.dir, "policy.d"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { kill(cmd) })
	h.eventually(name+" answers", func() bool {
		conn, err := varlink.Dial(h.t.Context(), address)
		if err != nil {
			return false
		}
		defer conn.Close()
		_, err = conn.Call(h.t.Context(), "org.varlink.service.GetInfo", nil, nil, nil)
		return err == nil
	})
	return cmd
}

func (h *host) startHoldfastd() { h.holdfastd = h.daemon("holdfastd", os.Getenv("HOLDFAST_ADDRESS")) }
func (h *host) startUpdated() {
	h.updated = h.daemon("holdfast-updated", os.Getenv("HOLDFAST_UPDATE_ADDRESS"))
}

// kill returns when the process is gone.
func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// eventually polls what there is no event for.
func (h *host) eventually(what string, is func() bool) {
	h.t.Helper()
	for start := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			h.t.Fatalf("it does not come to this: %s", what)
		}
	}
}

// load loads a stand-in for a kernel.
func (h *host) load() {
	h.t.Helper()
	image, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(image)
	if err := unix.KexecFileLoad(image, -1, "", unix.KEXEC_FILE_NO_INITRAMFS); err != nil {
		h.t.Fatal(err)
	}
}

// result is what a command left.
type result struct {
	status         int
	stdout, stderr string
}

// tool runs holdfast.
func (h *host) tool(args ...string) result {
	h.t.Helper()
	return h.start(args...)()
}

// start starts holdfast, and returns what waits for its end.
func (h *host) start(args ...string) func() result {
	h.t.Helper()
	cmd := h.command("holdfast", args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	return func() result {
		h.t.Helper()
		timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer timer.Stop()
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			h.t.Fatal(err)
		}
		return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	}
}

// is checks the exit status of a command that has nothing to complain about.
func (r result) is(t *testing.T, status int) {
	t.Helper()
	if r.status != status || r.stderr != "" {
		t.Errorf("exit status %d, %q; want %d", r.status, r.stderr, status)
	}
}

// failed checks how a command ended.
func (r result) failed(t *testing.T, status int, parts ...string) {
	t.Helper()
	ok := r.status == status
	for _, p := range parts {
		ok = ok && strings.Contains(r.stderr, p)
	}
	if !ok {
		t.Errorf("exit status %d, %q; want %d, and %q", r.status, r.stderr, status, parts)
	}
}

// status is a reply to Status.
type status struct {
	Round        int
	Phase        string
	Reason       string
	Loaded       bool
	Participants []struct{ Name, Owner, State, Reason string }
}

func (s status) of(name string) string {
	for _, p := range s.Participants {
		if p.Name == name {
			return p.State
		}
	}
	return "absent"
}

// comesTo waits for a status.
func (h *host) comesTo(what string, is func(status) bool) (last status) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	conn, err := varlink.Dial(ctx, os.Getenv("HOLDFAST_UPDATE_ADDRESS"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	seen := errors.New("seen")
	err = conn.CallMore(ctx, "io.holdfast.Update.Status", nil, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
		fd.CloseAll(fds)
		last = status{}
		if err := json.Unmarshal(parameters, &last); err != nil {
			return err
		}
		if is(last) {
			return seen
		}
		return nil
	})
	if !errors.Is(err, seen) {
		h.t.Fatalf("it does not come to this: %s: %v; the last was %+v", what, err, last)
	}
	return last
}

// phase waits until some are ready for it and some aren't: it is preparing already while it is being looked whether
// anything is in the way, and nobody has been asked.
func (h *host) phase(name string) status {
	h.t.Helper()
	return h.comesTo(name, func(s status) bool {
		states := map[string]bool{}
		for _, p := range s.Participants {
			states[p.State] = true
		}
		return s.Phase == name && states["ready"] && states["waiting"]
	})
}

// process is a participant's.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	in       io.Writer
	cameBack string // what it said of its memory when it started

	mu      sync.Mutex
	events  []string
	answers chan string
}

// join starts a participant in place i, and waits until it takes part.
func (h *host) join(i int, m member) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	p := &process{t: h.t, cmd: exec.Command(self), answers: make(chan string, 16)}
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %t", participantVariable, m.name, h.dir, m.optional))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		h.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { kill(p.cmd) })
	h.participants[i] = p
	p.attend(out)
}

// attend listens to what it says, and returns once it takes part.
func (p *process) attend(out io.Reader) {
	p.t.Helper()
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if answer, ok := strings.CutPrefix(lines.Text(), "= "); ok {
				p.answers <- answer
				continue
			}
			p.mu.Lock()
			p.events = append(p.events, lines.Text())
			p.mu.Unlock()
		}
	}()
	p.cameBack = p.sees("came back: ")
	p.sees("joined")
}

// sees waits for an event that begins so, and forgets it and those before it.
func (p *process) sees(event string) string {
	p.t.Helper()
	var seen string
	(&host{t: p.t}).eventually("a participant says "+event, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		i := slices.IndexFunc(p.events, func(e string) bool { return strings.HasPrefix(e, event) })
		if i >= 0 {
			seen = p.events[i]
			p.events = p.events[i+1:]
		}
		return i >= 0
	})
	return seen
}

// do has it do something, and returns its answer.
func (p *process) do(command string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		p.t.Fatal(err)
	}
	select {
	case answer := <-p.answers:
		return answer
	case <-time.After(patience):
		p.t.Fatalf("no answer to %q", command)
		return ""
	}
}

func (p *process) manner(manner string) { p.do("manner " + manner) }

// runsOn checks what is promised of an update that was called off: everybody was told, counts on, can resize its memory,
// and nothing is loaded.
func (h *host) runsOn(reason string) {
	h.t.Helper()
	h.eachRunsOn(reason)
	h.over()
}

// eachRunsOn does so for the participants. What takes time, all of them do at once.
func (h *host) eachRunsOn(reason string) {
	h.t.Helper()
	before := map[*process]int{}
	for i, p := range h.participants {
		if told := p.sees("aborted "); !strings.Contains(told, reason) {
			h.t.Errorf("participant %d was told %q, want %q", i, told, reason)
		}
		p.sees("resumed")
		if said := p.do("resize"); said != "<nil>" {
			h.t.Errorf("participant %d could not resize its memory: %s", i, said)
		}
		before[p], _ = strconv.Atoi(p.do("count"))
	}
	for _, p := range h.participants {
		h.eventually("a participant counts on", func() bool {
			now, _ := strconv.Atoi(p.do("count"))
			return now > before[p]
		})
		p.manner("")
	}
}

// over waits for the end of the round, and for everybody to take part in the next one.
func (h *host) over() {
	h.t.Helper()
	h.comesTo("everybody is there", func(s status) bool {
		n := 0
		for _, p := range s.Participants {
			if p.State != "gone" && p.Name != "late" { // that one has no process
				n++
			}
		}
		return (s.Phase == "resumed" || s.Phase == "idle") && n == len(h.participants)
	})
	h.nothingLoaded()
}

// heardNothing checks that nobody was asked for anything.
func (h *host) heardNothing() {
	h.t.Helper()
	for i, p := range h.participants {
		p.mu.Lock()
		if len(p.events) > 0 {
			h.t.Errorf("participant %d was told of something: %q", i, p.events)
		}
		p.mu.Unlock()
	}
}

func (h *host) nothingLoaded() {
	h.t.Helper()
	if loaded, err := os.ReadFile("/sys/kernel/kexec_loaded"); err != nil || strings.TrimSpace(string(loaded)) != "0" {
		h.t.Errorf("a kernel is loaded: %q, %v", loaded, err)
	}
}

// back checks that a participant's memory came over the update as it was when it paused.
func (p *process) back(m member) {
	p.t.Helper()
	want := "came back: <nil>"
	if m.lost {
		want = fmt.Sprintf("came back: holdfast: reclaim %q: there is no session %[1]q", m.name)
	}
	if p.cameBack != want {
		p.t.Errorf("%s %s; want %s", m.name, p.cameBack, want)
	}
}
