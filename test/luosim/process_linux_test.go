// SPDX-License-Identifier: MIT

package luosim

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
)

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestAMemfdComesBackWhole(t *testing.T) {
	lines := strings.Split(emulate(t, nil, program("file")...).succeed(), "\n")
	if len(lines) != 5 {
		t.Fatalf("got %q", lines)
	}
	expect(t, lines[2], "content true size true position true seals true")
	expect(t, lines[3], "older processes 0")
	// Nothing else comes back: the next kernel starts with the descriptors that the first one did.
	expect(t, lines[1], lines[0])
}

func TestAGoProgramWith200Threads(t *testing.T) {
	expect(t, emulate(t, nil, program("threads")...).succeed(),
		"opens map[]\nown names map[]\npreserves map[]\none name map[file exists:199]\nown names again map[]\n")
}

func TestADaemonHoldsASession(t *testing.T) {
	expect(t, emulate(t, nil, program("daemon", "kexec")...).succeed(), "daemon1 0\n")
}

func TestADaemonEndsWithItsMachine(t *testing.T) {
	expect(t, emulate(t, nil, program("daemon", "exit")...).succeed(), "")
}

func TestASessionIsPassedOn(t *testing.T) {
	expect(t, emulate(t, nil, program("pass")...).succeed(),
		"on its way: file exists\nreceived passed\nwith the other: file exists\ndropped: <nil>\n")
}

func TestTheDeviceByEveryWay(t *testing.T) {
	expect(t, emulate(t, nil, program("around")...).succeed(), "failed []\na file <nil>\ncharacter device true <nil>\n")
}

func TestAShellScript(t *testing.T) {
	expect(t, emulate(t, nil, "sh", "-c", `
		printf '%s\n' c a b | sort | tr abc xyz | while read l; do (echo "$l") & wait; done
		exec 3<>/dev/liveupdate && echo opened
		(: 3<>/dev/liveupdate) 2>/dev/null || echo busy
		exec 3>&-
		(: 3<>/dev/liveupdate) && echo free
		test -c /dev/liveupdate && test -r /dev/liveupdate && test -w /dev/liveupdate && echo there
		echo $(yes | head -n 100000 | wc -l)
		test $LUOSIM_BOOT = 2 || echo the switch | "$0" kexec | cat`, luosim).succeed(),
		strings.Repeat("x\ny\nz\nopened\nbusy\nfree\nthere\n100000\n", 2))
}

func TestProcessesThatForkAndFork(t *testing.T) {
	const all = 1 + 4 + 16
	names := strings.Fields(emulate(t, nil, program("forks", "p", "2")...).succeed())
	seen := map[string]bool{}
	for _, n := range names {
		seen[n] = true
	}
	if len(names) != all || len(seen) != all {
		t.Errorf("%d processes of %d had a session, with %d names", len(names), all, len(seen))
	}
}

func TestProcessesThatRunAwayAreCaught(t *testing.T) {
	expect(t, emulate(t, nil, program("rabbits", "kexec")...).succeed(), "ready\nolder processes 0\n")
}

func TestProcessesKilledInTheMiddleOfACall(t *testing.T) {
	expect(t, emulate(t, nil, program("killed")...).succeed(), "all free\n")
}

func TestBadPointers(t *testing.T) {
	expect(t, emulate(t, nil, program("pointers")...).succeed(), badPointers)
}

const badPointers = "no argument EFAULT\nargument nowhere EFAULT\npath nowhere EFAULT\nargument half there EFAULT\n" +
	"argument read-only EFAULT\nits name is free true\n"

func TestNoDescriptorsLeft(t *testing.T) {
	// The limit is looked at before the device is, so it isn't EBUSY.
	expect(t, emulate(t, nil, program("limits")...).succeed(), "too many open files\ntoo many open files\n<nil>\n")
}

func TestProcessesThatNeverStop(t *testing.T) {
	expect(t, emulate(t, nil, program("stubborn", "kexec")...).succeed(), "ready\nolder processes 0\n")
}

// Whoever belongs to somebody else is left alone by an update, and by the end.
func TestOthersAreLeftAlone(t *testing.T) {
	other := exec.Command(self, "program", "wait")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	expect(t, emulate(t, nil, program("daemon", "kexec")...).succeed(), "daemon1 0\n")
	in.Close()
	if err := other.Wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
}

// begin starts a program that never ends by itself, and comes back when all its processes run.
func begin(t *testing.T, command ...string) *emulator {
	t.Helper()
	e := emulate(t, nil, command...)
	e.Stdout = nil
	out, err := e.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		e.Process.Kill()
		t.Fatalf("it said %q, %v; stderr: %s", line, err, &e.stderr)
	}
	return e
}

func TestASignalEndsEverything(t *testing.T) {
	for _, signal := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		rude := 128 + int(signal)
		if signal == unix.SIGQUIT {
			rude = 2 // the Go runtime prints its goroutines and exits
		}
		for _, c := range []struct {
			name    string
			command []string
			status  int
		}{
			{"ends", program("rude"), rude},
			{"ends properly", program("polite"), 7},
		} {
			t.Run(unix.SignalName(signal)+" "+c.name, func(t *testing.T) {
				t.Parallel()
				e := begin(t, c.command...)
				if err := e.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				if got := e.ended(e.Wait()); got != c.status {
					t.Errorf("status %d, want %d; stderr: %s", got, c.status, &e.stderr)
				}
			})
		}
	}
}

