// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// binaries is where holdfast and holdfastd are.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

// binariesVariable tells a test that luosim starts again where they are.
const binariesVariable = "HOLDFAST_TEST_BINARIES"

func run(m *testing.M) int {
	if binaries = os.Getenv(binariesVariable); binaries != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "holdfast-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir, ".", "../holdfastd").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	binaries = dir
	os.Setenv(binariesVariable, dir)
	return m.Run()
}

// result is what a command left.
type result struct {
	status         int
	stdout, stderr string
}

// tool runs holdfast against a holdfastd at address, or none.
func tool(t *testing.T, address string, args ...string) result {
	t.Helper()
	return runTool(t, command(address, args...))
}

func command(address string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(binaries, "holdfast"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_ADDRESS="+address)
	return cmd
}

func runTool(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// failed checks that a command said why in one line, and nothing else.
func (r result) failed(t *testing.T, status int, part string) {
	t.Helper()
	line, rest, _ := strings.Cut(r.stderr, "\n")
	if r.status != status || rest != "" || !strings.HasPrefix(line, "holdfast: ") || strings.HasPrefix(line, "holdfast: holdfast: ") || !strings.Contains(line, part) {
		t.Errorf("exit status %d, stderr %q; want %d and one line with %q", r.status, r.stderr, status, part)
	}
}

const nowhere = "/nonexistent/io.holdfast"

func TestUsage(t *testing.T) {
	for _, test := range []struct{ args, says string }{
		{"", "a command is missing; see holdfast --help"},
		{"nonsense", `unknown command "nonsense"`},
		{"--nonsense", "unknown flag: --nonsense"},
		{"status nonsense", `"nonsense" is too many: status takes no arguments`},
		{"status --nonsense", "see holdfast status --help"},
		{"acquire", "NAME"},
		{"acquire -- true", "NAME"},
		{"acquire x", `a COMMAND after "--"`},
		{"acquire x --", `a COMMAND after "--"`},
		{"acquire x true", `a COMMAND after "--"`},
		{"acquire x y -- true", `"y" is too many`},
		{"acquire x --timeout 0s -- true", "timeout"},
		{"acquire x --timeout soon -- true", "timeout"},
		{"identify x", "x"},
		{"identify --fd -1", "--fd"},
		{"park", "NAME"},
		{"park x y", `"y" is too many`},
		{"park x --fd -1", "--fd"},
		{"park x --file data", "NAME=NUMBER"},
		{"park x --file data=", "NAME=NUMBER"},
		{"park x --file data=-1", "NAME=NUMBER"},
		{"park x --file =4", "it is empty"},
		{"park x --file ../data=4", "it must start with a letter or a digit"},
		{"park x --file data=4 --file data=5", `two files "data"`},
		{"update", "say --yes"},
		{"update a b --yes", `"b" is too many`},
		{"update --yes --timeout -1s", "--timeout"},
		{"cancel now", "now"},
		{"wait", "--settled"},
		{"wait --settled x", `"x" is too many`},
		{"wait --settled -t -1s", "-t"},
		{"reclaim", "NAME"},
		{"reclaim -- true", "NAME"},
		{"reclaim x", `a COMMAND after "--"`},
		{"reclaim x y -- true", `"y" is too many`},
		{"reclaim x --direction sideways -- true", "incoming or outgoing"},
		{"reclaim x --direction= -- true", "incoming or outgoing"},
		{"release", "NAME of a session, or --kernel-name"},
		{"release x y", `"y" is too many`},
		{"release x --kernel-name h1-ok2ohkddat64npei.ram", "not both"},
		{"release --kernel-name ram", `"ram" is no kernel name`},
		{"release x --direction Incoming", "incoming or outgoing"},
		{"list x", "x"},
		{"check x y", `"y" is too many`},
		{"check --cmdline x", "there is none"},
		{"check x --entry y", "not both"},
		{"check x --entry=", "--entry is empty"},
		{"load", "a KERNEL is missing"},
		{"load x y", `"y" is too many`},
		{"load x --cmdline y --reuse-cmdline", "not both"},
		{"load x --entry y", "not both"},
		{"unload x", `"x" is too many`},
		{"report x", `"x" is too many`},
		{"report --json --html x", "one of --json, --html and --trace"},
		{"policy", "a command is missing; see holdfast policy --help"},
		{"policy nonsense", "nonsense"},
		{"policy explain", "one of --pid, --unit and --cgroup; see holdfast policy explain --help"},
		{"policy explain ram", "one of --pid, --unit and --cgroup; see holdfast policy explain --help"},
		{"policy explain --pid 1 --unit a.service", "one of --pid, --unit and --cgroup; see holdfast policy explain --help"},
		{"policy explain --pid 0", "PID"},
		{"policy explain --pid x", "--pid"},
		{"policy explain --cgroup system.slice/a.service", "begins with /"},
		{"policy explain --unit a", "no name of a .service or .scope"},
		{"policy explain --unit ../a.service", "no name of a .service or .scope"},
		{"policy explain --cgroup / --uid -1", "--uid"},
		{"policy explain --cgroup / ram rom", `"rom" is too many`},
		{"completion", "a command is missing; see holdfast completion --help"},
		{"completion tcsh", "tcsh"},
	} {
		r := tool(t, nowhere, strings.Fields(test.args)...)
		t.Logf("holdfast %s", test.args)
		r.failed(t, 2, test.says)
		if r.stdout != "" {
			t.Errorf("wrong usage printed %q", r.stdout)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, name := range []string{"", "status", "acquire", "identify", "park", "reclaim", "release", "list", "check", "load", "unload", "update", "cancel", "wait", "report", "policy", "policy check", "policy explain", "version"} {
		r := tool(t, nowhere, strings.Fields(name+" --help")...)
		if r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, "Examples:\n  ") {
			t.Errorf("holdfast %s --help: exit status %d, stderr %q, stdout without an example:\n%s", name, r.status, r.stderr, r.stdout)
		}
		text, _, _ := strings.Cut(r.stdout, "\nUsage:\n")
		for line := range strings.Lines(text) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 96 {
				t.Errorf("holdfast %s --help: a line of %d characters: %s", name, n, line)
			}
		}
	}
}

// TestHelpTeachesTheOrder: commands are shown in groups, those of an update in the order in which they are used.
func TestHelpTeachesTheOrder(t *testing.T) {
	help := tool(t, nowhere, "--help").stdout
	at := 0
	for _, want := range []string{
		"This host:", "  status ", "  list ", "  policy ",
		"An update, step by step:", "  check ", "  load ", "  unload ", "  update ", "  cancel ", "  wait ", "  report ",
		"Sessions of one program", "  acquire ", "  identify ", "  park ", "  reclaim ", "  release ",
		"Additional Commands:", "  version ", "  completion ", "  help ",
	} {
		i := strings.Index(help[at:], "\n"+want)
		if i < 0 {
			t.Fatalf("%q is missing, or not where it belongs:\n%s", want, help)
		}
		at += i + 1
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		if r := tool(t, nowhere, arg); r.status != 0 || r.stdout != "holdfast devel\n" {
			t.Errorf("holdfast %s: %+v", arg, r)
		}
	}
	if r := tool(t, nowhere, "version", "--json"); r.stdout != "{\n  \"version\": \"devel\"\n}\n" {
		t.Errorf("holdfast version --json: %+v", r)
	}
}

func TestCompletion(t *testing.T) {
	if r := tool(t, nowhere, "__complete", "reclaim", "x", "--direction", ""); !strings.HasPrefix(r.stdout, "incoming\noutgoing\n") {
		t.Errorf("completing --direction: %+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := tool(t, nowhere, "completion", shell); r.status != 0 || !strings.Contains(r.stdout, "holdfast") {
			t.Errorf("holdfast completion %s: %+v", shell, r)
		}
	}
}

// wantNotReady is what each command says on this machine, and in which word. It skips where sessions could be had.
func wantNotReady(t *testing.T) (problem, sentence string) {
	t.Helper()
	err := liveupdate.Device{}.Available()
	switch {
	case errors.Is(err, liveupdate.ErrNoDevice):
		return "noDevice", "this kernel has no Live Update Orchestrator; boot Linux"
	case errors.Is(err, liveupdate.ErrNotEnabled):
		return "notEnabled", "live update is not enabled on this kernel's command line; boot with kho=on liveupdate=on"
	}
	t.Skip("this kernel does live updates: test/vm/tool.sh is for such ones")
	return "", ""
}

type statusJSON struct {
	Ready   *bool
	Problem string
	Hint    string
	Kernel  struct {
		Release             string
		Device, KexecLoaded *bool
	}
	Orchestrator *struct {
		Version, Keeper, Problem string
		NameMax                  int
	}
}

func statusOf(t *testing.T, address string) (result, statusJSON) {
	t.Helper()
	r := tool(t, address, "status", "--json")
	var s statusJSON
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("holdfast status --json printed %q: %v", r.stdout, err)
	}
	if s.Ready == nil || s.Kernel.Release == "" || s.Kernel.Device == nil || s.Kernel.KexecLoaded == nil {
		t.Errorf("fields are missing in %s", r.stdout)
	}
	return r, s
}

// TestKernelNotReady has every command say the same, whether holdfastd runs or not.
func TestKernelNotReady(t *testing.T) {
	problem, sentence := wantNotReady(t)
	address := startDaemon(t)
	service := inUnit(t, "cache.service")
	for name, address := range map[string]string{"no daemon": nowhere, "daemon": address} {
		t.Run(name, func(t *testing.T) {
			r, s := statusOf(t, address)
			r.failed(t, 1, sentence)
			if *s.Ready || s.Problem != problem || s.Hint == "" || !strings.Contains(r.stderr, "; "+s.Hint) {
				t.Errorf("holdfast status --json printed %s", r.stdout)
			}
			if running := address != nowhere; running != (s.Orchestrator != nil) {
				t.Errorf("orchestrator in %s", r.stdout)
			} else if running && (s.Orchestrator.Version != "devel" || s.Orchestrator.NameMax != 43 || s.Orchestrator.Problem != problem) {
				t.Errorf("orchestrator in %s", r.stdout)
			}
			said := r.stderr

			plain := tool(t, address, "status")
			plain.failed(t, 1, sentence)
			if want := map[bool]string{true: "does not answer", false: "holdfastd devel"}[address == nowhere]; !strings.Contains(plain.stdout, want) {
				t.Errorf("holdfast status printed\n%swithout %q", plain.stdout, want)
			}
			for _, args := range [][]string{{"acquire", "x", "--", "true"}, {"identify", "--fd", "0"}, {"identify"},
				{"park", "x", "--fd", "0"}, {"park", "x"}, {"reclaim", "x", "--", "true"}, {"release", "x"}} {
				if r := runTool(t, service(command(address, args...))); r.status != 1 || r.stderr != said || r.stdout != "" {
					t.Errorf("holdfast %s: %+v; want exit status 1 and on stderr %q", strings.Join(args, " "), r, said)
				}
			}
		})
	}
}

func TestStatusWithoutDaemon(t *testing.T) {
	if (liveupdate.Device{}).Available() != nil {
		t.Skip("TestKernelNotReady is for this kernel")
	}
	r, s := statusOf(t, nowhere)
	r.failed(t, 1, "holdfastd.socket")
	if *s.Ready || s.Problem != "noOrchestrator" || s.Orchestrator != nil {
		t.Errorf("holdfast status --json printed %s", r.stdout)
	}
}

// TestAcquireRefused asks where nothing could give the session back. Nobody needs to listen for that.
func TestAcquireRefused(t *testing.T) {
	for cgroup, says := range map[string]string{
		"session-3.scope":          "session-3.scope is a scope",
		"cache.service/some.scope": "some.scope is a scope",
		"system.slice":             "belongs to no unit",
	} {
		r := runTool(t, inUnit(t, cgroup)(command(nowhere, "acquire", "x", "--", "true")))
		t.Log(cgroup)
		r.failed(t, 1, says)
		r.failed(t, 1, "systemd-run --unit=UNIT -p FileDescriptorStoreMax=16 -p FileDescriptorStorePreserve=yes holdfast acquire")
	}
}

// TestCommandCannotRun has the exit statuses of env(1), before anything is asked for.
func TestCommandCannotRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		command string
		status  int
	}{
		{"holdfast-has-no-such-command", 127},
		{file + "/none", 126}, // not a directory
		{file + "-none", 127},
		{file, 126},
		{filepath.Dir(file), 126},
	} {
		t.Log(test.command)
		tool(t, nowhere, "acquire", "x", "--", test.command).failed(t, test.status, test.command)
		tool(t, nowhere, "reclaim", "x", "--", test.command).failed(t, test.status, test.command)
	}
}

