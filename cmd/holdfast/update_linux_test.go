// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// updates says io.holdfast.Update as it is told to. It returns where.
func updates(t *testing.T, methods map[string]varlink.Method) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "io.holdfast.Update")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	server := &varlink.Server{Grace: time.Millisecond, Interfaces: []varlink.Interface{{Name: "io.holdfast.Update", Description: api.Update, Methods: methods}}}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return address
}

func updateTool(t *testing.T, address string, args ...string) result {
	t.Helper()
	cmd := command(nowhere, args...)
	cmd.Env = append(cmd.Env, "HOLDFAST_UPDATE_ADDRESS="+address)
	return runTool(t, cmd)
}

func refusedWith(kind string, parameters any) error {
	return &varlink.Error{Name: "io.holdfast.Update." + kind, Parameters: parameters}
}

type object = map[string]any

var (
	vm1  = object{"name": "vm1", "owner": "qemu/vm1", "required": true, "state": "vetoed", "reason": "migrating"}
	busy = object{"participants": []object{vm1}}
	vm2  = object{"name": "vm2", "owner": "qemu/vm2", "required": true, "state": "ready"}
	at   = func(phase, reason string) object {
		is := vm1
		if phase == "committing" {
			is = vm2
		}
		return object{"round": 3, "phase": phase, "reason": reason, "participants": []object{is}}
	}
)

func TestUpdateEnds(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    string
		replies []object // of Start; the last one is the last
		err     error    // instead of the last one
		status  int
		says    string
		outcome string
		again   string // what another daemon says
	}{
		{"it switches, and the connection breaks", "--yes", []object{at("preparing", ""), at("committing", "")}, errBreak, 0, "", "switching", "committing"},
		{"the daemon dies before it switches", "--yes", []object{at("preparing", ""), at("committing", "")}, errBreak, 1, "ended before the switch, so that the update is off", "failed", "idle"},
		{"the kernel stays loaded", "--yes", nil, refusedWith("Vetoed", object{"participants": []object{vm1}, "reason": "vm1 vetoes; and the next kernel is still loaded, so that any reboot switches to it: x"}), 4, "the next kernel is still loaded, so that any reboot switches to it: x", "vetoed", ""},
		{"it switches", "--yes", []object{at("committing", "")}, nil, 0, "", "switching", ""},
		{"the daemon dies", "--yes", []object{at("preparing", "")}, errBreak, 1, "holdfast-updated ended, so that the update is off", "failed", ""},
		{"rehearsed", "--dry-run", []object{at("resumed", "it was a dry run, and everybody was ready")}, nil, 0, "", "rehearsed", ""},
		{"cancelled", "--yes", []object{at("aborted", ""), at("resumed", "it was cancelled: why")}, nil, 1, "called off, and everything runs on: it was cancelled: why", "cancelled", ""},
		{"the switch fails", "--yes", []object{at("resumed", "the switch failed: x")}, nil, 1, "called off, and everything runs on: the switch failed: x", "failed", ""},
		{"vetoed", "--yes", []object{at("preparing", "")}, refusedWith("Vetoed", busy), 4, "vm1 (qemu/vm1) vetoes: migrating; --without NAME", "vetoed", ""},
		{"timed out", "--yes", nil, refusedWith("TimedOut", busy), 4, "--timeout gives more time", "timedOut", ""},
		{"blocked", "--yes", nil, refusedWith("Blocked", object{"findings": []object{{"id": "x", "severity": "error", "text": "no LUO", "hint": "another kernel"}}}), 3, "no LUO (another kernel); --force", "blocked", ""},
		{"nothing is loaded", "--yes", nil, refusedWith("NothingLoaded", nil), 1, "no kernel is loaded", "nothingLoaded", ""},
		{"in progress", "--yes", nil, refusedWith("InProgress", object{"phase": "quiescing"}), 1, "an update is quiescing already", "inProgress", ""},
		{"not permitted", "--yes", nil, refusedWith("NotPermitted", object{"reason": "only root"}), 1, "not permitted: only root", "notPermitted", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status := func(context.Context, *varlink.Call) (*varlink.Reply, error) {
				return &varlink.Reply{Parameters: at(c.again, "")}, nil
			}
			address := updates(t, map[string]varlink.Method{"Status": status, "Start": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
				for i, r := range c.replies {
					if c.err == nil && i == len(c.replies)-1 {
						return &varlink.Reply{Parameters: r}, nil
					}
					if err := call.Continue(&varlink.Reply{Parameters: r}); err != nil {
						return nil, err
					}
				}
				if c.err == errBreak {
					panic("the daemon dies")
				}
				return nil, c.err
			}})
			got := updateTool(t, address, "update", c.args)
			if c.status != 0 {
				got.failed(t, c.status, c.says)
			} else if got.status != 0 || got.stderr != "" || got.stdout != "" {
				t.Errorf("%+v", got)
			}
			got = updateTool(t, address, "update", c.args, "--json")
			var out updateResult
			if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.status != c.status || out.Outcome != c.outcome {
				t.Errorf("%v, %+v; want status %d, outcome %s", err, got, c.status, c.outcome)
			}
		})
	}
}

