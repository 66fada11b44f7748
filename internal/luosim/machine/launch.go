// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/notify"
)

// COMMAND is started by way of this same program: it puts the filter on itself, and becomes COMMAND then. Whatever
// program this package is linked into behaves so if it is called by this name.
const launcherName = "luosim: launcher"

func init() {
	if len(os.Args) > 2 && os.Args[0] == launcherName && !privileged() {
		runtime.LockOSThread()
		os.Exit(becomeCommand(os.Args[1], os.Args[2:]))
	}
}

// Exit statuses of shells, for a COMMAND that can't be started.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// becomeCommand returns only if that failed. The supervisor at the other end of the socket gets the listener.
func becomeCommand(socket string, command []string) int {
	fd, err := strconv.Atoi(socket)
	if err != nil {
		return 1
	}
	unix.CloseOnExec(fd)
	fail := func(status int, format string, args ...any) int {
		unix.Send(fd, []byte(fmt.Sprintf(format, args...)), 0)
		return status
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fail(1, "prctl(PR_SET_PDEATHSIG): %v", err)
	}
	path, err := exec.LookPath(command[0])
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return fail(exitNotFound, "%s: command not found", command[0])
	case err != nil:
		return fail(exitNotExecutable, "%v", err)
	}
	listener, err := notify.Install(rules())
	if err != nil {
		return fail(1, "%s", whyNoFilter(err))
	}
	if err := unix.Sendmsg(fd, []byte{listening}, unix.UnixRights(listener), nil, 0); err != nil {
		return fail(1, "sending the listener: %v", err)
	}
	unix.Close(listener)
	// The supervisor says when it has looked whether it can serve us.
	var answer [1]byte
	if n, err := unix.Read(fd, answer[:]); err != nil || n == 0 {
		return 1
	}
	err = syscall.Exec(path, command, os.Environ())
	if errors.Is(err, unix.ENOENT) {
		return fail(exitNotFound, "%s: %v (its interpreter?)", path, err)
	}
	return fail(exitNotExecutable, "%s: %v", path, err)
}

// listening is the message that the listener comes with. Any other one is an error's text.
const listening = 0

func whyNoFilter(err error) string {
	switch err {
	case unix.EBUSY:
		return "another seccomp listener is in force here already (a luosim outside, or a container's): there can be only one"
	case unix.ENOSYS:
		return "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER), or whoever started luosim forbids them"
	case unix.EINVAL:
		return "this kernel's seccomp can't ask another process about system calls without being disturbed by signals: Linux 5.19 or newer is needed"
	case unix.EPERM, unix.EACCES:
		return "whoever started luosim forbids seccomp filters (" + err.Error() + "), as some containers do"
	}
	return fmt.Sprintf("seccomp: %v", err)
}
