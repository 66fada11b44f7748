// SPDX-License-Identifier: MIT

package luosim

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// treeVariable marks all the processes of one run of luosim, however far they have run from it.
const treeVariable = "LUOSIM_TEST_TREE"

// tooLong ends what hangs. Nothing here takes a tenth of it.
const tooLong = 2 * time.Minute

// An emulator is one run of luosim. Whatever it leaves behind fails the test.
type emulator struct {
	*exec.Cmd
	stdout, stderr bytes.Buffer
	tree           string
	t              *testing.T
}

// program is the command line of one of the programs in this package.
func program(name string, args ...string) []string {
	return append([]string{self, "program", name}, args...)
}

// emulate prepares "luosim run FLAGS -- COMMAND".
func emulate(t *testing.T, flags []string, command ...string) *emulator {
	return start(t, slices.Concat([]string{luosim, "run"}, flags, []string{"--"}, command))
}

// start prepares a command line with luosim somewhere in it.
func start(t *testing.T, line []string) *emulator {
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	t.Cleanup(cancel)
	e := &emulator{Cmd: exec.CommandContext(ctx, line[0], line[1:]...), tree: rand.Text(), t: t}
	e.Env = append(os.Environ(), treeVariable+"="+e.tree)
	e.Stdout, e.Stderr = &e.stdout, &e.stderr
	e.Dir = dir
	// A process that outlives luosim would hold the pipes, and Run would wait for it.
	e.WaitDelay = 10 * time.Second
	t.Cleanup(func() {
		if ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%s ran for more than %v", e.Cmd, tooLong)
		}
		for _, p := range processes(e.tree) {
			t.Errorf("left behind: %v", p)
			unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
			unix.Close(p.pidfd)
		}
	})
	return e
}

// status runs luosim to its end. Then nothing of its tree may be there any more, not even for a moment.
func (e *emulator) status() int {
	e.t.Helper()
	err := e.Run()
	return e.ended(err)
}

// ended is the exit status in what Wait or Run returned.
func (e *emulator) ended(err error) int {
	e.t.Helper()
	for _, p := range processes(e.tree) {
		e.t.Errorf("luosim has ended, and there still is %v", p)
		unix.Close(p.pidfd)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.t.Fatalf("%s: %v\n%s", e.Cmd, err, &e.stderr)
	}
	return e.ProcessState.ExitCode()
}

// succeed runs luosim, which is to end with status 0 and say nothing, and returns what the program said.
func (e *emulator) succeed() string {
	e.t.Helper()
	if status := e.status(); status != 0 || e.stderr.Len() > 0 {
		e.t.Fatalf("%s ended with status %d\nstdout: %s\nstderr: %s", e.Cmd, status, &e.stdout, &e.stderr)
	}
	return e.stdout.String()
}

// sentence is what luosim said when it failed by itself: one line, which names it.
func (e *emulator) sentence(status int) string {
	e.t.Helper()
	if got := e.status(); got != status {
		e.t.Fatalf("%s ended with status %d, want %d\nstdout: %s\nstderr: %s", e.Cmd, got, status, &e.stdout, &e.stderr)
	}
	said := e.stderr.String()
	if strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "luosim: ") {
		e.t.Fatalf("%s said %q, want one line from luosim", e.Cmd, said)
	}
	return said
}

// A process of a tree. The pidfd is the owner's to close.
type process struct {
	pid, pidfd int
	command    string
	boot       string
}

func (p process) String() string {
	return fmt.Sprintf("process %d (%s, boot %s)", p.pid, p.command, p.boot)
}

// processes are those of a tree that run now.
func processes(tree string) []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// A zombie has no environment any more.
		environ, _ := os.ReadFile(dir + "/environ")
		variables := strings.Split(string(environ), "\x00")
		if !slices.Contains(variables, treeVariable+"="+tree) {
			unix.Close(pidfd)
			continue
		}
		command, _ := os.ReadFile(dir + "/cmdline")
		p := process{pid: pid, pidfd: pidfd, command: strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))}
		for _, v := range variables {
			if boot, ok := strings.CutPrefix(v, "LUOSIM_BOOT="); ok {
				p.boot = boot
			}
		}
		found = append(found, p)
	}
	return found
}

// gone waits for the end of a process.
func gone(p process, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, int(max(time.Until(deadline), 0)/time.Millisecond))
		if err != unix.EINTR {
			return n == 1
		}
	}
}
