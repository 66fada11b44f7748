// SPDX-License-Identifier: MIT

package run

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

// roleVariable makes this test binary one of the processes that a test is about.
const roleVariable = "HOLDFAST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "runner":
		c, err := start(childConfig{Words: []string{"sleep", "1000"}, Files: []*os.File{os.NewFile(3, "")}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.PID())
		<-c.Done()
		os.Exit(0)
	case "survivor":
		os.Exit(survive())
	case "notifier":
		if err := systemd.Notify("READY=1"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {} // a sender that has ended isn't heard
	}
	fdtest.Main(m)
}

// patience is for what must come, and takes milliseconds.
const patience = time.Minute

// command starts a script whose descriptor 3 is what lines are read from. It is killed at the end of the test.
func command(t *testing.T, script string, with childConfig) (*child, *said) {
	t.Helper()
	with.Words = []string{"/bin/sh", "-c", script}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	with.Files = append([]*os.File{w}, with.Files...)
	c, err := start(with)
	if err != nil {
		r.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
		r.Close()
	})
	r.SetReadDeadline(time.Now().Add(patience))
	return c, &said{t, bufio.NewReader(r)}
}

// said is what a command says.
type said struct {
	t *testing.T
	r *bufio.Reader
}

func (s *said) expect(want string) {
	s.t.Helper()
	if line, err := s.r.ReadString('\n'); line != want+"\n" {
		s.t.Fatalf("the command said %q, %v, not %q", line, err, want)
	}
}

// all reads to the end, which comes when nobody has the descriptor any more.
func (s *said) all() string {
	s.t.Helper()
	text, err := io.ReadAll(s.r)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func wait(t *testing.T, happened <-chan struct{}) {
	t.Helper()
	select {
	case <-happened:
	case <-time.After(patience):
		t.Fatal("it didn't happen")
	}
}

// soon is a context for what must succeed.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func isRunning(t *testing.T, c *child) {
	t.Helper()
	select {
	case <-c.Done():
		t.Fatalf("it %s", c.Ending())
	default:
	}
}

// hears ends with status 0 by SIGUSR1, and takes a while to be killed otherwise.
const hears = `sleep 1000 & s=$!; trap 'kill $s; exit 0' USR1; echo up >&3; wait`

func TestTheStopSignalStops(t *testing.T) {
	c, says := command(t, hears, childConfig{StopSignal: syscall.SIGUSR1})
	says.expect("up")
	e, err := c.Stop(soon(t))
	if err != nil || e != (ending{}) || !e.Clean(syscall.SIGUSR1, true) {
		t.Errorf("%s, %v", e, err)
	}
	wait(t, c.Done())
	if rest := says.all(); rest != "" {
		t.Errorf("%q", rest)
	}
	if e, err := c.Stop(soon(t)); err != nil || e != (ending{}) {
		t.Errorf("stopped again: %s, %v", e, err)
	}
	if err := errors.Join(c.Signal(syscall.SIGHUP), c.Kill()); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestDeathByTheStopSignalIsClean(t *testing.T) {
	c, says := command(t, "echo up >&3; exec sleep 1000", childConfig{})
	says.expect("up")
	e, err := c.Stop(soon(t))
	if err != nil || e.Signal != syscall.SIGTERM || e.ExitStatus() != 128+15 || e.String() != "was killed by SIGTERM" {
		t.Errorf("%s, %v", e, err)
	}
	if !e.Clean(syscall.SIGTERM, true) || e.Clean(syscall.SIGTERM, false) || e.Clean(syscall.SIGINT, true) {
		t.Error("it isn't clean, or by another signal, or without being asked")
	}
}

func TestASuspendedCommandIsStopped(t *testing.T) {
	c, says := command(t, "echo up >&3; kill -STOP $$; exec sleep 1000", childConfig{})
	says.expect("up")
	if e, err := c.Stop(soon(t)); err != nil || e.Signal != syscall.SIGTERM {
		t.Errorf("%s, %v", e, err)
	}
}

// stopBrokenOff asks a command to stop, which says that it heard that, and doesn't wait for more.
func stopBrokenOff(t *testing.T, c *child, says *said) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Stop(ctx)
		failed <- err
	}()
	says.expect("heard 1")
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("%v", err)
	}
}

