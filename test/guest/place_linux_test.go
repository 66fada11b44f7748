// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
)

// place is where the tests run, and who is who there.
type place struct {
	address string   // where holdfastd listens
	daemon  []string // its command line
	unit    string   // the cgroup that it is started in; "" is that of the tests
	rule    string   // by which me and another may have sessions

	me, another subject
}

// subject is somebody who may have sessions, or may not.
type subject struct {
	cgroup string // "" is that of the tests
	uid    uint32
	owner  string // of its sessions; "" may have none
}

// here is set by [TestMain].
var here place

// inVM tells whether this is root in a virtual machine, with a kernel and cgroups to itself.
var inVM = os.Getenv("HOLDFAST_VM") == "1"

const (
	cgroups = "/sys/fs/cgroup"

	// vmm is the unit that the test process lives in, and others that may have sessions.
	vmm        = "/system.slice/vmm.service"
	other      = "/system.slice/other.service"
	loginScope = "/user.slice/user-1000.slice/session-3.scope"
)

// machine is a virtual machine: who may have sessions are services.
func machine() (place, error) {
	if err := os.MkdirAll(cgroups+vmm, 0o755); err != nil {
		return place{}, err
	}
	return place{
		address: holdfast.Address,
		daemon:  []string{"/usr/libexec/holdfastd"},
		unit:    "/system.slice/holdfastd.service",
		rule:    "built-in",
		me:      subject{vmm, 0, "/vmm.service"},
		another: subject{other, 0, "/other.service"},
	}, os.WriteFile(filepath.Join(cgroups+vmm, "cgroup.procs"), []byte("0"), 0)
}

// emulated is any host, as any user, with a directory that has holdfastd. Who may have sessions are its users: there
// are no units but the one, if any, that this runs in.
func emulated(dir string) (place, error) {
	cgroup, err := peer.OwnCgroup()
	if err != nil {
		return place{}, err
	}
	p := place{
		address: filepath.Join(dir, "io.holdfast"),
		daemon:  []string{filepath.Join(dir, "holdfastd"), "--uid-owners"},
		rule:    "uid-owners",
	}
	rules := policy.Policy{UIDOwners: &policy.UIDOwners{Unit: peer.UnitPath(cgroup)}}
	for _, s := range []struct {
		subject *subject
		uid     uint32
	}{{&p.me, uint32(os.Getuid())}, {&p.another, 1000}} {
		s.subject.uid = s.uid
		if s.subject.owner, err = rules.Owner(peer.Identity{UID: s.uid, Cgroup: cgroup, Owner: peer.Owner(cgroup)}); err != nil {
			return place{}, err
		}
	}
	return p, nil
}

// needsVM skips a test outside of a virtual machine.
func needsVM(t *testing.T, what string) {
	t.Helper()
	if !inVM {
		t.Skipf("needs %s: make test-vm runs it in a virtual machine", what)
	}
}

// needsAnother skips a test where this process can be only itself.
func needsAnother(t *testing.T) {
	t.Helper()
	if !inVM && os.Getuid() != 0 {
		t.Skipf("needs root, to have a process of uid %d too", here.another.uid)
	}
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
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cgroup != "" {
		dir := openCgroup(t, cgroup)
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	err := cmd.Start()
	if become := cmd.SysProcAttr.Credential; become != nil && !inVM && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EINVAL)) {
		t.Skipf("needs a process of uid %d, which can't be had in this container: %v", become.Uid, err)
	}
	if err != nil {
		t.Fatalf("starting %s in %q: %v", strings.Join(cmd.Args, " "), cgroup, err)
	}
}

// start starts cmd as this subject.
func (s subject) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if s.uid != uint32(os.Getuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.uid, Gid: s.uid}}
	}
	startIn(t, cmd, s.cgroup)
}
