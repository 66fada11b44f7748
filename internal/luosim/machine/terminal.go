// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"golang.org/x/sys/unix"
)

// inForeground tells whether this process is one that its terminal sends signals to.
func inForeground() bool {
	t := rememberTerminal()
	t.close()
	return t != nil
}

// terminal is how the terminal was before COMMAND, if this process has one and is in its foreground; else it is nil.
type terminal struct {
	fd    int
	modes *unix.Termios
}

func rememberTerminal() *terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	group, groupErr := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || groupErr != nil || group != unix.Getpgrp() {
		unix.Close(fd)
		return nil
	}
	return &terminal{fd, modes}
}

func (t *terminal) close() {
	if t != nil {
		unix.Close(t.fd)
	}
}

// restore gives the terminal back to this process's group: a shell that was killed by the kexec had taken it for groups
// of its own, and perhaps in another mode. Whoever isn't in the foreground is stopped for that by SIGTTOU, unless it is
// blocked; the caller's thread must stay the same.
func (t *terminal) restore() {
	if t == nil {
		return
	}
	var stop, before unix.Sigset_t
	stop.Val[0] = 1 << (uint(unix.SIGTTOU) - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &stop, &before) != nil {
		return
	}
	unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, unix.Getpgrp())
	unix.IoctlSetTermios(t.fd, unix.TCSETSW, t.modes)
	unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
}
