// SPDX-License-Identifier: MIT

package peer

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

// TestMain lets a copy of this program be the peer: it connects, says so, and stays until its standard input ends.
func TestMain(m *testing.M) {
	if path := os.Getenv("PEER_TEST_CONNECT"); path != "" {
		conn, err := net.Dial("unix", path)
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Println("connected")
		bufio.NewReader(os.Stdin).ReadByte()
		return
	}
	fdtest.Main(m)
}

func TestOwner(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/":                                           "",
		"/system.slice":                               "",
		"/system.slice/vmm.service":                   "/vmm.service",
		"/a.slice/a-b.slice/vmm.service":              "/vmm.service",
		"/system.slice/vmm.service/sub/deeper":        "/vmm.service",
		"/system.slice/vmm.service/other.service":     "/vmm.service/other.service",
		"/system.slice/_cpu.service":                  "/cpu.service",
		"/user.slice/user-1000.slice/session-3.scope": "/session-3.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/cache.service": "/user@1000.service/cache.service",
		`/machine.slice/machine-qemu\x2d3\x2dvm1.scope/libvirt/vcpu0`:           `/machine-qemu\x2d3\x2dvm1.scope`,
		"/init.scope":              "/init.scope",
		"/x/.service":              "",
		"/x/vmm.service.d":         "",
		"/x/a b.service":           "",
		"/x/@.service":             "",
		"/x/vmm.service (deleted)": "",
		"/x/" + strings.Repeat("a", 248) + ".service": "",
	} {
		if got := Owner(cgroup); got != want {
			t.Errorf("Owner(%q) = %q, want %q", cgroup, got, want)
		}
	}
	if got := Outermost("/user.slice/user@1000.service/app.slice/cache.service"); got != "user@1000.service" {
		t.Errorf("Outermost: %q", got)
	}
}

func TestUnitPath(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/":                            "",
		"/system.slice":                "",
		"/system.slice/vmm.service":    "/system.slice/vmm.service",
		"/system.slice/_a.service/sub": "/system.slice/_a.service",
		"/user.slice/user@1000.service/app.slice/terminal.scope": "/user.slice/user@1000.service/app.slice/terminal.scope",
	} {
		if got := UnitPath(cgroup); got != want {
			t.Errorf("UnitPath(%q) = %q, want %q", cgroup, got, want)
		}
	}
}

func TestParseFdinfo(t *testing.T) {
	for fdinfo, want := range map[string]int{
		"pos:\t0\nflags:\t02000002\nPid:\t1234\nNSpid:\t1234\n": 1234,
		"pos:\t0\nPid:\t-1\n": -1,
		"pos:\t0\n":           0,
	} {
		if got := parseFdinfo(fdinfo); got != want {
			t.Errorf("%q: %d, want %d", fdinfo, got, want)
		}
	}
}

