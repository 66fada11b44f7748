// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoNotifySocket says that nobody listens: the process wasn't started by systemd, or not as a service.
var ErrNoNotifySocket = errors.New("$NOTIFY_SOCKET is not set: this isn't a service of systemd, or one with NotifyAccess=none")

// notifyWait is how long to wait for room in the service manager's queue, in seconds.
const notifyWait = 10

// Notify sends assignments, one a line, to the service manager (sd_notify(3)). The descriptors stay the caller's.
func Notify(state string, fds ...int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return ErrNoNotifySocket
	}
	// A plain socket, since a connected net.UnixConn of datagrams can't send descriptors.
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	// A service manager that hangs has its queue full soon.
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: notifyWait}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err = unix.Sendmsg(socket, []byte(state), rights, &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("notify socket %s: %q: %w", path, strings.TrimSpace(state), err)
	}
	return nil
}

// NotifyReloading tells the service manager that the configuration is being read anew, as a service of
// Type=notify-reload does before the next READY=1 (systemd.service(5)).
func NotifyReloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return os.NewSyscallError("clock_gettime", err)
	}
	return Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// Barrier waits until the service manager has handled all that was sent before. It does not tell what came of it.
func Barrier(ctx context.Context) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	err = Notify("BARRIER=1", int(write.Fd()))
	write.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { read.Close() })
	defer stop()
	// Nothing is ever written: the read ends when the manager closes its copy of the other end.
	if _, err := read.Read(make([]byte, 1)); errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("waiting for the service manager's barrier: %w", context.Cause(ctx))
	}
	return nil
}