// Who isn't waited for, and isn't ready, is named before the switch.
func TestUpdateLeavesBehind(t *testing.T) {
	for _, c := range []struct {
		args, phase string
	}{{"--yes", "committing"}, {"--dry-run", "prepared"}} {
		address := updates(t, map[string]varlink.Method{"Start": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			s := at(c.phase, "")
			s["participants"] = []object{{"name": "a", "owner": "/a.service", "state": "ready"},
				{"name": "b", "owner": "/b.service", "state": "vetoed", "reason": "no\x1b[2Jroom"}}
			if err := call.Continue(&varlink.Reply{Parameters: s}); err != nil {
				return nil, err
			}
			if c.phase == "prepared" {
				s = at("resumed", "it was a dry run, and everybody was ready")
			}
			return &varlink.Reply{Parameters: s}, nil
		}})
		got := updateTool(t, address, "update", c.args)
		if want := "holdfast: left behind: b (/b.service) vetoes: no [2Jroom\n"; got.status != 0 || got.stdout != "" || got.stderr != want {
			t.Errorf("%s: %+v", c.args, got)
		}
	}
}

var errBreak = errors.New("the connection breaks")

func TestUpdateAsksForWhatItIsTold(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, []byte("initrd"), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := ownCommandLine()
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	take := func(name string, answer any) varlink.Method {
		return func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				Target target `json:"target"`
				Force  bool   `json:"force,omitempty"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			indices := []int{in.Target.KernelFileDescriptor}
			if in.Target.InitrdFileDescriptor != nil {
				indices = append(indices, *in.Target.InitrdFileDescriptor)
			}
			text := name
			for _, i := range indices {
				f, err := call.TakeFD(i, "file")
				if err != nil {
					return nil, err
				}
				file := f.File("file")
				defer file.Close()
				data := make([]byte, 100)
				n, _ := file.Read(data)
				text += " " + string(data[:n])
			}
			if in.Force {
				text += " by force"
			}
			if in.Target.CommandLine != nil {
				text += " with " + *in.Target.CommandLine
			}
			asked = append(asked, text)
			return &varlink.Reply{Parameters: answer}, nil
		}
	}
	var refusal error
	findings := []object{{"id": "a", "severity": "warning", "text": "fine"}}
	check := take("Check", nil)
	address := updates(t, map[string]varlink.Method{
		"Load": take("Load", object{"commandLine": "x"}),
		"Unload": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			asked = append(asked, "Unload")
			return nil, nil
		},
		"Check": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
			r, err := check(ctx, call)
			if err == nil {
				r.Parameters = object{"findings": findings}
			}
			return r, err
		},
		"Start": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				TimeoutUSec *int64   `json:"timeoutUSec,omitempty"`
				DryRun      *bool    `json:"dryRun,omitempty"`
				Without     []string `json:"without,omitempty"`
				Force       *bool    `json:"force,omitempty"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			text, _ := json.Marshal(in)
			asked = append(asked, "Start "+string(text))
			if refusal != nil {
				return nil, refusal
			}
			return &varlink.Reply{Parameters: at("committing", "")}, nil
		},
	})
	for _, c := range []struct {
		args string
		want []string
	}{
		{"update --yes --cmdline=quiet --initrd " + initrd + " " + kernel, []string{"Load kernel initrd with quiet", "Start {}"}},
		{"update --yes --reuse-cmdline " + kernel, []string{"Load kernel with " + own, "Start {}"}},
		{"update --dry-run --initrd " + initrd + " " + kernel, []string{"Check kernel initrd", `Start {"dryRun":true}`}},
		{"update --yes --force " + kernel, []string{"Load kernel by force", `Start {"force":true}`}},
		{"update --yes", []string{"Start {}"}},
		{"update --yes --timeout 90s --without a --without b --force", []string{`Start {"timeoutUSec":90000000,"without":["a","b"],"force":true}`}},
		{"update --yes " + kernel, []string{"Load kernel", "Start {}"}},
		{"update --dry-run " + kernel, []string{"Check kernel", `Start {"dryRun":true}`}},
	} {
		asked = nil
		if got := updateTool(t, address, strings.Fields(c.args)...); got.status != 0 && !strings.Contains(c.args, "--dry-run") || !reflect.DeepEqual(asked, c.want) {
			t.Errorf("%s: asked for %q, %+v", c.args, asked, got)
		}
	}
	asked, refusal = nil, refusedWith("Blocked", object{"findings": []object{{"id": "b", "severity": "error", "text": "no store"}}})
	updateTool(t, address, "update", "--yes", kernel).failed(t, 3, "no store")
	if want := []string{"Load kernel", "Start {}", "Unload"}; !reflect.DeepEqual(asked, want) {
		t.Errorf("refused once it was loaded: asked for %q, want %q", asked, want)
	}
	findings = append(findings, object{"id": "b", "severity": "error", "text": "no LUO"})
	updateTool(t, address, "update", "--dry-run", kernel).failed(t, 3, "no LUO")
	updateTool(t, address, "update", "--yes", kernel+"-missing").failed(t, 1, "no such file")
	asked = nil
	updateTool(t, address, "update", "--yes", kernel, "--initrd", initrd+"-missing").failed(t, 1, "no such file")
	for _, args := range []string{"--initrd " + initrd, "--cmdline quiet", "--reuse-cmdline", kernel + " other", kernel + " --cmdline= --reuse-cmdline", "--timeout -1s", "--timeout 1ns", "--nonsense"} {
		updateTool(t, address, append([]string{"update", "--yes"}, strings.Fields(args)...)...).failed(t, 2, "")
	}
	updateTool(t, address, "update").failed(t, 2, "--yes")
	if asked != nil {
		t.Errorf("wrong usage, and asked for %q", asked)
	}
}

