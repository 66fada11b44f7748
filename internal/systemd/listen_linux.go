// SPDX-License-Identifier: MIT

package systemd

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Listened is one descriptor that was handed over at the start.
type Listened struct {
	Name string // FDNAME, or "" where none was told
	Raw  int
}

// ListenFDs returns what was handed over by $LISTEN_FDS (sd_listen_fds(3)), and makes it close-on-exec. The
// descriptors aren't taken: calling it again returns the same.
func ListenFDs() []Listened {
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 1<<20 {
		return nil
	}
	var names []string
	if s := os.Getenv("LISTEN_FDNAMES"); s != "" {
		names = strings.Split(s, ":")
	}
	fds := make([]Listened, 0, n)
	for i := range n {
		l := Listened{Raw: 3 + i}
		if i < len(names) {
			l.Name = names[i]
		}
		unix.CloseOnExec(l.Raw)
		fds = append(fds, l)
	}
	return fds
}

// IsListening tells whether a descriptor is that of a socket that listens.
func IsListening(raw int) bool {
	listening, err := unix.GetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listening != 0
}

// StartOver executes this program anew in this process, with the one socket that systemd handed over. Who connects
// meanwhile waits in the socket's queue. It returns only if that fails.
func StartOver(listener *net.UnixListener) error {
	conn, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	// $LISTEN_PID is still this process, and the socket was 3. Whatever else there is now ends with the exec: what came
	// behind the socket too.
	var dupErr error
	if err := conn.Control(func(raw uintptr) {
		if raw == 3 {
			_, dupErr = unix.FcntlInt(raw, unix.F_SETFD, 0)
		} else {
			dupErr = unix.Dup3(int(raw), 3, 0)
		}
	}); err != nil || dupErr != nil {
		return fmt.Errorf("handing the socket on: %w", cmp.Or(err, dupErr))
	}
	first, _, _ := strings.Cut(os.Getenv("LISTEN_FDNAMES"), ":")
	if err := cmp.Or(os.Setenv("LISTEN_FDS", "1"), os.Setenv("LISTEN_FDNAMES", first)); err != nil {
		return fmt.Errorf("handing the socket on: %w", err)
	}
	return fmt.Errorf("executing %s anew: %w", os.Args[0], unix.Exec(os.Args[0], os.Args, os.Environ()))
}
