// SPDX-License-Identifier: MIT

package luosim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// says checks that luosim said one sentence to the user, in which the words are.
func (e *emulator) says(words ...string) {
	e.t.Helper()
	said := e.stderr.String()
	if strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "luosim: ") {
		e.t.Errorf("luosim said %q, want one line", said)
	}
	for _, w := range words {
		if !strings.Contains(said, w) {
			e.t.Errorf("luosim said %q, and nothing of %s", said, w)
		}
	}
}

// What can't be emulated is refused or left to the real machine, and said once.
func TestAProgramWithItsOwnListener(t *testing.T) {
	e := emulate(t, nil, program("listener")...)
	expect(t, fmt.Sprint(e.status()), "0")
	// It is what the kernel says of a second listener.
	expect(t, e.stdout.String(), "device or resource busy\nthe device opens\n")
	e.says("seccomp")
}

func TestAProgramWithIoUring(t *testing.T) {
	e := emulate(t, nil, program("io_uring")...)
	expect(t, fmt.Sprint(e.status()), "0")
	// It is what the kernel says where io_uring is not built in.
	expect(t, e.stdout.String(), "ENOSYS\nthe device opens\n")
	e.says("io_uring")
}

func TestAProgramWith32BitCalls(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: only x86-64 has such calls in the same program")
	}
	binary := compile(t, "testdata/compat.c")
	if err := exec.Command(binary).Run(); err != nil {
		t.Skipf("SKIPPED: this machine's kernel has no 32-bit calls: %v", err)
	}
	e := emulate(t, nil, binary)
	expect(t, fmt.Sprint(e.status()), "0")
	expect(t, e.stdout.String(), fmt.Sprintf("i386 -%d\nx32 -1\nx86-64 1\n", unix.ENOSYS))
	e.says("32-bit")
}

// Nobody but root can look into a program that its user may not read.
func TestAProgramThatIsNotReadable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can become another user")
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(dir, "closed")
	if err := os.WriteFile(closed, content, 0o711); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(closed)
	e := start(t, []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", luosim, "run", "--", "sh", "-c",
		`"$0" program script "open open"; "$1" program script "open"`, closed, self})
	expect(t, fmt.Sprint(e.status()), "0")
	if lines := strings.Fields(e.stdout.String()); len(lines) != 3 || lines[0] == "1:ok" || lines[1] != lines[0] || lines[2] != "1:ok" {
		t.Errorf("got %q, want the device for the readable program only", lines)
	}
	e.says("closed")
}

func TestAProgramWithItsOwnFilter(t *testing.T) {
	expect(t, emulate(t, nil, program("filter")...).succeed(), "invalid cross-device link\nthe device opens\n")
}

func TestLuosimInLuosim(t *testing.T) {
	for name, prefix := range map[string][]string{"as it is": nil, "in disguise": {"env", "-u", "LUOSIM_BOOT"}} {
		t.Run(name, func(t *testing.T) {
			e := emulate(t, nil, slices.Concat(prefix, []string{luosim, "run", "--", "true"})...)
			expect(t, fmt.Sprint(e.status()), "1")
			// In disguise both have something to say: the outer one of the listener, the inner one of why it ends.
			for line := range strings.Lines(e.stderr.String()) {
				if !strings.HasPrefix(line, "luosim: ") {
					t.Errorf("said: %s", line)
				}
			}
			if !strings.Contains(e.stderr.String(), "inside luosim") && !strings.Contains(e.stderr.String(), "listener") {
				t.Errorf("said %q", &e.stderr)
			}
		})
	}
}

// denied is luosim on a host where some calls fail.
func denied(t *testing.T, errno unix.Errno, calls ...int) *emulator {
	var list []string
	for _, c := range calls {
		list = append(list, strconv.Itoa(c))
	}
	line := program("deny", strconv.Itoa(int(errno)), strings.Join(list, ","), luosim, "run", "--")
	return start(t, append(line, program("script", "open")...))
}

func TestAHostWithoutSeccomp(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EINVAL, unix.EPERM} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			if said := denied(t, errno, unix.SYS_SECCOMP).sentence(1); !strings.Contains(said, "seccomp") {
				t.Errorf("said %q", said)
			}
		})
	}
}

// Yama's ptrace_scope, an LSM or a container's filter may forbid what luosim does to its programs.
func TestAHostWithoutPtrace(t *testing.T) {
	for name, calls := range map[string][]int{
		"both":               {unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV},
		"pidfd_getfd":        {unix.SYS_PIDFD_GETFD},
		"process_vm_readv":   {unix.SYS_PROCESS_VM_READV},
		"process_vm_writev":  {unix.SYS_PROCESS_VM_WRITEV},
		"pidfd_getfd ENOSYS": {unix.SYS_PIDFD_GETFD},
	} {
		t.Run(name, func(t *testing.T) {
			errno := unix.EPERM
			if strings.HasSuffix(name, "ENOSYS") {
				errno = unix.ENOSYS
			}
			e := denied(t, errno, calls...)
			if e.status() == 0 {
				// What luosim doesn't need can't be missed.
				expect(t, e.stdout.String(), "1:ok\n")
				return
			}
			denied(t, errno, calls...).sentence(1)
		})
	}
}

func TestUsers(t *testing.T) {
	const carry, back = "create:s preserve:s:1 kexec", "retrieve:s get:s:1 finish:s"
	for name, prefix := range map[string][]string{
		"an ordinary user":                  {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"},
		"an ordinary user, no new rights":   {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"},
		"root without capabilities":         {"setpriv", "--bounding-set=-all", "--inh-caps=-all"},
		"root of a user namespace":          {"unshare", "-Ur"},
		"a user in a user namespace":        {"unshare", "-U"},
		"PID 1 of user and PID namespaces":  {"unshare", "-Urpf", "--mount-proc"},
		"not PID 1 of a PID namespace":      {"unshare", "-Urpf", "--mount-proc", "sh", "-c", `"$@"; exit $?`, "sh"},
		"an ordinary user's user namespace": {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur"},
	} {
		t.Run(name, func(t *testing.T) {
			if prefix[0] == "setpriv" && os.Getuid() != 0 {
				t.Skip("SKIPPED: only root can become another user")
			}
			if out, err := exec.Command(prefix[0], append(slices.Clone(prefix[1:]), "true")...).CombinedOutput(); err != nil {
				t.Skipf("SKIPPED, not possible on this machine: %s: %v: %s", strings.Join(prefix, " "), err, out)
			}
			line := slices.Concat(prefix, []string{luosim, "run", "--"}, program("script", carry, back))
			expect(t, strings.ReplaceAll(start(t, line).succeed(), "\n", " "), "1:ok 1:ok 2:ok 2:ok 2:ok ")
			line = slices.Concat(prefix, []string{luosim, "run", "--"}, program("daemon", "kexec"))
			expect(t, start(t, line).succeed(), "daemon1 0\n")
			line = slices.Concat(prefix, []string{luosim, "run", "--"}, program("rabbits", "kexec"))
			expect(t, start(t, line).succeed(), "ready\nolder processes 0\n")
		})
	}
}
