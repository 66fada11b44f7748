// SPDX-License-Identifier: MIT

package run

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/luosim"
)

// emulated runs a test under an emulated kernel, with an orchestrator that keeps what is parked.
func emulated(t *testing.T, test func(t *testing.T, client *holdfast.Client)) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		shelf := &custodytest.Shelf{}
		t.Cleanup(shelf.Close)
		test(t, orchestratortest.Dial(t, nil, shelf))
	})
}

// runs is a runner whose command, a script, runs. Its descriptor 3 is its memory.
func runs(t *testing.T, client *holdfast.Client, script string, c Config) *runner {
	t.Helper()
	c.Session, c.Park, c.Command = "run", true, []string{"/bin/sh", "-c", script}
	c.Memory, c.StopSignal = []Memory{{Name: "data", Size: 4096}}, syscall.SIGTERM
	if c.StopTimeout == 0 {
		c.StopTimeout = patience
	}
	r := &runner{Config: c, client: client, say: t.Logf, again: make(chan struct{}, 1), phase: pausing}
	var err error
	if r.memory, err = begin(t.Context(), c, client, r.say); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.memory.close)
	if status, err := r.start(true); err != nil {
		t.Fatal(status, err)
	}
	t.Cleanup(func() { r.child.Kill() })
	return r
}

// comesBack checks of which generation the memory is at the next start, and what it begins with.
func comesBack(t *testing.T, client *holdfast.Client, how string, generation uint64, text string) {
	t.Helper()
	m, err := begin(t.Context(), Config{Session: "run", Memory: []Memory{{Name: "data", Size: 4096}}}, client, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	got := make([]byte, len(text))
	if _, err := m.files[0].ReadAt(got, 0); err != nil || m.how != how || m.generation != generation || string(got) != text {
		t.Errorf("%s, generation %d, %q, %v; want %s, %d, %q", m.how, m.generation, got, err, how, generation, text)
	}
}

// committedInARound is what quiesce leaves.
func committedInARound(t *testing.T, r *runner) {
	t.Helper()
	session, err := r.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	r.session, r.asked = session, true
	_, err = r.child.Stop(soon(t))
	if err := errors.Join(r.preserve(session), err, r.commit(t.Context(), session)); err != nil {
		t.Fatal(err)
	}
	r.phase = committed
}

func TestToldToEndWhileAnUpdateIsCalledOff(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "echo x >&3; exec sleep 1000", Config{})
		r.wrote(t, "x")
		committedInARound(t, r)
		// What the round held is given up first, then this process is told.
		r.session.Close()
		if err := client.Release(t.Context(), "run"); err != nil {
			t.Fatal(err)
		}
		r.leaving = true
		r.abort("called off")
		if status, err := r.end(nil, nil); status != 0 || err != nil {
			t.Fatal(status, err)
		}
		comesBack(t, client, restart, 1, "x\n")
	})
}

func TestToldToEndInARoundThatHasCommitted(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "echo x >&3; exec sleep 1000", Config{})
		r.wrote(t, "x")
		committedInARound(t, r)
		r.leaving = true
		r.abort("the participant was closed")
		if status, err := r.end(nil, nil); status != 0 || err != nil {
			t.Fatal(status, err)
		}
		comesBack(t, client, restart, 1, "x\n")
	})
}

// A record that can't be understood, or not be read, is no reason to throw away what is kept.
func TestAnotherVersionsRecordIsLeftAlone(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "echo x >&3; exec sleep 1000", Config{})
		r.wrote(t, "x")
		if status, err := r.end(nil, nil); status != 0 || err != nil {
			t.Fatal(status, err)
		}
		was := make([]byte, recordSize)
		if _, err := r.memory.record.ReadAt(was, 0); err != nil {
			t.Fatal(err)
		}
		text := []byte(`{"version":2}`)
		data := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
		data = append(data, text...)
		sum := sha256.Sum256(data)
		r.memory.record.WriteAt(append(sum[:], data...), 0)
		_, err := begin(t.Context(), r.Config, client, t.Logf)
		if err == nil || !strings.Contains(err.Error(), "has version 2") {
			t.Errorf("%v", err)
		}
		r.memory.record.WriteAt(was, 0)
		comesBack(t, client, restart, 1, "x\n")
	})
}

// A death between the two steps of a start leaves a clean start; where the command can't be executed, nothing is lost.
func TestMemoryIsTakenBeforeTheCommandStarts(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "echo x >&3; exec sleep 1000", Config{})
		r.wrote(t, "x")
		if status, err := r.end(nil, nil); status != 0 || err != nil {
			t.Fatal(status, err)
		}
		r.Command = []string{"/nowhere/such"}
		next := &runner{Config: r.Config, client: client, say: t.Logf, again: make(chan struct{}, 1), phase: pausing}
		begins := func() {
			t.Helper()
			var err error
			if next.memory, err = begin(t.Context(), r.Config, client, t.Logf); err != nil {
				t.Fatal(err)
			}
		}
		begins()
		if status, err := next.start(true); status != 127 || err == nil {
			t.Error(status, err)
		}
		next.memory.close()
		comesBack(t, client, restart, 1, "x\n")
		begins()
		if err := next.memory.take(); err != nil {
			t.Fatal(err)
		}
		next.memory.close() // as by SIGKILL
		comesBack(t, client, fresh, 0, "\x00\x00")
	})
}

