// SPDX-License-Identifier: MIT

package update

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/luosim"

	// What "holdfast run" is made of: "go test" must not take an earlier result for today's when that has changed.
	_ "github.com/holdfast-project/holdfast/internal/run"
)

// What tells this program that it is to be the command of "holdfast run", and where it says how it is.
const commandVariable = "UPDATE_TEST_COMMAND"

// runMemory is larger than what can be taken for zero by chance, and small.
const runMemory = 1 << 20

// state is what the command says of itself.
type state struct {
	PID        int
	Start      string
	Generation string
	Word       string // drawn at the first start, and all over the memory since
	Meta       string // in the file beside it: the word, if it was stopped well
	Resize     string // what came of resizing the memory when it was asked to (SIGHUP)
}

// command keeps a word in its memory. On SIGUSR1 it leaves the word in a file too, and exits with status 0. It dies of SIGTERM,
// ignores SIGUSR1 while there is a file "deaf", and tries to resize its memory on SIGHUP.
func command(dir string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	f, err := os.OpenFile(filepath.Join(dir, "link"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, runMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	s := state{PID: os.Getpid(), Start: os.Getenv("HOLDFAST_START"), Generation: os.Getenv("HOLDFAST_GENERATION")}
	meta := filepath.Join(dir, "meta")
	if s.Start == "fresh" {
		word := make([]byte, 16)
		rand.Read(word)
		for i := 0; i < len(mem); i += len(word) {
			copy(mem[i:], word)
		}
	}
	s.Word = hex.EncodeToString(mem[:16])
	for i := 0; i < len(mem); i += 16 {
		if hex.EncodeToString(mem[i:i+16]) != s.Word {
			s.Word = fmt.Sprintf("half, from %d on", i)
			break
		}
	}
	if text, err := os.ReadFile(meta); err == nil {
		s.Meta = string(text)
	}
	os.Remove(meta)
	for {
		text, err := json.Marshal(s)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "state.new"), text, 0o600)
		}
		if err == nil {
			err = os.Rename(filepath.Join(dir, "state.new"), filepath.Join(dir, "state"))
		}
		if err != nil {
			return err
		}
		switch <-signals {
		case syscall.SIGHUP:
			s.Resize = fmt.Sprint(f.Truncate(runMemory/2), f.Truncate(runMemory))
		case syscall.SIGUSR1:
			if _, err := os.Stat(filepath.Join(dir, "deaf")); err == nil {
				continue
			}
			return os.WriteFile(meta, []byte(s.Word), 0o640)
		}
	}
}

// runs starts "holdfast run" with the command, and returns its process and what waits for its end.
func (h *host) runs(flags ...string) (*exec.Cmd, func() result) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	os.Remove(h.statePath())
	args := append([]string{"run", "--park", "--stop-signal", "USR1", "--file", "meta:" + filepath.Join(h.dir, "meta")}, flags...)
	cmd := h.command("holdfast", append(args, "--", self)...)
	cmd.Env = append(os.Environ(), commandVariable+"="+h.dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	h.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	return cmd, func() result {
		h.t.Helper()
		select {
		case err := <-ended:
			ended <- err
			return result{cmd.ProcessState.ExitCode(), "", stderr.String()}
		case <-time.After(patience):
			h.t.Fatal("holdfast run doesn't end")
			return result{}
		}
	}
}

func (h *host) statePath() string { return filepath.Join(h.dir, "state") }

func (h *host) mem(size string) string {
	return "data=" + size + ":" + filepath.Join(h.dir, "link")
}

// comes waits until another command than that of the PID says how it is.
func (h *host) comes(notPID int) (s state) {
	h.t.Helper()
	h.eventually("the command runs", func() bool {
		text, err := os.ReadFile(h.statePath())
		return err == nil && json.Unmarshal(text, &s) == nil && s.PID != notPID
	})
	return s
}

func (h *host) sig(p int, s syscall.Signal) {
	h.t.Helper()
	if err := syscall.Kill(p, s); err != nil {
		h.t.Fatal(err)
	}
}

// gone waits until there is no such process.
func (h *host) gone(pid int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("process %d has ended", pid), func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

func (s state) is(t *testing.T, start, generation, word string) {
	t.Helper()
	meta := ""
	if start != "fresh" {
		meta = word
	}
	if s.Start != start || s.Generation != generation || s.Word != word || s.Meta != meta {
		t.Errorf("the command has %+v; want it started %q, generation %s, with %s", s, start, generation, word)
	}
}

// A command that knows nothing of updates: what it left is there after a stop, an update that is called off, and one that
// isn't; and after a death there is nothing, instead of a half.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root: nobody else may start an update")
	}
	luosim.Run(t, luosim.Machine{}, runBeforeUpdate, runAfterUpdate)
}

// runHost has an orchestrator with a keeper, which holdfastd has in a service of systemd only.
func runHost(t *testing.T) *host {
	shelf := &custodytest.Shelf{}
	t.Cleanup(shelf.Close)
	return newHostWith(t, []member{{name: "a"}}, func() { orchestratortest.Dial(t, nil, shelf) })
}

