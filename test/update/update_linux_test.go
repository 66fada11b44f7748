// SPDX-License-Identifier: MIT

package update

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

func TestTwenty(t *testing.T) {
	var members []member
	for i := range 19 {
		members = append(members, member{name: fmt.Sprintf("m%d", i)})
	}
	members = append(members, member{name: "mute", optional: true, lost: true})
	update(t, nil, members, func(h *host) {
		h.participants[3].manner("hang") // two that are slow
		h.participants[4].manner("hang")
		h.participants[5].manner("extend")
		h.participants[19].manner("hang") // never answers
		h.load()
		h.start("update", "--yes", "--timeout", "6s")
		h.participants[5].sees("extended")
		h.comesTo("all but these are ready", func(s status) bool {
			return s.of("m18") == "ready" && s.of("m3") == "waiting" && s.of("m4") == "waiting" && s.of("m5") == "waiting" && s.of("mute") == "waiting"
		})
		h.participants[3].do("go")
		h.participants[4].do("go")
		h.comesTo("who is optional is not waited for any more", func(s status) bool { return s.of("mute") == "late" && s.of("m5") == "waiting" })
		h.switches()
	})
}

func TestNothingLoaded(t *testing.T) {
	update(t, nil, three, func(h *host) {
		h.tool("update", "--yes").failed(t, 1, "no kernel is loaded")
		h.heardNothing()
	})
}

func TestDryRun(t *testing.T) {
	update(t, nil, three, func(h *host) {
		if got := h.tool("update", "--dry-run"); got.status != 0 || got.stderr != "" {
			t.Errorf("%+v", got)
		}
		h.runsOn("dry run")
		h.load()
		h.tool("update", "--dry-run")
		if loaded, _ := os.ReadFile("/sys/kernel/kexec_loaded"); strings.TrimSpace(string(loaded)) != "1" {
			t.Errorf("the dry run has unloaded the kernel: %q", loaded)
		}
	})
}

func TestVeto(t *testing.T) {
	update(t, nil, three, func(h *host) {
		for _, manner := range []string{"veto", "veto-quiesce"} {
			h.participants[1].manner(manner)
			h.load()
			h.tool("update", "--yes").failed(t, 4, "b (test) vetoes: not ")
			h.runsOn("b (test) vetoes: not ")
		}
	})
}

func TestDeadline(t *testing.T) {
	update(t, nil, three, func(h *host) {
		for _, manner := range []string{"hang", "hang-quiesce"} {
			h.participants[2].manner(manner)
			h.load()
			h.tool("update", "--yes", "--timeout", "1s").failed(t, 4, "c (test) is late")
			h.runsOn("c (test) did not answer")
		}
	})
}

func TestWithout(t *testing.T) {
	update(t, nil, []member{{name: "x", optional: true, lost: true}, {name: "a", lost: true}, {name: "b"}}, func(h *host) {
		h.participants[0].manner("veto")
		h.participants[1].manner("hang")
		h.load()
		h.start("update", "--yes", "--without", "a")
		h.switches()
	})
}

// switches waits for the end of this kernel.
func (h *host) switches() {
	h.t.Helper()
	<-time.After(patience) // the end comes before
	h.t.Fatal("the host still runs")
}

func TestCancel(t *testing.T) {
	update(t, nil, three, func(h *host) {
		for _, c := range []struct{ manner, phase string }{{"hang", "preparing"}, {"hang-quiesce", "quiescing"}} {
			h.participants[0].manner(c.manner)
			h.load()
			wait := h.start("update", "--yes")
			h.phase(c.phase)
			if got := h.tool("cancel", "--reason", "second thoughts"); got.status != 0 {
				t.Errorf("cancel: %+v", got)
			}
			wait().failed(t, 1, "second thoughts")
			h.runsOn("second thoughts")
		}
		if got := h.tool("cancel"); got.status != 0 || !strings.Contains(got.stdout, "no update") {
			t.Errorf("a cancel of nothing: %+v", got)
		}
	})
}

