// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/luosim"
	pid1test "github.com/holdfast-project/holdfast/test/pid1"

	// What holdfastd is made of: "go test" must not take an earlier result for today's when that has changed.
	_ "github.com/holdfast-project/holdfast/internal/journal"
	_ "github.com/holdfast-project/holdfast/internal/orchestrator"
	_ "github.com/holdfast-project/holdfast/internal/policy"
)

var every = flag.Bool("every", false, "kill at system calls too that nobody outside the process could tell, and at each twice")

// dirVariable tells this program that it is a machine, and where its files are; phaseVariable which kills are its.
const (
	dirVariable   = "KILL_TEST_DIR"
	phaseVariable = "KILL_TEST_PHASE"
)

// TestMain is the tests, or, in a namespace of its own and under luosim there, the machine.
func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	flag.Parse()
	var err error
	if luosim.Boot() > 0 {
		var i int
		if i, err = strconv.Atoi(os.Getenv(phaseVariable)); err == nil {
			err = boot(dir, phases[i])
		}
	} else if err = ownRun(); err == nil {
		luosim.Enter(luosim.Machine{})
	}
	if err != nil {
		fmt.Println("FAIL:", err)
		os.Exit(1)
	}
}

// ownRun has this mount namespace's own /run.
func ownRun() error {
	if err := pid1test.OwnRun(); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Dir(holdfast.Address), 0o755)
}

// The client and holdfastd are killed at their system calls, from a client's first one to the release, and in a renewal
// after an update; then the client is started again, or only after the next update. What was acknowledged is there, whoever
// died; what wasn't is there whole or not at all; and nothing stands in the way of the next client. With -v it prints what
// was there, by the last step that the client had told of.
func TestKillMatrix(t *testing.T) {
	dir := t.TempDir()
	for _, source := range []string{"../../cmd/holdfastd", "."} {
		os.ReadDir(source) // "go test" notes that the result depends on it
		build := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	for i, p := range phases {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			runMachine(t, dir, i)
		})
	}
}

// runMachine has a machine of its own do the kills of a phase.
func runMachine(t *testing.T, bin string, phase int) {
	dir := t.TempDir()
	for _, name := range []string{"holdfastd", "kill"} {
		if err := os.Symlink(filepath.Join(bin, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	cmd := exec.CommandContext(t.Context(), self, fmt.Sprintf("-every=%v", *every))
	cmd.Env = append(os.Environ(), dirVariable+"="+dir, phaseVariable+"="+strconv.Itoa(phase))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Fatalf("it takes a user namespace, and this machine gives none (kernel.unprivileged_userns_clone, user.max_user_namespaces): %v", err)
	}
	if err != nil || !strings.HasSuffix(string(out), "all done\n") {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Errorf("%v\n%s\nThe end of holdfastd's log:\n%s", err, out, log[max(0, len(log)-4096):])
		return
	}
	t.Logf("%.0f s\n%s", time.Since(begun).Seconds(), out)
}