// PID 1 ends it on the way to the switch, which is a success; before that it only looks on.
func TestUpdateIsTerminated(t *testing.T) {
	for phase, status := range map[string]int{"committing": 0, "quiescing": 130} {
		t.Run(phase, func(t *testing.T) {
			address := updates(t, map[string]varlink.Method{"Start": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
				if err := call.Continue(&varlink.Reply{Parameters: at(phase, "")}); err != nil {
					return nil, err
				}
				<-ctx.Done()
				return nil, nil
			}})
			screen := onTerminal(t, address, "update", "--yes")
			screen.shows("update 3: " + phase)
			screen.cmd.Process.Signal(syscall.SIGTERM)
			if got := screen.ends(); got != status {
				t.Errorf("exit status %d, want %d", got, status)
			}
		})
	}
}

// What is on the terminal: the question, and then who is ready and who isn't, since when, at the same place each time.
func TestUpdateOnATerminal(t *testing.T) {
	next := make(chan object)
	address := updates(t, map[string]varlink.Method{
		"Status": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			return &varlink.Reply{Parameters: object{"round": 0, "phase": "idle", "loaded": true, "participants": []object{vm1}}}, nil
		},
		"Start": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
			for s := range next {
				if err := call.Continue(&varlink.Reply{Parameters: s}); err != nil {
					return nil, err
				}
			}
			return &varlink.Reply{Parameters: at("resumed", "it was cancelled: enough")}, nil
		},
	})
	const question = "This host switches to the kernel that is loaded. Services are stopped, and memory that is in no session is lost.\r\n1 participant will be asked to get ready first. Go on? [y/N] "
	no := onTerminal(t, address, "update")
	no.shows(question)
	no.types("n\n")
	no.shows("not begun, and nothing has changed")
	if got := no.ends(); got != 1 {
		t.Errorf("after no: exit status %d", got)
	}

	interrupted := onTerminal(t, address, "update")
	interrupted.shows(question)
	interrupted.types("\x03")
	interrupted.shows("not begun, and nothing has changed")
	if got := interrupted.ends(); got != 130 {
		t.Errorf("after Ctrl-C: exit status %d", got)
	}

	yes := onTerminal(t, address, "update")
	yes.shows(question)
	yes.types("y\n")
	next <- object{"round": 1, "phase": "preparing", "participants": []object{
		{"name": "vm1", "owner": "qemu/vm1", "required": true, "state": "ready", "sinceUSec": 9000000},
		{"name": "vm2", "owner": "qemu/vm2", "required": true, "state": "waiting", "sinceUSec": 60000000, "reason": "much to write"},
		{"name": "log", "owner": "/log.service", "required": false, "state": "waiting", "sinceUSec": 1000000},
	}}
	yes.shows("update 1: preparing, 1 of 3 ready\r\n  waiting  1m0s, vm2 (qemu/vm2), required: much to write\r\n  waiting  1s, log (/log.service), optional\r\n")
	// A second later, with no news, three lines higher.
	yes.shows("\x1b[3A\x1b[Jupdate 1: preparing, 1 of 3 ready\r\n  waiting  1m1s, vm2 (qemu/vm2), required: much to write\r\n  waiting  2s, log")
	close(next)
	yes.shows("called off, and everything runs on: it was cancelled: enough")
	if got := yes.ends(); got != 1 {
		t.Errorf("after a cancel: exit status %d", got)
	}
}

