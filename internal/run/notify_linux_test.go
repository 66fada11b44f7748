// SPDX-License-Identifier: MIT

package run

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heard is a service manager that remembers.
type heard struct {
	t        *testing.T
	messages chan string
	barriers chan chan struct{} // each is to be closed when all before has been handled
}

// listening has a socket that serves a group.
func listening(t *testing.T, group int) (*notifySocket, *heard) {
	h := &heard{t, make(chan string, 100), make(chan chan struct{})}
	n, err := listenNotify(serviceManager{
		Notify: func(state string) error {
			h.messages <- state
			return nil
		},
		Barrier: func(ctx context.Context) error {
			handled := make(chan struct{})
			select {
			case h.barriers <- handled:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-handled:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if group != 0 {
		n.Serve(group)
	}
	return n, h
}

func (h *heard) expect(want string) {
	h.t.Helper()
	select {
	case got := <-h.messages:
		if got != want {
			h.t.Errorf("PID 1 heard %q, not %q", got, want)
		}
	case <-time.After(patience):
		h.t.Fatalf("PID 1 has not heard %q", want)
	}
}

// send is from this process, with descriptors.
func send(t *testing.T, n *notifySocket, text string, fds ...int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s, []byte(text), rights, &unix.SockaddrUnix{Name: n.Path()}, 0); err != nil {
		t.Fatal(err)
	}
}

// pipe's write end can be sent; the read end tells when nobody has it any more.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	r.SetReadDeadline(time.Now().Add(patience))
	return r, w
}

func isClosed(t *testing.T, r *os.File) {
	t.Helper()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor that came along is still open: %v", err)
	}
}

func TestWhatACommandMaySay(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	long := "STATUS=" + strings.Repeat("x", notifyMax-len("STATUS="))
	for _, m := range []struct{ says, passes string }{
		{"READY=1", "READY=1"},
		{"READY=1\nSTATUS=on = off\n", "READY=1\nSTATUS=on = off"},
		{"RELOADING=1\nMONOTONIC_USEC=17", "RELOADING=1\nMONOTONIC_USEC=17"},
		{"STOPPING=1\nERRNO=2\nBUSERROR=a\nVARLINKERROR=b\nEXIT_STATUS=3", "STOPPING=1\nERRNO=2\nBUSERROR=a\nVARLINKERROR=b\nEXIT_STATUS=3"},
		{"WATCHDOG=1\nWATCHDOG_USEC=5\nEXTEND_TIMEOUT_USEC=6\nRESTART_RESET=1", "WATCHDOG=1\nWATCHDOG_USEC=5\nEXTEND_TIMEOUT_USEC=6\nRESTART_RESET=1"},
		{"X_OURS=1", "X_OURS=1"},
		{"READY=1\x00", "READY=1"},
		{long, long},
		// It stays this process's service, and fd store.
		{"MAINPID=1\nREADY=1\nFDSTORE=1\nFDNAME=x\nFDPOLL=0", "READY=1"},
		{"MAINPIDFD=1\nMAINPIDFDID=2\nFDSTOREREMOVE=1\nNOTIFYACCESS=all", ""},
		{"READY=1\rMAINPID=1", "READY=1"},
		{"UNHEARD_OF=1", ""},
		// What isn't a message.
		{"", ""}, {"\n\r\n", ""}, {"READY", ""}, {"=1", ""}, {"\xff\xfe=\x01", ""}, {"READY=1\x00MAINPID=1", ""}, {"\x00", ""},
		{long + "x", ""}, {strings.Repeat("READY=1\n", 20000), ""},
	} {
		send(t, n, m.says)
		send(t, n, "STATUS=next")
		if m.passes != "" {
			pid1.expect(m.passes)
		}
		pid1.expect("STATUS=next")
	}
}

func TestAStopForAnUpdateIsNotTheServices(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	n.Stopping(true)
	send(t, n, "STOPPING=1")
	send(t, n, "STOPPING=1\nSTATUS=saving")
	pid1.expect("STATUS=saving")
	n.Stopping(false)
	send(t, n, "STOPPING=1")
	pid1.expect("STOPPING=1")
}

func TestOnlyTheCommandsProcessesAreHeard(t *testing.T) {
	n, pid1 := listening(t, 0)
	// It waits in the socket that the stranger's message is dropped, and the command's isn't.
	send(t, n, "STATUS=of a stranger")
	t.Setenv(roleVariable, "notifier")
	c, err := start(childConfig{Words: []string{"/bin/sh", "-c", "/proc/" + pidText() + "/exe"}, NotifySocket: n.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill() })
	n.Serve(c.PID())
	pid1.expect("READY=1")
}

func TestDescriptorsOfTheCommandAreClosed(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	for _, count := range []int{1, 2, 3, 100, 253} {
		r, w := pipe(t)
		fds := make([]int, count)
		for i := range fds {
			fds[i] = int(w.Fd())
		}
		send(t, n, "FDSTORE=1\nFDNAME=x", fds...)
		w.Close()
		isClosed(t, r)
	}
	send(t, n, "READY=1")
	pid1.expect("READY=1")
}

func TestABarrierEndsWhenAllBeforeHasBeenHandled(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	r, w := pipe(t)
	send(t, n, "READY=1")
	send(t, n, "BARRIER=1", int(w.Fd()))
	w.Close()
	handled := <-pid1.barriers
	pid1.expect("READY=1")
	r.SetReadDeadline(time.Now())
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it ended too early: %v", err)
	}
	r.SetReadDeadline(time.Now().Add(patience))
	close(handled)
	isClosed(t, r)
}

func TestABarrierComesAloneWithOneDescriptor(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	r, w := pipe(t)
	raw := int(w.Fd())
	send(t, n, "BARRIER=1")
	send(t, n, "BARRIER=1", raw, raw)
	send(t, n, "BARRIER=1\nREADY=1", raw)
	w.Close()
	isClosed(t, r)
	send(t, n, "STATUS=next")
	pid1.expect("STATUS=next") // none of them was passed on, since nobody has answered it
}

func TestCloseDoesNotWaitForTheServiceManager(t *testing.T) {
	n, pid1 := listening(t, unix.Getpgrp())
	r, w := pipe(t)
	send(t, n, "BARRIER=1", int(w.Fd()))
	w.Close()
	<-pid1.barriers
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	isClosed(t, r)
}

func TestTheWatchdogIsThisProcesses(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "2000000")
	for pid, want := range map[string]time.Duration{pidText(): 2 * time.Second, "1": 0, "x": 0} {
		t.Setenv("WATCHDOG_PID", pid)
		if got := watchdog(); got != want {
			t.Errorf("$WATCHDOG_PID %s: %s", pid, got)
		}
	}
}

func pidText() string { return strconv.Itoa(os.Getpid()) }
