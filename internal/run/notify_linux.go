// SPDX-License-Identifier: MIT

package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notifyMax is the longest message that systemd takes (NOTIFY_BUFFER_MAX, src/shared/notify-recv.h, systemd 262).
const notifyMax = 4096

// passedOn is what a command may tell the service manager (sd_notify(3), systemd 262). What isn't here would make it the
// service's main process, so that nobody listened to this one any more, or change the fd store, which is this one's.
var passedOn = []string{
	"READY", "RELOADING", "STOPPING", "MONOTONIC_USEC", "STATUS", "ERRNO", "BUSERROR", "VARLINKERROR", "EXIT_STATUS",
	"WATCHDOG", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC", "RESTART_RESET",
}

// serviceManager is whom messages are for.
type serviceManager struct {
	Notify  func(state string) error
	Barrier func(context.Context) error // waits until all that was sent before has been handled
}

// notifySocket is a $NOTIFY_SOCKET for one run of a command.
type notifySocket struct {
	to       serviceManager
	log      *slog.Logger
	conn     *net.UnixConn
	stopping atomic.Bool
	ctx      context.Context
	end      context.CancelFunc
	ended    chan struct{}
}

// listenNotify makes a socket. What is sent to it waits there until Serve says who may send.
func listenNotify(to serviceManager, log *slog.Logger) (*notifySocket, error) {
	// The kernel chooses an abstract name (unix(7), autobind): there is nothing to clean up, and a command with another
	// user, or another root directory, reaches it too.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("making a notify socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var sockErr error
		err = raw.Control(func(s uintptr) { sockErr = unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, os.NewSyscallError("setsockopt(SO_PASSCRED)", sockErr))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("making a notify socket: %w", err)
	}
	n := &notifySocket{to: to, log: log, conn: conn}
	n.ctx, n.end = context.WithCancel(context.Background())
	return n, nil
}

// Path is for $NOTIFY_SOCKET.
func (n *notifySocket) Path() string { return n.conn.LocalAddr().String() }

// Stopping says that the command is being stopped for an update, which may be called off: the service doesn't stop, and its
// STOPPING=1 isn't passed on.
func (n *notifySocket) Stopping(yes bool) { n.stopping.Store(yes) }

// Serve passes on what the processes of a group send, until Close. Any process of the network namespace can send. The PID
// comes from the kernel, and whose group it is in is asked later: a sender that has ended by then is not heard, as systemd
// doesn't hear it (sd_notify(3), "Description"). The user doesn't count, since a command may change it, and since others run as it.
func (n *notifySocket) Serve(group int) {
	n.ended = make(chan struct{})
	go func() {
		defer close(n.ended)
		for {
			m, err := n.receive()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				err = n.handle(group, m)
			}
			m.close()
			if err != nil {
				n.log.Warn("a notification of the command was not passed on", "error", err)
			}
		}
	}()
}

// Close ends the socket, and waits until nothing is passed on any more.
func (n *notifySocket) Close() error {
	n.end()
	err := n.conn.Close()
	if n.ended != nil {
		<-n.ended
	}
	return err
}

type notification struct {
	text   string
	sender int
	fds    []int
	cut    bool
}

func (m notification) close() {
	for _, raw := range m.fds {
		unix.Close(raw)
	}
}

func (n *notifySocket) receive() (notification, error) {
	// A byte more tells a longer one; and one descriptor more than a barrier has. The kernel closes the rest.
	text, control := make([]byte, notifyMax+1), make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(2*4))
	size, controlSize, flags, _, err := n.conn.ReadMsgUnix(text, control)
	if err != nil {
		return notification{}, err
	}
	m := notification{text: string(text[:size]), cut: size > notifyMax || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0}
	parts, err := unix.ParseSocketControlMessage(control[:controlSize])
	for _, part := range parts {
		if rights, err := unix.ParseUnixRights(&part); err == nil {
			m.fds = append(m.fds, rights...)
		} else if from, err := unix.ParseUnixCredentials(&part); err == nil {
			m.sender = int(from.Pid)
		}
	}
	return m, err
}

func (n *notifySocket) handle(group int, m notification) error {
	if of, err := unix.Getpgid(m.sender); m.sender <= 0 || err != nil || of != group {
		return fmt.Errorf("its sender, PID %d, is not in the command's process group, or has ended", m.sender)
	}
	text := strings.TrimSuffix(m.text, "\x00") // systemd lets that pass (src/shared/notify-recv.c, systemd 262)
	switch {
	case m.cut:
		return fmt.Errorf("it has more than %d bytes, or too many descriptors", notifyMax)
	case strings.Contains(text, "\x00"):
		return errors.New("it has a NUL in it")
	}
	// systemd splits at both (strv_split_newlines(), src/basic/strv.h, systemd 262).
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	if slices.Contains(lines, "BARRIER=1") {
		if len(lines) != 1 || len(m.fds) != 1 {
			return fmt.Errorf("BARRIER=1 came with %d other lines and %d descriptors, not with one descriptor alone", len(lines)-1, len(m.fds))
		}
		// The sender waits until its descriptor is closed, which comes next.
		return n.to.Barrier(n.ctx)
	}
	lines = slices.DeleteFunc(lines, func(line string) bool {
		name, _, ok := strings.Cut(line, "=")
		own := strings.HasPrefix(name, "X_")
		return !ok || !own && !slices.Contains(passedOn, name) || name == "STOPPING" && n.stopping.Load()
	})
	if len(lines) == 0 {
		return nil
	}
	return n.to.Notify(strings.Join(lines, "\n"))
}

// watchdog is within which time the service manager wants to hear from this process; 0 if it doesn't.
func watchdog() time.Duration {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return limit
}