func TestKnowsAllUIDs(t *testing.T) {
	for uidMap, want := range map[string]bool{
		"         0          0 4294967295\n": true,
		"         0       1000          1\n": false,
		"         0     100000      65536\n": false,
		"0 1000 1\n1 100000 65536\n":         false,
		"":                                   false,
	} {
		if got := knowsAllUIDs(uidMap); got != want {
			t.Errorf("%q: %v", uidMap, got)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	const unified = "24 19 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	const hybrid = "30 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
		"31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"32 30 0:29 /inner /elsewhere rw - cgroup2 cgroup2 rw\n" +
		"33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	for mountinfo, want := range map[string]string{unified: "/sys/fs/cgroup", hybrid: "/sys/fs/cgroup/unified"} {
		if got, err := parseMountinfo(mountinfo); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := parseMountinfo("31 30 0:28 / /sys/fs/cgroup rw - cgroup cgroup rw\n"); err == nil {
		t.Error("a v1 tree alone was accepted")
	}
}

func TestParseCgroup(t *testing.T) {
	if path, ok := parseCgroup([]byte("9:name=systemd:/x\n0::/system.slice/a.service\n")); path != "/system.slice/a.service" || !ok {
		t.Errorf("%q, %v", path, ok)
	}
	for _, bad := range []string{"", "9:memory:/x\n", "0::\n"} {
		if path, ok := parseCgroup([]byte(bad)); ok {
			t.Errorf("%q gave %q", bad, path)
		}
	}
}

// TestIdentity follows one real process: in its unit, moved to another, and dead.
func TestIdentity(t *testing.T) {
	cgroups, err := FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	if syscall.Geteuid() != 0 || syscall.Access(cgroups.mount, 2) != nil {
		t.Skipf("making cgroups below %s needs root", cgroups.mount)
	}
	base := fmt.Sprintf("/holdfast-test-%d", os.Getpid())
	first, second := base+"/first.service", base+"/second.service"
	for _, dir := range []string{base, first, second} {
		if err := os.Mkdir(cgroups.mount+dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(cgroups.mount + dir) })
	}
	dir, err := os.Open(cgroups.mount + first)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	child, process := connected(t, cgroups, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())})
	older := &Process{pidfd: process.pidfd, cgroups: &Cgroups{}}

	check := func(cgroup, owner string) {
		t.Helper()
		want := Identity{PID: child.Process.Pid, UID: 0, Cgroup: cgroup, Owner: owner}
		for _, p := range []*Process{process, older} {
			if id, err := p.Identity(); err != nil || id != want {
				t.Errorf("%+v, %v; want %+v", id, err, want)
			}
		}
	}
	check(first, "/first.service")
	check(first, "/first.service") // from memory
	if err := os.WriteFile(cgroups.mount+second+"/cgroup.procs", fmt.Appendf(nil, "%d", child.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	check(second, "/second.service")

	child.Process.Kill()
	child.Wait()
	for _, p := range []*Process{process, older} {
		if id, err := p.Identity(); !errors.Is(err, ErrGone) {
			t.Errorf("after its death: %+v, %v", id, err)
		}
	}
}

// ownCgroup is this process's. Only where the kernel says that there is none may it be missing.
func ownCgroup(t *testing.T) string {
	t.Helper()
	own, err := OwnCgroup()
	if err == nil {
		return own
	}
	if lines, readErr := os.ReadFile("/proc/self/cgroup"); readErr == nil && !strings.Contains("\n"+string(lines), "\n0::") {
		t.Skip("this process is in no cgroup of version 2: ", err)
	}
	t.Fatal(err)
	return ""
}

// TestSubjects are processes that didn't connect: their user is who they are now.
func TestSubjects(t *testing.T) {
	own := ownCgroup(t)
	cgroups, err := FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	uid := os.Geteuid()
	if uid == 0 {
		uid = 54321
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	raw, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := fd.New(raw)
	defer pidfd.Close()
	want := Identity{PID: child.Process.Pid, UID: uint32(uid), Cgroup: own, Owner: Owner(own)}
	for name, c := range map[string]*Cgroups{"by number": cgroups, "by path": {}} {
		if id, err := c.OfPIDFD(pidfd); err != nil || id != want {
			t.Errorf("%s: %+v, %v; want %+v", name, id, err, want)
		}
		if id, err := c.OfPID(child.Process.Pid); err != nil || id != want {
			t.Errorf("%s, of the PID: %+v, %v; want %+v", name, id, err, want)
		}
	}
	child.Process.Kill()
	child.Wait()
	for name, c := range map[string]*Cgroups{"by number": cgroups, "by path": {}} {
		if id, err := c.OfPIDFD(pidfd); !errors.Is(err, ErrGone) {
			t.Errorf("%s, after its death: %+v, %v", name, id, err)
		}
	}
	if id, err := cgroups.OfPID(child.Process.Pid); err == nil {
		t.Errorf("after its death: %+v", id)
	}
	if _, err := effectiveUID(pidfd.Raw(), os.Getpid()); !errors.Is(err, ErrGone) {
		t.Errorf("the user of a PID that is another process's by now: %v", err)
	}
}

// TestOlderKernelsAndContainers: where the kernel has no numbers of cgroups, or no hierarchy is mounted, a process is the
// same one as anywhere.
func TestOlderKernelsAndContainers(t *testing.T) {
	own := ownCgroup(t)
	child, process := connected(t, &Cgroups{}, nil)
	want := Identity{PID: child.Process.Pid, UID: uint32(os.Geteuid()), Cgroup: own, Owner: Owner(own)}
	if id, err := process.Identity(); err != nil || id != want {
		t.Errorf("%+v, %v; want %+v", id, err, want)
	}
	child.Process.Kill()
	child.Wait()
	if id, err := process.Identity(); !errors.Is(err, ErrGone) {
		t.Errorf("after its death: %+v, %v", id, err)
	}
	if pid, cgroup, err := byPID(process.pidfd.Raw()); !errors.Is(err, ErrGone) {
		t.Errorf("after its death: %d, %q, %v", pid, cgroup, err)
	}
}

// connected starts a process that connects, and takes hold of it.
func connected(t *testing.T, cgroups *Cgroups, attr *syscall.SysProcAttr) (*exec.Cmd, *Process) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	child := exec.Command("/proc/self/exe")
	child.Env = []string{"PEER_TEST_CONNECT=" + path}
	child.SysProcAttr = attr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	process, err := cgroups.FromConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Close() })
	return child, process
}
