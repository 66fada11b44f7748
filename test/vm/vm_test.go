// SPDX-License-Identifier: MIT

//go:build vm

// Package vm runs the scripts of this directory on real kernels with real init systems, by hfvm.
package vm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree is what goes into the guests: what "make install" installs, and the examples and tests.
var tree string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-vm-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	tree = filepath.Join(dir, "tree")
	for _, command := range [][]string{
		{"make", "-s", "-C", "../..", "install", "DESTDIR=" + tree},
		{"install", "-D", "../../bin/notebook", tree + "/usr/bin/notebook"},
		{"install", "-D", "-m", "0644", "../../examples/notebook/notebook.service", tree + "/usr/lib/systemd/system/notebook.service"},
		{"install", "-D", "-m", "0644", "lib.sh", tree + "/test/lib.sh"},
		{"install", "-D", "-m", "0644", "parking.sh", tree + "/test/parking.sh"},
		{"go", "build", "-trimpath", "-o", tree + "/usr/bin/parker", "../parker"},
		{"go", "build", "-trimpath", "-o", tree + "/usr/bin/witness", "../witness"},
		{"go", "build", "-trimpath", "-o", tree + "/test/kill", "../kill"},
		{"go", "build", "-trimpath", "-o", tree + "/usr/bin/fleet", "../fleet"},
		{"go", "build", "-trimpath", "-o", tree + "/usr/bin/keep", "../memcached/keep"},
		{"go", "build", "-trimpath", "-ldflags", "-X github.com/holdfast-project/holdfast/internal/version.Version=next", "-o", tree + "/test/holdfastd-next", "../../cmd/holdfastd"},
		{"go", "test", "-c", "-o", tree + "/liveupdate.test", "../../liveupdate"},
		{"go", "test", "-c", "-o", tree + "/test/guest.test", "../guest"},
		{"go", "test", "-c", "-o", tree + "/test/update.test", "../update"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", strings.Join(command, " "), err, out)
			return 1
		}
	}
	// All that is slow to make is made before any machine runs: a guest beside a compiler is a slow guest.
	for _, args := range [][]string{
		{"--kernel", "7.2", "--kernel", "7.3", "--os", "forky"},
		variants(),
		{"--os", "forky", "--os", "trixie", "--initrd", "dracut"},
		append([]string{"--os", "forky"}, users...),
		append([]string{"--os", "forky"}, compiler...),
		{"--os", "forky", "--package", "qemu-system-x86"},
		{"--os", "forky", "--package", "memcached"},
	} {
		cmd := exec.Command("../../bin/hfvm", append([]string{"build"}, args...)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", strings.Join(cmd.Args, " "), err)
			return 1
		}
	}
	return m.Run()
}

// What goes into root file systems beside the usual: who has users, and a compiler for C.
var (
	users    = []string{"--package", "cron", "--package", "libpam-systemd"}
	compiler = []string{"--package", "gcc", "--package", "libc6-dev", "--package", "libsystemd-dev", "--package", "make", "--package", "pkgconf"}
)

// guest runs a script in a machine of its own. What it prints comes out as it happens, under the test's name.
func guest(t *testing.T, script string, args ...string) {
	t.Helper()
	t.Parallel()
	if err := heard(t.Context(), t, func(string) {}, script, args...); err != nil {
		t.Error(err)
	}
}