func TestACommandThatDoesNotHearIsAskedAgain(t *testing.T) {
	c, says := command(t, `n=0; sleep 1000 & s=$!
		trap 'n=$((n+1)); echo heard $n >&3; if [ $n = 2 ]; then kill $s; exit 0; fi' TERM
		echo up >&3; while :; do wait $s; done`, childConfig{})
	says.expect("up")
	stopBrokenOff(t, c, says)
	isRunning(t, c)
	if e, err := c.Stop(soon(t)); err != nil || e != (ending{}) {
		t.Errorf("%s, %v", e, err)
	}
	says.expect("heard 2")
}

func TestTheStopCommandStops(t *testing.T) {
	c, says := command(t, hears, childConfig{StopCommand: "kill -USR1 $MAINPID && test $OURS = 1", Env: []string{"OURS=1"}})
	says.expect("up")
	if e, err := c.Stop(soon(t)); err != nil || e != (ending{}) {
		t.Errorf("%s, %v", e, err)
	}
}

func TestAStopCommandThatFailsSaysSoEachTime(t *testing.T) {
	c, says := command(t, hears, childConfig{StopCommand: "exit 7"})
	says.expect("up")
	for range 2 {
		if _, err := c.Stop(soon(t)); err == nil || !strings.Contains(err.Error(), `"exit 7": exit status 7`) {
			t.Errorf("%v", err)
		}
	}
	isRunning(t, c)
}

func TestAStopCommandThatHangsIsKilledWithTheCommand(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, says := command(t, hears, childConfig{StopCommand: "exec 5>" + fifo + "; echo on >&5; sleep 1000"})
	says.expect("up")
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Stop(ctx)
		failed <- err
	}()
	hold(t, fifo)
	r.SetReadDeadline(time.Now().Add(patience))
	(&said{t, bufio.NewReaderSize(r, 16)}).expect("on")
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stop command has not ended") {
		t.Errorf("%v", err)
	}
	// A second one doesn't start it again beside the first.
	if _, err := c.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	isRunning(t, c)
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.request.made:
	case <-time.After(patience):
		t.Fatal("the stop command goes on")
	}
}

// hold keeps a FIFO's other end open, so that reading it waits for who else opens it.
func hold(t *testing.T, fifo string) {
	w, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
}

func TestACrashTakesTheRestOfTheGroupAlong(t *testing.T) {
	c, says := command(t, "sleep 1000 & echo up >&3; kill -SEGV $$", childConfig{})
	says.expect("up")
	wait(t, c.Done())
	// Nobody of them is left by now: the end is there without waiting.
	if e := c.Ending(); e.Signal != syscall.SIGSEGV || e.Clean(syscall.SIGTERM, true) || !strings.HasPrefix(e.String(), "was killed by SIGSEGV") {
		t.Errorf("%s", e)
	}
	says.all()
	select {
	case <-c.gone:
	default:
		t.Error("done before the group has ended")
	}
}

func TestAStopIsNotOverWhileAGrandchildGoesOn(t *testing.T) {
	c, says := command(t, "sleep 1000 & echo up >&3; wait", childConfig{})
	says.expect("up")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-c.Done()
		cancel()
	}()
	_, err := c.Stop(ctx)
	if err == nil || !strings.Contains(err.Error(), "was killed by SIGTERM, but others of its process group go on") {
		t.Errorf("%v", err)
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	says.all()
}

func TestKillReachesAll(t *testing.T) {
	c, says := command(t, `trap "" TERM; sleep 1000 & echo up >&3; while :; do wait; done`, childConfig{})
	says.expect("up")
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	says.all()
	wait(t, c.Done())
	if e := c.Ending(); e.Signal != syscall.SIGKILL {
		t.Errorf("%s", e)
	}
}