// What others see meanwhile.
func TestWatch(t *testing.T) {
	update(t, nil, three, func(h *host) {
		watch := h.command("holdfast", "status", "--watch", "--json")
		out, err := watch.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		h.tool("wait", "--settled", "-t", "20s").is(t, 0)
		h.participants[0].manner("hang")
		h.load()
		wait := h.start("update", "--yes")
		h.phase("preparing")
		h.tool("wait", "--settled", "-t", "200ms").failed(t, 4, "not settled after 200ms: update 1 is preparing")
		settled := h.start("wait", "--settled")
		h.tool("cancel")
		wait().failed(t, 1, "it was cancelled")
		settled().is(t, 0)
		h.runsOn("it was cancelled")

		lines := bufio.NewScanner(out)
		var phases []string
		for lines.Scan() {
			var s status
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				t.Fatal(err)
			}
			if phases == nil || phases[len(phases)-1] != s.Phase {
				phases = append(phases, s.Phase)
			}
			if s.Phase == "resumed" {
				watch.Process.Signal(os.Interrupt)
			}
		}
		watch.Wait()
		// It may be so quick that not each is seen.
		if got := strings.Join(phases, " "); !strings.HasPrefix(got, "idle preparing") || !strings.HasSuffix(got, "resumed") || watch.ProcessState.ExitCode() != 0 {
			t.Errorf("seen: %s; %v", got, watch.ProcessState)
		}
	})
}

func TestParticipantIsKilled(t *testing.T) {
	update(t, nil, three, func(h *host) {
		for _, c := range []struct{ manner, phase string }{{"hang", "preparing"}, {"hang-quiesce", "quiescing"}} {
			h.participants[1].manner(c.manner)
			h.load()
			wait := h.start("update", "--yes")
			h.phase(c.phase)
			kill(h.participants[1].cmd)
			wait().failed(t, 4, "b (test) is gone")
			others := h.participants
			h.participants = []*process{others[0], others[2]}
			h.runsOn("the connection of b (test) ended")
			h.participants = others
			h.join(1, three[1])
		}
	})
}

func TestDaemonIsKilled(t *testing.T) {
	for _, c := range []struct{ manner, phase string }{{"hang", "preparing"}, {"hang-quiesce", "quiescing"}} {
		t.Run("holdfastd, "+c.phase, func(t *testing.T) {
			update(t, nil, three, func(h *host) {
				h.participants[0].manner(c.manner)
				h.load()
				wait := h.start("update", "--yes")
				h.phase(c.phase)
				kill(h.holdfastd)
				h.startHoldfastd()
				wait().failed(t, 1, "holdfastd ended")
				h.runsOn("holdfastd ended")
			})
		})
		t.Run("holdfast-updated, "+c.phase, func(t *testing.T) {
			update(t, nil, three, func(h *host) {
				h.participants[0].manner(c.manner)
				h.load()
				wait := h.start("update", "--yes")
				h.phase(c.phase)
				kill(h.updated)
				h.startUpdated()
				wait().failed(t, 1, "holdfast-updated ended")
				h.runsOn("the connection to holdfast-updated broke")
			})
		})
		t.Run("stopped, "+c.phase, func(t *testing.T) {
			update(t, nil, three, func(h *host) {
				h.participants[0].manner(c.manner)
				h.load()
				wait := h.start("update", "--yes")
				h.phase(c.phase)
				h.updated.Process.Signal(syscall.SIGTERM)
				h.updated.Wait()
				h.startUpdated()
				wait().failed(t, 1, "holdfast-updated was stopped")
				h.runsOn("holdfast-updated was stopped")
			})
		})
	}
}

// The update goes on when its terminal is closed.
func TestTerminalIsClosed(t *testing.T) {
	update(t, nil, three, func(h *host) {
		h.participants[0].manner("hang")
		h.load()
		ended := h.onTerminal("update", "--yes")
		h.phase("preparing")
		ended()
		if got := h.phase("preparing"); got.of("a") != "waiting" {
			t.Errorf("%+v", got)
		}
		if got := h.tool("cancel"); got.status != 0 {
			t.Errorf("cancel: %+v", got)
		}
		h.runsOn("it was cancelled")

		h.participants[0].manner("hang")
		h.load()
		ended = h.onTerminal("update", "--yes")
		h.phase("preparing")
		ended()
		h.participants[0].do("go")
		h.switches()
	})
}