func runBeforeUpdate(t *testing.T) {
	h := runHost(t)
	size := h.mem("1M")
	_, wait := h.runs("--mem", h.mem("2000000G"))
	wait().failed(t, 1, "too little memory")
	os.Remove(filepath.Join(h.dir, "link")) // of an earlier run of this test
	h.write("link", "")
	_, wait = h.runs("--mem", size)
	wait().failed(t, 1, "exists, and isn't a link")
	os.Remove(filepath.Join(h.dir, "link"))

	// Stopped and started again.
	cmd, wait := h.runs("--mem", size)
	first := h.comes(0)
	first.is(t, "fresh", "0", first.Word)
	cmd.Process.Signal(syscall.SIGTERM)
	h.stopped(wait)
	_, wait = h.runs("--mem", h.mem("2M"))
	wait().failed(t, 1, "1048576 bytes in what is kept, and 2097152 by --mem")
	_, wait = h.runs("--mem", size)
	second := h.comes(0)
	second.is(t, "restart", "1", first.Word)

	// Killed: of the next start's memory nothing is the old one.
	h.sig(second.PID, syscall.SIGKILL)
	wait().failed(t, 128+9, "was killed by SIGKILL")
	cmd, _ = h.runs("--mem", size)
	third := h.comes(second.PID)
	third.is(t, "fresh", "0", third.Word)
	cmd.Process.Kill()
	h.gone(third.PID)
	cmd, wait = h.runs("--mem", size, "--restart")
	fourth := h.comes(third.PID)
	fourth.is(t, "fresh", "0", fourth.Word)
	if fourth.Word == third.Word || third.Word == first.Word {
		t.Errorf("a clean start has the memory of an earlier one: %q, %q, %q", first.Word, third.Word, fourth.Word)
	}
	// By choice the memory that it crashed on.
	h.sig(fourth.PID, syscall.SIGKILL)
	fifth := h.comes(fourth.PID)
	if fifth.Word != fourth.Word || fifth.Start != "crash" {
		t.Errorf("after a crash with --restart it has %+v, and had %+v", fifth, fourth)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	h.stopped(wait)

	cmd, _ = h.runs("--mem", size, "--stop-timeout", "1s")
	sixth := h.comes(fifth.PID)
	sixth.is(t, "restart", "1", fourth.Word)
	h.comesTo("the command is a participant", func(s status) bool { return s.of("run") != "absent" })
	calledOff := func(manner, phase string, meanwhile func()) {
		h.participants[0].manner(manner)
		h.load()
		wait := h.start("update", "--yes")
		h.phase(phase)
		meanwhile()
		h.tool("cancel").is(t, 0)
		wait().failed(t, 1, "it was cancelled")
		h.participants[0].manner("")
	}
	// While the memory is preserved it can't be resized. Signals reach the command.
	calledOff("hang", "preparing", func() {
		cmd.Process.Signal(syscall.SIGHUP)
		h.eventually("the command has tried to resize its memory", func() bool { return h.comes(0).Resize != "" })
		if got := h.comes(0); got.PID != sixth.PID || strings.Count(got.Resize, "operation not permitted") != 1 {
			t.Errorf("resizing memory that is preserved: %+v", got)
		}
	})
	// Called off when it has stopped and committed: it is started again on what it left.
	calledOff("hang-quiesce", "quiescing", func() {})
	seventh := h.comes(sixth.PID)
	seventh.is(t, "restart", "1", fourth.Word)
	// One that it doesn't stop for: called off, and it runs on.
	h.write("deaf", "")
	h.load()
	h.tool("update", "--yes").failed(t, 4, "run (test) vetoes", "has not ended")
	if now := h.comes(0); now.PID != seventh.PID {
		t.Errorf("a command that doesn't stop was started again: %+v", now)
	}
	os.Remove(filepath.Join(h.dir, "deaf"))
	h.write("../word", fourth.Word)
	h.load()
	got := h.tool("update", "--yes")
	t.Fatalf("the host still runs after a good update: exit status %d, %s", got.status, got.stderr)
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func runAfterUpdate(t *testing.T) {
	h := runHost(t)
	word, err := os.ReadFile(filepath.Join(os.Getenv(binariesVariable), "word"))
	if err != nil {
		t.Fatal(err)
	}
	_, wait := h.runs("--mem", h.mem("2M"))
	wait().failed(t, 1, "1048576 bytes in what is kept, and 2097152 by --mem")
	cmd, wait := h.runs("--mem", h.mem("1M"))
	s := h.comes(0)
	s.is(t, "update", "2", string(word))
	cmd.Process.Signal(syscall.SIGTERM)
	h.stopped(wait)
	cmd, _ = h.runs("--mem", h.mem("1M"))
	s = h.comes(0)
	s.is(t, "restart", "3", string(word))
	cmd.Process.Kill()
	h.gone(s.PID)
	h.runs("--mem", h.mem("1M"))
	s = h.comes(s.PID)
	s.is(t, "fresh", "0", s.Word)
	if s.Word == string(word) {
		t.Error("the memory of a command that was killed came back")
	}
}

// stopped waits for a run that was told to end, and has kept its memory.
func (h *host) stopped(wait func() result) {
	h.t.Helper()
	if got := wait(); got.status != 0 {
		h.t.Errorf("holdfast run was told to end: exit status %d, %s", got.status, got.stderr)
	}
}
