// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// patience is how long anything may take that has to happen. Nothing here takes as long unless it hangs.
const patience = 20 * time.Second

// socket is the listening socket, which outlives the daemon as holdfastd.socket does.
type socket struct {
	file *os.File
	log  *os.File
}

func listen(t *testing.T) *socket {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(here.address), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: here.address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	if err := os.Chmod(here.address, 0o666); err != nil {
		t.Fatal(err)
	}
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the end of holdfastd's log:\n%s", text[max(0, len(text)-4096):])
		}
	})
	return &socket{file, log}
}

// daemon is a holdfastd.
type daemon struct {
	cmd   *exec.Cmd
	pidfd *fd.FD
}

// start starts a holdfastd on the socket, as systemd does. The shell is there for $LISTEN_PID.
func (s *socket) start(t *testing.T) *daemon {
	t.Helper()
	if !inVM {
		os.ReadDir(daemonSource) // "go test" notes that the result depends on it
	}
	pidfd := -1
	d := &daemon{}
	d.cmd = exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, here.daemon...)...)
	d.cmd.Env = []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=holdfastd.socket"}
	d.cmd.ExtraFiles = []*os.File{s.file}
	d.cmd.Stderr = s.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	startIn(t, d.cmd, here.unit)
	d.pidfd = fd.New(pidfd)
	t.Cleanup(func() { d.kill(t) })
	return d
}

// serve is a socket with a daemon that answers, and the connection by which it did.
func serve(t *testing.T) (*daemon, *connection) {
	t.Helper()
	d := listen(t).start(t)
	c := dial(t)
	c.call(t, "org.varlink.service.GetInfo", `{}`)
	return d, c
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// kill returns when nothing is left of the daemon.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	d.cmd.Process.Kill()
	d.wait(t)
}

// wait returns when the daemon has ended and nothing is left of it. Nobody waits for the process before that: the
// kernel would tell the waiting thread of a stop that is for the tracer (wait_task_stopped in kernel/exit.c, Linux 7.3).
func (d *daemon) wait(t *testing.T) {
	t.Helper()
	if d.cmd.ProcessState != nil {
		return
	}
	poll := []unix.PollFd{{Fd: int32(d.pidfd.Raw()), Events: unix.POLLIN}}
	for start := time.Now(); poll[0].Revents == 0; {
		if time.Since(start) > patience {
			t.Fatalf("holdfastd (process %d) did not end", d.pid())
		}
		if _, err := unix.Poll(poll, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
	d.cmd.Wait()
	d.pidfd.Close()
}

// descriptors are what the daemon has open.
func (d *daemon) descriptors(t *testing.T) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			targets = append(targets, e.Name()+" -> "+target)
		}
	}
	slices.Sort(targets)
	return targets
}

// back waits until the daemon has as many descriptors as before. There's no event for that: the calls in between
// leave it the processor.
func (d *daemon) back(t *testing.T, c *connection, before []string) {
	t.Helper()
	var now []string
	for start := time.Now(); time.Since(start) < patience; {
		if now = d.descriptors(t); len(now) <= len(before) {
			break
		}
		c.call(t, "org.varlink.service.GetInfo", `{}`)
	}
	if len(now) != len(before) {
		t.Fatalf("the daemon had %d descriptors before:\n\t%s\nand has %d:\n\t%s",
			len(before), strings.Join(before, "\n\t"), len(now), strings.Join(now, "\n\t"))
	}
}