// patience is how long a terminal may take to show something.
const patience = 20 * time.Second

// screen is a terminal with the tool on it.
type screen struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	ended  chan struct{}

	mu   sync.Mutex
	text string
	more chan struct{} // closed when there is more text
}

func onTerminal(t *testing.T, address string, args ...string) *screen {
	t.Helper()
	// Opened this way, reads end with Close.
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	conn.Control(func(fd uintptr) {
		if number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	s := &screen{t: t, cmd: command(nowhere, args...), master: master, ended: make(chan struct{}), more: make(chan struct{})}
	s.cmd.Env = append(s.cmd.Env, "HOLDFAST_UPDATE_ADDRESS="+address)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		for some := make([]byte, 4096); ; {
			n, err := master.Read(some) // EIO once nobody has the other end open
			s.mu.Lock()
			s.text += string(some[:n])
			close(s.more)
			s.more = make(chan struct{})
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// shows waits until the text is there, and forgets it and what is before it.
func (s *screen) shows(text string) {
	s.t.Helper()
	for timeout := time.After(patience); ; {
		s.mu.Lock()
		more := s.more
		_, rest, found := strings.Cut(s.text, text)
		if found {
			s.text = rest
		}
		seen := s.text
		s.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-timeout:
			s.cmd.Process.Kill()
			s.t.Fatalf("the terminal does not show %q, but %q", text, seen)
		}
	}
}

func (s *screen) types(text string) {
	s.t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits for the end, and returns the exit status.
func (s *screen) ends() int {
	s.t.Helper()
	timer := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	s.cmd.Wait()
	<-s.ended
	return s.cmd.ProcessState.ExitCode()
}

func TestCancel(t *testing.T) {
	status := at("resumed", "")
	var then object // what follows that
	var refusal error
	cancelled := ""
	address := updates(t, map[string]varlink.Method{
		"Status": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			if then == nil || !call.More() {
				return &varlink.Reply{Parameters: status}, nil
			}
			return &varlink.Reply{Parameters: then}, call.Continue(&varlink.Reply{Parameters: status})
		},
		"Cancel": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				Reason *string `json:"reason"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			if refusal == nil && in.Reason != nil {
				cancelled, status = *in.Reason, at("resumed", "")
			}
			return nil, refusal
		},
	})
	if got := updateTool(t, address, "cancel"); got.status != 0 || got.stdout != "no update is under way\n" {
		t.Errorf("%+v", got)
	}
	status = at("preparing", "")
	if got := updateTool(t, address, "cancel", "--reason", "why"); got.status != 0 || got.stdout != "the update is off, and everything runs on\n" || cancelled != "why" {
		t.Errorf("%+v, %q", got, cancelled)
	}
	of := func(state string) object {
		s := at("aborted", "")
		s["participants"] = []object{{"name": "vm1", "owner": "qemu/vm1", "state": state}}
		return s
	}
	status, then = of("late"), object{"round": 3, "phase": "resumed", "participants": of("late")["participants"]} // and was before
	if got := updateTool(t, address, "cancel"); got.status != 0 {
		t.Errorf("%+v", got)
	}
	status = of("waiting")
	updateTool(t, address, "cancel").failed(t, 1, "not everybody has said that it runs on: vm1 (qemu/vm1) is late")
	then = nil
	// What is under way is called off, however long the list of all that is carried.
	status, cancelled = at("preparing", strings.Repeat("x", 1<<20)), ""
	updateTool(t, address, "cancel", "--reason", "why").failed(t, 1, "called off, but whether everything runs on can't be told")
	if cancelled != "why" {
		t.Error("it is not called off")
	}
	status, refusal = at("committing", ""), refusedWith("InProgress", object{"phase": "committing"})
	updateTool(t, address, "cancel").failed(t, 1, "it is too late: the update is committing")
	updateTool(t, nowhere, "cancel").failed(t, 1, "is holdfast-updated.socket started?")
}

// Ctrl-C while holdfast-updated still looks whether anything would be lost: it begins nothing then.
func TestUpdateIsTerminatedBeforeItBegins(t *testing.T) {
	starting := make(chan struct{})
	address := updates(t, map[string]varlink.Method{"Start": func(ctx context.Context, _ *varlink.Call) (*varlink.Reply, error) {
		close(starting)
		<-ctx.Done()
		return nil, nil
	}})
	screen := onTerminal(t, address, "update", "--yes")
	<-starting
	screen.cmd.Process.Signal(syscall.SIGINT)
	screen.shows("given up before it began")
	if got := screen.ends(); got != 130 {
		t.Errorf("exit status %d", got)
	}
}

// While a kernel is being loaded no round begins, and there is none to watch.
func TestQuiesceIsPatient(t *testing.T) {
	starts := 0
	t.Setenv("HOLDFAST_UPDATE_ADDRESS", updates(t, map[string]varlink.Method{
		"Start": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			starts++
			return nil, refusedWith("InProgress", object{"phase": "preparing"})
		},
		"Status": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			return &varlink.Reply{Parameters: at("idle", "")}, nil
		},
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*quiesceRetry)
	defer cancel()
	if err := quiesce(ctx, func(context.Context) (bool, error) { return true, nil }); err == nil || starts > 5 {
		t.Errorf("%v, after it was asked for %d times", err, starts)
	}
}

// What a plain systemctl kexec waits for.
func TestQuiesce(t *testing.T) {
	ready := func(call *varlink.Call) (*varlink.Reply, error) {
		return &varlink.Reply{Parameters: at("committing", "")}, call.Continue(&varlink.Reply{Parameters: at("preparing", "")})
	}
	breaks := func(*varlink.Call) (*varlink.Reply, error) { panic("the daemon dies") }
	inTheWay := func(*varlink.Call) (*varlink.Reply, error) {
		return nil, refusedWith("InProgress", object{"phase": "aborted"})
	}
	noAnswer := func(*varlink.Call) (*varlink.Reply, error) { return nil, errors.New("PID 1 does not answer") }
	off := func(*varlink.Call) (*varlink.Reply, error) {
		return &varlink.Reply{Parameters: at("resumed", "x")}, nil
	}
	denied := func(*varlink.Call) (*varlink.Reply, error) {
		return nil, refusedWith("NotPermitted", object{"reason": "only root"})
	}
	type start = func(*varlink.Call) (*varlink.Reply, error)
	for _, c := range []struct {
		name     string
		starts   []start
		phase    string // of the round in the way
		underWay int    // for so many looks
		err      string
	}{
		{"everybody gets ready", []start{ready}, "", 1, ""},
		{"the daemon is killed in between", []start{breaks, breaks, ready}, "", 3, ""},
		{"PID 1 is slow to answer the daemon", []start{noAnswer, ready}, "", 2, ""},
		{"another round is called off", []start{inTheWay, ready}, "resumed", 2, ""},
		{"another round gets everybody ready", []start{inTheWay}, "committing", 1, ""},
		{"the kexec is called off", []start{off}, "", 1, ""},
		{"it is not permitted", []start{denied}, "", 1, "only root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			starts, looks := make(chan start, len(c.starts)), 0
			for _, s := range c.starts {
				starts <- s
			}
			address := updates(t, map[string]varlink.Method{
				"Start": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) { return (<-starts)(call) },
				"Status": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
					return &varlink.Reply{Parameters: at(c.phase, "vetoed")}, nil
				},
			})
			t.Setenv("HOLDFAST_UPDATE_ADDRESS", address)
			err := quiesce(t.Context(), func(context.Context) (bool, error) { looks++; return looks <= c.underWay, nil })
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || len(starts) > 0 {
				t.Errorf("%v, and %d left", err, len(starts))
			}
		})
	}
}

func TestWait(t *testing.T) {
	outcomes := func(states ...string) (all []object) {
		for _, s := range states {
			all = append(all, object{"owner": "o", "name": "n", "state": s})
		}
		return all
	}
	for _, c := range []struct {
		name   string
		phase  string
		states []string
		then   []string // after a change
		status int
		says   string
	}{
		{"nothing to wait for", "idle", nil, nil, 0, ""},
		{"all came back", "idle", []string{"reclaimed", "released"}, nil, 0, ""},
		{"one is on its way", "idle", []string{"waiting"}, []string{"reclaimed"}, 0, ""},
		{"one is lost", "idle", []string{"waiting"}, []string{"lost"}, 1, "n of o is lost"},
		{"one is overdue", "idle", []string{"overdue", "reclaimed"}, nil, 1, "n of o is overdue"},
		{"one never comes", "idle", []string{"waiting"}, nil, 4, "waiting for n of o is waiting"},
		{"a round is under way", "quiescing", nil, nil, 4, "update 3 is quiescing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := updates(t, map[string]varlink.Method{"Status": func(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
				s := at(c.phase, "")
				s["outcomes"] = outcomes(c.states...)
				if err := call.Continue(&varlink.Reply{Parameters: s}); err != nil {
					return nil, err
				}
				if c.then != nil {
					s["outcomes"] = outcomes(c.then...)
					call.Continue(&varlink.Reply{Parameters: s})
				}
				<-ctx.Done()
				return nil, nil
			}})
			timeout := "1m"
			if c.status == 4 {
				timeout = "100ms"
			}
			got := updateTool(t, address, "wait", "--settled", "-t", timeout)
			if c.status != 0 {
				got.failed(t, c.status, c.says)
			} else if got.status != 0 || got.stderr != "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestStatusOfAnUpdate(t *testing.T) {
	address := updates(t, map[string]varlink.Method{"Status": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
		s := at("preparing", "")
		s["outcomes"] = []object{{"owner": "qemu/vm2", "name": "ram", "state": "overdue"}}
		return &varlink.Reply{Parameters: s}, nil
	}})
	got := updateTool(t, address, "status")
	for _, part := range []string{"update 3: preparing, 0 of 1 ready", "vetoed", "vm1 (qemu/vm1), required: migrating", "ram of qemu/vm2 is overdue"} {
		if !strings.Contains(got.stdout, part) {
			t.Errorf("%q isn't in:\n%s", part, got.stdout)
		}
	}
	if got := updateTool(t, address, "status", "--watch"); got.status != 0 || !strings.HasPrefix(got.stdout, "update 3: preparing, 0 of 1 ready;   vetoed") {
		t.Errorf("%+v", got)
	}
	var s roundStatus
	if got := updateTool(t, address, "status", "--watch", "--json"); got.status != 0 || json.Unmarshal([]byte(got.stdout), &s) != nil || s.Round != 3 || strings.Count(got.stdout, "\n") != 1 {
		t.Errorf("%+v", got)
	}
}

func TestLines(t *testing.T) {
	s := roundStatus{Round: 1, Phase: "quiescing"}
	for range 30 {
		s.Participants = append(s.Participants, participant{Name: "a", Owner: "o", State: "waiting"})
	}
	if lines := s.lines(); len(lines) != shownMost+2 || lines[len(lines)-1] != "  and 14 more" || lines[0] != "update 1: quiescing, 0 of 30 ready" {
		t.Errorf("%q", lines)
	}
	var drawn strings.Builder
	screen := &terminal{w: &drawn}
	screen.draw([]string{"one", strings.Repeat("x", 100)})
	screen.draw([]string{"two"})
	if want := "one\n" + strings.Repeat("x", 78) + "…\n\x1b[2A\x1b[Jtwo\n"; drawn.String() != want {
		t.Errorf("%q", drawn.String())
	}
}
