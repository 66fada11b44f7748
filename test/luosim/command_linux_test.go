// SPDX-License-Identifier: MIT

package luosim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheStatusIsPassedOn(t *testing.T) {
	for command, want := range map[string]int{
		"true": 0, "exit 3": 3, "exit 255": 255, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9, "kill -SEGV $$": 128 + 11,
	} {
		t.Run(command, func(t *testing.T) {
			e := emulate(t, nil, "sh", "-c", command)
			if got := e.status(); got != want || e.stderr.Len() > 0 {
				t.Errorf("status %d, want %d; stderr: %s", got, want, &e.stderr)
			}
		})
	}
}

func TestCommandsThatCannotRun(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		command string
		status  int
	}{
		"not in PATH": {"no-such-command-anywhere", 127}, "no such file": {"/no/such/file", 127},
		"not executable": {text, 126}, "a directory": {"/etc", 126},
	} {
		t.Run(name, func(t *testing.T) {
			if said := emulate(t, nil, c.command).sentence(c.status); !strings.Contains(said, c.command) {
				t.Errorf("said %q, which does not name %s", said, c.command)
			}
		})
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"no-such-subcommand"}, {"run"}, {"run", "--"}, {"run", "--no-such-flag", "--", "true"},
		{"run", "--fault", "no-such-fault", "--", "true"}, {"run", "--fault", "busy=x", "--", "true"},
		{"run", "--fault", "busy@x", "--", "true"}, {"run", "--fault", "busy@0", "--", "true"}, {"run", "--fault", "", "--", "true"},
		{"run", "--fault", "eio=1", "--", "true"}, {"run", "--fault", "busy=-1", "--", "true"},
		{"run", "--kernel", "6.1", "--", "true"}, {"run", "--updates", "x", "--", "true"}, {"run", "--updates", "0", "--", "true"},
		{"kexec", "argument"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			e := start(t, append([]string{luosim}, args...))
			if got := e.status(); got != 2 || e.stderr.Len() == 0 || e.stdout.Len() > 0 {
				t.Errorf("status %d, want 2\nstdout: %s\nstderr: %s", got, &e.stdout, &e.stderr)
			}
		})
	}
}

func TestTheDashesMayBeLeftOut(t *testing.T) {
	e := start(t, []string{luosim, "run", "sh", "-c", "echo $LUOSIM_BOOT"})
	expect(t, e.succeed(), "1\n")
}

func TestAnUnknownFaultIsAnsweredWithTheKnownOnes(t *testing.T) {
	e := emulate(t, []string{"--fault", "no-such-fault"}, "true")
	if got := e.status(); got != 2 {
		t.Errorf("status %d, want 2", got)
	}
	for _, fault := range []string{"no-such-fault", "busy", "eio", "nodevice", "lost", "freeze", "preserve", "retrieve", "finish"} {
		if !strings.Contains(e.stderr.String(), fault) {
			t.Errorf("%s is not named in: %s", fault, &e.stderr)
		}
	}
}

// Outside of the emulator there is nothing to switch, and on a machine that could, luosim must not be what does it.
func TestKexecOutside(t *testing.T) {
	e := start(t, []string{luosim, "kexec"})
	e.Env = append(e.Env, "LUOSIM_BOOT=")
	e.sentence(1)
}

func TestPipesGoThrough(t *testing.T) {
	content := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	e := emulate(t, nil, "cat")
	e.Stdin = bytes.NewReader(content)
	if got := e.succeed(); got != string(content) {
		t.Errorf("%d bytes came out, not the %d that went in", len(got), len(content))
	}
}