// heard is guest for a test that hears each line too, and may end the machine before its time, by ctx.
func heard(ctx context.Context, t *testing.T, hear func(line string), script string, args ...string) error {
	start := time.Now()
	args = append([]string{"run", "--quiet-console", "--add", tree + ":/"}, args...)
	cmd := exec.CommandContext(ctx, "../../bin/hfvm", append(args, script)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Printf("%s: %s\n", t.Name(), lines.Text())
		hear(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("hfvm %s: %w", strings.Join(cmd.Args[1:], " "), err)
	}
	fmt.Printf("%s: %.0f s\n", t.Name(), time.Since(start).Seconds())
	return nil
}

const word = "WORD=kelp"

// The services are on trial for longest, so they go first.

func TestServices(t *testing.T) {
	guest(t, "services.sh", append(users, "--next-kernel", "7.3", "--env", word, "--timeout", "900")...)
}

func TestNotebook(t *testing.T) {
	guest(t, "notebook.sh", "--next-kernel", "7.3", "--env", word, "--timeout", "600")
}

func TestNotebookWithInitrd(t *testing.T) {
	guest(t, "notebook.sh", "--next-kernel", "7.3", "--initrd", "dracut", "--env", word, "--timeout", "600")
}

// What clients park with holdfastd.
func TestCustody(t *testing.T) {
	t.Parallel()
	for script, args := range map[string][]string{
		"custody.sh": nil,
		"held.sh":    nil,
		"full.sh":    nil,
		"many.sh":    {"--env", "UNITS=20", "--env", "SCOPES=5"},
	} {
		t.Run(script, func(t *testing.T) {
			guest(t, script, append(args, "--next-kernel", "7.3", "--timeout", "600")...)
		})
	}
}

// Commands that know nothing of updates.
func TestRun(t *testing.T) {
	guest(t, "run.sh", "--next-kernel", "7.3", "--timeout", "600")
}

// What clients park, when they or holdfastd die at each step.
func TestKillMatrix(t *testing.T) {
	guest(t, "kill.sh", "--next-kernel", "7.3", "--timeout", "600")
}

// 500 sessions of 50 units: whose is whose after an update, and how fast it goes.
func TestFleet(t *testing.T) {
	guest(t, "fleet.sh", "--next-kernel", "7.3", "--memory", "2048", "--env", "UNITS=50", "--env", "EACH=10", "--timeout", "900")
}

// What each attempt lacks a check for is built before any machine runs.
func TestAttacks(t *testing.T) {
	dir := t.TempDir()
	for _, command := range [][]string{
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/usr/bin/attack", "../attack"},
		{"mkdir", "-p", dir + "/test/mutants"},
		{dir + "/usr/bin/attack", "mutants", dir + "/test/mutants"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
		}
	}
	guest(t, "attack.sh", append(users, "--add", dir+":/", "--timeout", "900")...)
}

// Virtual machines in scopes, some by a manager that acts for them.
func TestManager(t *testing.T) {
	guest(t, "manager.sh", "--next-kernel", "7.3", "--add", "../../bin/vm-manager:/usr/bin/vm-manager",
		"--add", "../../examples/vm-manager:/test/vm-manager", "--timeout", "900")
}

// Users' own services, and containers.
func TestPlaces(t *testing.T) {
	guest(t, "places.sh", append(users, "--next-kernel", "7.3", "--timeout", "900")...)
}

func TestCClient(t *testing.T) {
	guest(t, "cclient.sh", append(compiler, "--next-kernel", "7.3", "--add", "../../examples/c:/test/c", "--timeout", "600")...)
}

func TestTool(t *testing.T) {
	guest(t, "tool.sh", "--next-kernel", "7.3", "--timeout", "600")
}

func TestKernelABI(t *testing.T) {
	guest(t, "liveupdate.sh", "--os", "none", "--next-kernel", "7.3")
}

func TestDaemon(t *testing.T) {
	guest(t, "daemon.sh", "--os", "none", "--timeout", "600")
}

func TestNotEnabled(t *testing.T) {
	guest(t, "notready.sh", "--os", "none", "--cmdline", "liveupdate=off",
		"--env", "PROBLEM=notEnabled", "--env", "SENTENCE=live update is not enabled")
}

func TestNoOrchestrator(t *testing.T) {
	guest(t, "notready.sh", "--os", "none", "--kernel", "7.2-noluo",
		"--env", "PROBLEM=noDevice", "--env", "SENTENCE=this kernel has no Live Update Orchestrator")
}

func TestInventory(t *testing.T) {
	guest(t, "list.sh", "--next-kernel", "7.3", "--timeout", "600")
}

// An update with twenty participants, called off in each way and then carried out.
func TestUpdate(t *testing.T) {
	guest(t, "update.sh", "--next-kernel", "7.3", "--timeout", "900")
}

// What an update is refused for, under the packaged units.
func TestRefused(t *testing.T) {
	guest(t, "refused.sh", "--next-kernel", "7.3", "--timeout", "600")
}