// startDaemon runs a real holdfastd and returns where it listens.
func startDaemon(t *testing.T, args ...string) (address string) {
	t.Helper()
	address, _, notify := runDaemon(t, args...)
	notify.Close()
	return address
}

// runDaemon returns the process too, and what it tells systemd with.
func runDaemon(t *testing.T, args ...string) (address string, process *os.Process, notify *net.UnixConn) {
	t.Helper()
	dir := t.TempDir()
	address = filepath.Join(dir, "io.holdfast")
	// It tells when it is ready, as to systemd.
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notify.Close() })
	daemon := exec.Command(filepath.Join(binaries, "holdfastd"), append([]string{"--listen", address, "--policy", filepath.Join(dir, "policy.d")}, args...)...)
	daemon.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	var log strings.Builder
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Wait()
		notify.Close()
	}()
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("holdfastd: %v", err)
		}
		if t.Failed() {
			t.Logf("holdfastd's log:\n%s", log.String())
		}
	})
	if said := told(t, notify); !strings.Contains(said, "READY=1") {
		t.Fatalf("waiting for holdfastd: %q", said)
	}
	return address, daemon.Process, notify
}

// told waits for the next thing that the daemon tells systemd.
func told(t *testing.T, notify *net.UnixConn) string {
	t.Helper()
	message := make([]byte, 4096)
	n, err := notify.Read(message)
	if err != nil {
		t.Fatalf("waiting for holdfastd: %v", err)
	}
	return string(message[:n])
}

// inUnit makes a cgroup, a path like that of a unit, and returns what has a command run in it.
func inUnit(t *testing.T, path string) func(*exec.Cmd) *exec.Cmd {
	t.Helper()
	mount, err := peer.CgroupMount()
	if err != nil {
		t.Fatal(err)
	}
	if syscall.Geteuid() != 0 || syscall.Access(mount, 2) != nil {
		t.Skipf("making cgroups below %s needs root", mount)
	}
	dir := mount
	for part := range strings.SplitSeq(fmt.Sprintf("holdfast-test-%d.slice/%s", os.Getpid(), path), "/") {
		dir = filepath.Join(dir, part)
		made := dir
		if err := os.Mkdir(made, 0o755); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(made); err != nil {
				t.Error(err)
			}
		})
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(cmd *exec.Cmd) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
		return cmd
	}
}