func TestArgumentsEnvironmentAndDirectoryGoThrough(t *testing.T) {
	e := emulate(t, nil, "sh", "-c", `printf '%s|' "$@"; echo "$VARIABLE"; pwd; cat <&3`, "name", "a b", "", "--", "*")
	e.Env = append(e.Env, "VARIABLE=its value")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e.ExtraFiles = []*os.File{r}
	fmt.Fprintln(w, "an inherited descriptor")
	w.Close()
	if got, want := e.succeed(), "a b||--|*|its value\n"+dir+"\nan inherited descriptor\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Where a standard descriptor is closed, nothing of luosim's own may come to lie there.
func TestClosedDescriptorsAreNotLuosims(t *testing.T) {
	e := start(t, append([]string{"sh", "-c", `exec "$0" run -- "$@" <&- >&-`, luosim}, program("standard")...))
	if status := e.status(); status != 0 {
		t.Errorf("status %d", status)
	}
	if said := e.stderr.String(); !strings.HasPrefix(said, "0 /dev/null <nil>\n1 /dev/null <nil>\n2 pipe:") {
		t.Errorf("the standard descriptors are %s", said)
	}
}

// terminal makes a pair of them.
func terminal(t *testing.T) (master, slave *os.File) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// onTerminal runs luosim in the foreground of a terminal of its own.
func onTerminal(t *testing.T, command ...string) (e *emulator, typed func(string), shown func(until string) string) {
	master, slave := terminal(t)
	e = emulate(t, nil, command...)
	e.Stdin, e.Stdout, e.Stderr = slave, slave, slave
	e.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	typed = func(text string) {
		if _, err := master.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	// When the last process of the terminal has closed it, reading fails with EIO.
	shown = func(until string) string {
		var all []byte
		part := make([]byte, 1024)
		for !strings.Contains(string(all), until) {
			n, err := master.Read(part)
			if err != nil {
				t.Fatalf("the terminal shows %q, and then %v", all, err)
			}
			all = append(all, part[:n]...)
		}
		return string(all)
	}
	return e, typed, shown
}

func TestATerminalGoesThrough(t *testing.T) {
	e, typed, shown := onTerminal(t, "sh", "-c", `test -t 0 && test -t 1 && test -t 2 && stty -echo && echo "on $(tty)" && read word && echo "read $word"`)
	if got := shown("\n"); !regexp.MustCompile(`^on /dev/pts/\d+\r\n$`).MatchString(got) {
		t.Errorf("shown: %q", got)
	}
	typed("typed\n")
	if got := shown("\n"); got != "read typed\r\n" {
		t.Errorf("shown: %q", got)
	}
	if status := e.ended(e.Wait()); status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestCtrlCOnATerminal(t *testing.T) {
	for name, c := range map[string]struct {
		command []string
		status  int
	}{
		"ends":          {program("rude"), 128 + 2},
		"ends properly": {program("polite"), 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, typed, shown := onTerminal(t, c.command...)
			shown("ready")
			typed("\x03")
			if status := e.ended(e.Wait()); status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
		})
	}
}

func TestGoTestExec(t *testing.T) {
	line := []string{"go", "test", "-count=1", "-exec", luosim + " run --", "./testdata/exec"}
	for name, c := range map[string]struct {
		fail   string
		status int
		says   string
	}{"passes": {"", 0, "ok"}, "fails": {"yes", 1, "FAIL"}} {
		t.Run(name, func(t *testing.T) {
			e := start(t, line)
			e.Dir = ""
			e.Env = append(e.Env, "CGO_ENABLED=0", "FAIL="+c.fail)
			if status := e.status(); status != c.status || !strings.Contains(e.stdout.String(), c.says) {
				t.Errorf("status %d, want %d\nstdout: %s\nstderr: %s", status, c.status, &e.stdout, &e.stderr)
			}
		})
	}
}

// The machine that a program sees, at each boot.
func TestTheMachine(t *testing.T) {
	out := emulate(t, []string{"--updates", "2"}, "sh", "-c", `
		uname -r; cat /proc/sys/kernel/osrelease; cat /proc/sys/kernel/random/boot_id; cat /sys/kernel/kexec_loaded
		"$0" kexec`, luosim).succeed()
	lines := strings.Fields(out)
	if len(lines) != 3*4 {
		t.Fatalf("three boots printed %q", lines)
	}
	ids := []string{}
	for i := range 3 {
		l := lines[4*i:]
		release := fmt.Sprintf("7.2.0-luosim.%d", i+1)
		if l[0] != release || l[1] != release || l[3] != "0" {
			t.Errorf("boot %d: %q, want release %s and no kernel loaded", i+1, l[:4], release)
		}
		ids = append(ids, l[2])
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 3 {
		t.Errorf("the boots have the ids %q", ids)
	}
}

func TestUpdatesEndTheRun(t *testing.T) {
	for updates, want := range map[string]string{"1": "1\n2\n", "3": "1\n2\n3\n4\n"} {
		t.Run(updates, func(t *testing.T) {
			e := emulate(t, []string{"--updates", updates}, "sh", "-c", `echo $LUOSIM_BOOT; "$0" kexec; sleep inf`, luosim)
			if got := e.succeed(); got != want {
				t.Errorf("boots: %q, want %q", got, want)
			}
		})
	}
}