func TestAProgramThatNeverStopsIsKilledInTheEnd(t *testing.T) {
	t.Parallel()
	e := begin(t, program("stubborn", "wait")...)
	if err := e.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := e.ended(e.Wait()); got != 128+9 {
		t.Errorf("status %d, want %d; stderr: %s", got, 128+9, &e.stderr)
	}
}

// The first signal gives the program some seconds to end. The second one is for those who don't want to wait.
func TestASecondSignalDoesNotWait(t *testing.T) {
	e := begin(t, program("stubborn", "wait")...)
	start := time.Now()
	// They are two, since two of one kind may arrive as one.
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGHUP} {
		if err := e.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	e.ended(e.Wait())
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A process killed at once can't clean up. Whichever process of luosim's it is, its programs must end all the same.
func TestNothingIsLeftWhenLuosimIsKilled(t *testing.T) {
	for _, command := range []string{"stubborn", "rabbits"} {
		t.Run(command+", luosim", func(t *testing.T) {
			e := begin(t, program(command, "wait")...)
			if err := e.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			e.Wait()
			e.vanishes()
		})
		t.Run(command+", its child", func(t *testing.T) {
			e := begin(t, program(command, "wait")...)
			out, err := exec.Command("ps", "-o", "pid=", "--ppid", strconv.Itoa(e.Process.Pid)).Output()
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(string(out)))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(child, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			e.Wait()
			e.vanishes()
			if status := e.ProcessState.ExitCode(); status != 1 {
				t.Errorf("status %d, want 1", status)
			}
			e.says()
		})
	}
}

// vanishes waits until the tree is empty.
func (e *emulator) vanishes() {
	e.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := processes(e.tree)
		if len(left) == 0 {
			return
		}
		for _, p := range left {
			if !gone(p, time.Until(deadline)) || time.Now().After(deadline) {
				e.t.Errorf("still there: %v", p)
			}
			unix.Close(p.pidfd)
		}
		if e.t.Failed() {
			return
		}
	}
}

func TestWaysToRestart(t *testing.T) {
	const make, get = "create:s preserve:s:1 ", "retrieve:s"
	for name, c := range map[string]struct {
		boots []string
		want  string
	}{
		"nothing is loaded": {[]string{make + "loaded:0 reboot:kexec name:s"}, "1:ok 1:ok 1:ok 1:EINVAL 1:ok"},
		"unloaded again":    {[]string{make + "load loaded:1 unload loaded:0 reboot:kexec"}, "1:ok 1:ok 1:ok 1:ok 1:ok 1:ok 1:EINVAL"},
		"loaded twice":      {[]string{make + "load load loaded:1 reboot:kexec", "loaded:0 " + get}, "1:ok 1:ok 1:ok 1:ok 1:ok 2:ok 2:ok"},
		"the old way":       {[]string{make + "loadOld loaded:1 reboot:kexec", get}, "1:ok 1:ok 1:ok 1:ok 2:ENOENT"},
		"a cold boot":       {[]string{make + "load reboot:restart", "loaded:0 " + get}, "1:ok 1:ok 1:ok 2:ok 2:ENOENT"},
		"power off":         {[]string{make + "load reboot:poweroff", get}, "1:ok 1:ok 1:ok"},
		"halt":              {[]string{make + "load reboot:halt", get}, "1:ok 1:ok 1:ok"},
		"no update carries what came by the last one": {[]string{make + "kexec", get + " kexec", get},
			"1:ok 1:ok 2:ok 3:ENOENT"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, strings.Join(results(t, nil, c.boots...), " "), c.want)
		})
	}
}

// compile makes a program of C, and gets a compiler first on Debian, as root.
func compile(t *testing.T, source string, flags ...string) (binary string) {
	t.Helper()
	c, err := cache.Open(os.Stderr)
	if err == nil {
		err = debian.Need(t.Context(), c, debian.Tool{Name: "gcc", Package: "gcc"}, debian.Tool{Name: "/usr/include/stdlib.h", Package: "libc6-dev"})
	}
	if err != nil {
		t.Skipf("SKIPPED, programs in C are not tested: %v", err)
	}
	binary = filepath.Join(t.TempDir(), "program")
	gcc := exec.Command("gcc", append(flags, "-Wall", "-Werror", "-O2", "-o", binary, source, "-lpthread")...)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", gcc, err, out)
	}
	return binary
}

func TestACProgram(t *testing.T) {
	for name, flags := range map[string][]string{"dynamic": nil, "static": {"-static"}} {
		t.Run(name, func(t *testing.T) {
			binary := compile(t, "testdata/client.c", flags...)
			expect(t, emulate(t, nil, binary).succeed(), "an inode without a place\nname c\nlink anon_inode:[luo_session] c\n"+
				"vfork opened\nvfork and exec opened\nspawn opened\nsystem opened\nthread opened\ncontent hello from C\nfinished\n")
		})
	}
}

// A session's reader blocks nobody, and a program may wait in any call while others work.
func TestManyAtOnce(t *testing.T) {
	var all []*emulator
	for range 8 {
		e := emulate(t, nil, program("daemon", "kexec")...)
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	for _, e := range all {
		if status := e.ended(e.Wait()); status != 0 {
			t.Errorf("status %d: %s", status, &e.stderr)
		}
		expect(t, e.stdout.String(), "daemon1 0\n")
	}
}