func TestWhatNobodyWouldKeepIsRefused(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		client := orchestratortest.Dial(t, nil, nil)
		t.Setenv("NOTIFY_SOCKET", "")
		for park, says := range map[bool]string{true: "--park leaves out", false: "isn't a service"} {
			r := &runner{Config: Config{Session: "run", Park: park, Memory: []Memory{{Name: "data", Size: 4096}}}, client: client, say: t.Logf}
			if err := r.choose(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody would keep the memory: ") || !strings.Contains(err.Error(), says) {
				t.Errorf("--park %v: %v", park, err)
			}
		}
	})
}

// wrote waits until the command's memory begins so.
func (r *runner) wrote(t *testing.T, text string) {
	t.Helper()
	got := make([]byte, len(text))
	eventually(t, func() bool {
		_, err := r.memory.files[0].ReadAt(got, 0)
		return err == nil && string(got) == text
	})
}

// eventually polls what there is no event for.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for start := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("it doesn't come to this")
		}
	}
}

func TestACommandIsNotAskedTwiceWhereItsStopGoesOn(t *testing.T) {
	c, says := command(t, `n=0; sleep 1000 & s=$!
		trap 'n=$((n+1)); echo heard $n >&3' TERM; trap 'kill $s; exit $((n-1))' USR1
		echo up >&3; while :; do wait $s; done`, childConfig{})
	says.expect("up")
	stopBrokenOff(t, c, says)
	asked := c.request
	ended := make(chan ending, 1)
	go func() {
		e, err := c.GoOnStopping(soon(t))
		if err != nil {
			t.Error(err)
		}
		ended <- e
	}()
	if err := c.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e != (ending{}) {
		t.Errorf("%s", e)
	}
	if c.request != asked {
		t.Error("it was asked again")
	}
}

func TestAStopCommandThatFailedIsRunAgainWhereTheStopGoesOn(t *testing.T) {
	once := filepath.Join(t.TempDir(), "once")
	c, says := command(t, hears, childConfig{StopCommand: fmt.Sprintf("test -e %s && kill -USR1 $MAINPID || { >%s; exit 1; }", once, once)})
	says.expect("up")
	if _, err := c.Stop(soon(t)); err == nil {
		t.Error("it didn't fail")
	}
	if e, err := c.GoOnStopping(soon(t)); e != (ending{}) || err != nil {
		t.Error(e, err)
	}
}

// The second time is for a command that doesn't stop, and for nothing else.
func TestToldToEndTwice(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "trap 'echo heard >&3' TERM; echo up >&3; while :; do sleep 0.01; done", Config{})
		r.wrote(t, "up")
		signals := make(chan os.Signal, 1)
		ended := make(chan error, 1)
		go func() {
			_, err := r.end(nil, signals)
			ended <- err
		}()
		r.wrote(t, "up\nheard")
		signals <- syscall.SIGTERM
		if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "it is killed") {
			t.Error(err)
		}
		if e := r.child.Ending(); e.Signal != syscall.SIGKILL {
			t.Errorf("it %s", e)
		}
		comesBack(t, client, fresh, 0, "\x00")
	})
}

func TestToldToEndTwiceWhenTheCommandHasStopped(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r := runs(t, client, "echo x >&3; exec sleep 1000", Config{})
		r.wrote(t, "x")
		// It has ended by the time that this comes.
		r.asked = true
		if _, err := r.child.Stop(soon(t)); err != nil {
			t.Fatal(err)
		}
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGTERM
		signals <- syscall.SIGINT
		if status, err := r.end(nil, signals); status != 0 || err != nil {
			t.Fatal(status, err)
		}
		comesBack(t, client, restart, 1, "x\n")
	})
}

// What is ignored by whoever starts it, as SIGHUP here, stays so. The role "survivor" is a "holdfast run" that says something to nobody.
func TestAClosedStandardErrorIsSurvived(t *testing.T) {
	emulated(t, func(t *testing.T, client *holdfast.Client) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		dir := t.TempDir()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		survivor := exec.Command("/bin/sh", "-c", `trap "" HUP; exec "$0"`, self) // as nohup(1) does
		survivor.Env = append(os.Environ(), roleVariable+"=survivor", "SURVIVOR_STATUS="+filepath.Join(dir, "status"))
		survivor.Stderr = w
		err = survivor.Start()
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		var status []byte
		eventually(t, func() bool {
			status, _ = os.ReadFile(filepath.Join(dir, "status"))
			return len(status) > 0
		})
		survivor.Process.Signal(syscall.SIGTERM)
		if err := survivor.Wait(); err != nil {
			t.Error(err)
		}
		comesBack(t, client, restart, 1, "\x00")
		// The bits are the signals, from 1.
		var ignored uint64
		for line := range strings.Lines(string(status)) {
			fmt.Sscanf(line, "SigIgn: %x", &ignored)
		}
		for _, s := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGHUP} {
			if ignored&(1<<(s-1)) == 0 {
				t.Errorf("the command ignores the signals %x, and %v isn't among them", ignored, s)
			}
		}
	})
}

// survive is the role "survivor".
func survive() int {
	status, err := Run(Config{
		Session: "run", Park: true, Memory: []Memory{{Name: "data", Size: 4096}}, StopSignal: syscall.SIGTERM, StopTimeout: patience,
		Command: []string{"/bin/sh", "-c", `while read -r l; do echo "$l"; done </proc/self/status >$SURVIVOR_STATUS.new; mv $SURVIVOR_STATUS.new $SURVIVOR_STATUS; exec sleep 1000`},
	}, func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return max(1, status)
	}
	return status
}
