// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

const (
	cgroups = "/sys/fs/cgroup"

	// vmm is the unit that the test process lives in, and others that may have sessions.
	vmm        = "/system.slice/vmm.service"
	other      = "/system.slice/other.service"
	holdfastd  = "/system.slice/holdfastd.service"
	loginScope = "/user.slice/user-1000.slice/session-3.scope"
)

// TestMain lets a copy of this program be a client in a cgroup of its own, see [startClient].
func TestMain(m *testing.M) {
	if path := os.Getenv("GUEST_TEST_CONNECT"); path != "" {
		if err := lendConnection(path); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv("HOLDFAST_VM") == "1" {
		if err := enter(vmm); err != nil {
			fmt.Fprintln(os.Stderr, "this is to be root in a machine of its own:", err)
			os.Exit(1)
		}
	}
	fdtest.Main(m)
}

// inVM skips a test outside of a virtual machine.
func inVM(t *testing.T) {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "1" {
		t.Skip("needs a LUO kernel; make test runs it in a VM")
	}
}

// enter moves this process into a cgroup.
func enter(cgroup string) error {
	if err := os.MkdirAll(cgroups+cgroup, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cgroups+cgroup, "cgroup.procs"), []byte("0"), 0)
}

// move moves a process into a cgroup.
func move(t *testing.T, pid int, cgroup string) {
	t.Helper()
	if err := os.MkdirAll(cgroups+cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cgroups+cgroup, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		t.Fatal(err)
	}
}

// openCgroup makes a cgroup and opens its directory, to start processes in.
func openCgroup(t *testing.T, cgroup string) *os.File {
	t.Helper()
	if err := os.MkdirAll(cgroups+cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cgroups + cgroup)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startIn starts cmd in a cgroup.
func startIn(t *testing.T, cmd *exec.Cmd, cgroup string) {
	t.Helper()
	dir := openCgroup(t, cgroup)
	defer dir.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s in %s: %v", strings.Join(cmd.Args, " "), cgroup, err)
	}
}