func TestTheCommandDoesNotOutliveTheRunner(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	runner := exec.Command("/proc/self/exe")
	runner.Env = append(os.Environ(), roleVariable+"=runner")
	runner.ExtraFiles = []*os.File{w}
	out, err := runner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := runner.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var pid int
	_, scanErr := fmt.Fscan(out, &pid)
	runner.Process.Kill()
	runner.Wait()
	if scanErr != nil {
		t.Fatal(scanErr)
	}
	// It had the pipe, and nobody else has it.
	r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		unix.Kill(pid, unix.SIGKILL)
		t.Errorf("PID %d goes on: %v", pid, err)
	}
}

func TestHowACommandEnds(t *testing.T) {
	for script, want := range map[string]struct {
		status int
		says   string
	}{
		"exit 0":                  {0, "exited with status 0"},
		"exit 3":                  {3, "exited with status 3"},
		"ulimit -c 0; kill -9 $$": {128 + 9, "was killed by SIGKILL"},
		"kill -35 $$":             {128 + 35, "was killed by signal 35"},
	} {
		c, _ := command(t, script, childConfig{})
		wait(t, c.Done())
		if e := c.Ending(); e.ExitStatus() != want.status || e.String() != want.says || e.Clean(syscall.SIGTERM, false) != (want.status == 0) {
			t.Errorf("%s: %s, %d", script, e, e.ExitStatus())
		}
	}
}

func TestSignalsArePassedToTheCommandAlone(t *testing.T) {
	c, says := command(t, `(trap 'echo wrong >&3' HUP; sleep 1000) & trap 'echo hup >&3' HUP; echo up >&3; while :; do wait; done`, childConfig{})
	says.expect("up")
	for range 2 {
		if err := c.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		says.expect("hup")
	}
	if group, err := unix.Getpgid(c.PID()); group != c.PID() || group == unix.Getpgrp() {
		t.Errorf("its process group is %d, %v", group, err)
	}
}

func TestNothingElseIsInherited(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	stray, err := unix.Dup(int(null.Fd())) // as inherited from whoever started this process
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	// The shell's own descriptor for the directory is closed again by the time it looks.
	_, says := command(t, `for f in /proc/$$/fd/*; do if [ -e $f ]; then echo ${f##*/} >&3; fi; done`, childConfig{Files: []*os.File{null}})
	if got := strings.Fields(says.all()); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("it has %v", got)
	}
	if _, err := null.Stat(); err != nil {
		t.Errorf("the caller's file: %v", err)
	}
}

func TestWhatIsForTheRunnerIsNotInTheEnvironment(t *testing.T) {
	for _, v := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "FDSTORE", "NOTIFY_SOCKET"} {
		t.Setenv(v, "1")
	}
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("KEPT", "yes")
	names := []string{"LISTEN_", "FDSTORE=", "NOTIFY_SOCKET=", "WATCHDOG_", "KEPT=", "OURS="}
	for _, c := range []struct {
		pid, socket string
		want        []string
	}{
		{fmt.Sprint(os.Getpid()), "", []string{"KEPT=no", "OURS=1"}},
		{fmt.Sprint(os.Getpid()), "@x", []string{"KEPT=no", "NOTIFY_SOCKET=@x", "OURS=1", "WATCHDOG_USEC=1000000"}},
		{"1", "@x", []string{"KEPT=no", "NOTIFY_SOCKET=@x", "OURS=1"}},
	} {
		t.Setenv("WATCHDOG_PID", c.pid)
		_, says := command(t, "env >&3", childConfig{NotifySocket: c.socket, Env: []string{"OURS=1", "KEPT=no"}})
		var got []string
		for line := range strings.Lines(says.all()) {
			if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(line, name) }) {
				got = append(got, strings.TrimSuffix(line, "\n"))
			}
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("$WATCHDOG_PID %s, socket %q: %q", c.pid, c.socket, got)
		}
	}
}

func TestWhatCannotBeStartedSaysWhy(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for word, why := range map[string]error{"holdfast-no-such-command": exec.ErrNotFound, plain: os.ErrPermission, plain + "/x": unix.ENOTDIR} {
		if _, err := start(childConfig{Words: []string{word}}); !errors.Is(err, why) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", word, err)
		}
	}
	if _, err := start(childConfig{}); err == nil {
		t.Error("no command was started")
	}
}