// onTerminal starts holdfast on a terminal. The function closes that, and waits for holdfast's end.
func (h *host) onTerminal(args ...string) func() {
	h.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := h.command("holdfast", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	slave.Close()
	return func() {
		h.t.Helper()
		master.Close()
		cmd.Wait()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGHUP {
			h.t.Errorf("holdfast ended otherwise than by its terminal: %v", cmd.ProcessState)
		}
	}
}

// Ctrl-C ends the watching only.
func TestDetach(t *testing.T) {
	update(t, nil, three, func(h *host) {
		h.participants[0].manner("hang")
		h.load()
		cmd := h.command("holdfast", "update", "--yes")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		h.phase("preparing")
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		result{cmd.ProcessState.ExitCode(), "", stderr.String()}.failed(t, 130, "holdfast cancel")
		h.phase("preparing")
		h.tool("update", "--yes").failed(t, 1, "preparing already")
		h.tool("cancel")
		h.runsOn("it was cancelled")
	})
}

func TestFreezeFails(t *testing.T) {
	update(t, []string{"freeze=1@1"}, three, func(h *host) {
		h.load()
		h.tool("update", "--yes").failed(t, 1, "the switch failed: reboot(KEXEC)")
		h.runsOn("the switch failed")
	})
}

// raw is a participant that answers by hand.
type raw struct {
	t     *testing.T
	id    string
	said  chan joined
	leave func()
}

type joined struct {
	ID    string
	Round int
	Phase string
}

func (h *host) joinRaw(name string) *raw {
	h.t.Helper()
	conn, err := varlink.Dial(h.t.Context(), os.Getenv("HOLDFAST_UPDATE_ADDRESS"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	r := &raw{t: h.t, said: make(chan joined, 16), leave: func() { conn.Close() }}
	go conn.CallMore(h.t.Context(), "io.holdfast.Update.Join", map[string]string{"name": name}, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
		fd.CloseAll(fds)
		var j joined
		err := json.Unmarshal(parameters, &j)
		r.said <- j
		return err
	})
	r.id = (<-r.said).ID
	return r
}

// hears waits for a phase.
func (r *raw) hears(phase string) joined {
	r.t.Helper()
	for {
		if j := <-r.said; j.Phase == phase {
			return j
		}
	}
}

// votes returns the error's name, or "".
func (r *raw) votes(round int, phase string, ready bool) string {
	r.t.Helper()
	conn, err := varlink.Dial(r.t.Context(), os.Getenv("HOLDFAST_UPDATE_ADDRESS"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	in := map[string]any{"id": r.id, "round": round, "phase": phase, "ready": ready}
	_, err = conn.Call(r.t.Context(), "io.holdfast.Update.Vote", in, nil, nil)
	var refused *varlink.Error
	if errors.As(err, &refused) {
		return refused.Name
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return ""
}

func TestLateVote(t *testing.T) {
	update(t, nil, three, func(h *host) {
		const stale = "io.holdfast.Update.StaleVote"
		late := h.joinRaw("late")
		h.load()
		wait := h.start("update", "--yes")
		first := late.hears("preparing")
		cancelled := h.start("cancel", "--reason", "enough")
		late.hears("aborted")
		if got := late.votes(first.Round, "preparing", true); got != stale {
			t.Errorf("a vote of an aborted round: %q", got)
		}
		if got := late.votes(first.Round, "aborted", true); got != "" {
			t.Errorf("the participant runs on, and is answered %q", got)
		}
		late.hears("resumed")
		if got := cancelled(); got.status != 0 {
			t.Errorf("cancel: %+v", got)
		}
		wait().failed(t, 1, "enough")
		h.runsOn("enough")

		h.load()
		wait = h.start("update", "--yes")
		second := late.hears("preparing")
		for _, phase := range []string{"preparing", "quiescing", "aborted"} {
			if got := late.votes(first.Round, phase, true); got != stale {
				t.Errorf("a vote of an earlier round for %s: %q", phase, got)
			}
		}
		h.comesTo("the others are ready", func(s status) bool {
			return s.of("a") == "ready" && s.of("b") == "ready" && s.of("c") == "ready"
		})
		if got := h.phase("preparing"); got.of("late") != "waiting" {
			t.Errorf("a late vote counts: %+v", got)
		}
		if got := late.votes(second.Round, "preparing", true); got != "" {
			t.Errorf("a good vote: %q", got)
		}
		late.hears("quiescing")
		if got := late.votes(second.Round, "quiescing", false); got != "" {
			t.Errorf("a veto: %q", got)
		}
		late.hears("aborted")
		late.votes(second.Round, "aborted", true)
		wait().failed(t, 4, "late (test) vetoes")
		late.leave()
		h.runsOn("late (test) vetoes")
	})
}
