// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const longAcquire = `Gets the session NAME of the unit that this runs in, and becomes COMMAND: the
process stays the same, and with it its PID. NAME has letters, digits and _ . @ -, at
most 43 of them, and is the unit's own: other units may use the same.

COMMAND finds

  descriptor 3     the session; what was open under that number is replaced
  LISTEN_FDS       1, and LISTEN_PID its PID, as sd_listen_fds(3) wants them
  LISTEN_FDNAMES   the name to store the session under in the unit's fd store:
                   b, 8 hex digits of the boot id, -, the session's kernel name

What systemd has handed over by LISTEN_FDS itself comes after the session, from
descriptor 4 on, in its order and with its names. If the session NAME of this kernel
is among it, out of the unit's fd store, COMMAND gets that one as descriptor 3 and no
new one is made; so this can be the ExecStart= of a service that restarts. A session
of the previous kernel stays among the rest: holdfast identify --fd tells them apart.

The memory that COMMAND preserves in the session stays until the update only if
somebody holds the session open: COMMAND stores it in the unit's fd store, for
example by systemd-notify --fd=3 --fdname="${LISTEN_FDNAMES%%:*}". Or, in a scope, in a
container or in a user's service, it has holdfastd keep it: see holdfast park. Where
holdfastd has no keeper either (holdfast status), it is refused in a scope and outside
of units.
Signals that systemd has this ignore (IgnoreSIGPIPE=) have their default action again
in COMMAND.

Exit status: that of COMMAND; 127 if it isn't found, 126 if it can't be run; 1 if
there is no session to be had, 2 for wrong usage.`

const exampleAcquire = `  systemd-run --unit=cache -p FileDescriptorStoreMax=16 -p FileDescriptorStorePreserve=yes \
      holdfast acquire ram -- /usr/bin/cache --session-fd=3`

// firstFD is where LISTEN_FDS begins (SD_LISTEN_FDS_START).
const firstFD = 3

func acquireCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "acquire NAME [--timeout DURATION] -- COMMAND [ARGUMENT]...", Short: "Run a command with a new session",
		Long: longAcquire, Example: exampleAcquire, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case len(args) == 0 || dash == 0:
				return errors.New("acquire needs the NAME of a session")
			case dash > 1:
				return fmt.Errorf("acquire takes one NAME, and %q is too many", args[1])
			case dash < 0 || len(args) == 1:
				return errors.New(`acquire needs a COMMAND after "--"`)
			case timeout <= 0:
				return errors.New("the timeout must be more than nothing, as 5s or 500ms")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return acquire(cmd.Context(), args[0], timeout, args[1:])
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", liveupdate.DefaultTimeout, "how long to wait while others use the live update device")
	return cmd
}

// answerTimeout is how long holdfastd may take besides waiting for the device.
const answerTimeout = 10 * time.Second

func acquire(ctx context.Context, name string, timeout time.Duration, command []string) error {
	inherited := systemd.ListenFDs()
	if err := reserve(firstFD+len(inherited), 1); err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return cannotRun(command[0], err)
	}
	noStore := checkUnit()
	// However busy the machine is, who has the device is worth to be told.
	ctx, cancel := context.WithTimeout(ctx, timeout+answerTimeout)
	defer cancel()
	client, err := holdfast.Dial(ctx)
	if noStore != nil && (err != nil || !keeps(ctx, client)) {
		return noStore
	}
	if err != nil {
		return explain(err)
	}
	session, rest, err := stored(ctx, client, name, inherited)
	if err != nil {
		return explain(err)
	}
	if session.Raw < 0 {
		made, err := client.Acquire(ctx, name, holdfast.WithDeviceTimeout(max(1, timeout)))
		if errors.Is(err, holdfast.ErrNoOwner) {
			return fmt.Errorf("%w: %s", err, asService)
		}
		if errors.Is(err, holdfast.ErrNotPermitted) && noStore != nil {
			return fmt.Errorf("%w; run it as a service: %s", err, asService)
		}
		if errors.Is(err, holdfast.ErrIncomingWaiting) {
			return fmt.Errorf("%w: holdfast reclaim %s -- COMMAND", err, name)
		}
		if err != nil {
			return explain(err)
		}
		if session.Name, err = storeName(made.KernelName()); err != nil {
			return err
		}
		session.Raw = made.LiveUpdate().Disown()
	}
	return become(path, command, append([]systemd.Listened{session}, rest...))
}

// keeps tells whether sessions can be parked with holdfastd.
func keeps(ctx context.Context, client *holdfast.Client) bool {
	d, err := client.Describe(ctx)
	return err == nil && d.Keeper != "none"
}

// checkUnit fails where there is no fd store to give the session back after an update.
func checkUnit() error {
	cgroup, err := peer.OwnCgroup()
	if err != nil {
		return err
	}
	for unit := range peer.Units(cgroup) {
		if strings.HasSuffix(unit, ".scope") {
			return fmt.Errorf("%s is a scope, which has no fd store to get a session back from after an update; run it as a service: %s",
				unit, asService)
		}
	}
	// With ProtectControlGroups=private a service sees its own cgroup as the root; holdfastd sees the real one.
	if cgroup != "/" && peer.Owner(cgroup) == "" {
		return fmt.Errorf("the cgroup %s belongs to no unit, and so would the session; run it as a service: %s",
			cgroup, asService)
	}
	return nil
}

const asService = "systemd-run --unit=UNIT -p FileDescriptorStoreMax=16 -p FileDescriptorStorePreserve=yes holdfast acquire NAME -- COMMAND"

// stored looks among what systemd handed over for the session that was asked for. Raw is -1 where it isn't there.
func stored(ctx context.Context, client *holdfast.Client, name string, inherited []systemd.Listened) (session systemd.Listened, rest []systemd.Listened, err error) {
	session.Raw = -1
	for _, l := range inherited {
		lu, err := liveupdate.FromFD(l.Raw)
		if err == nil {
			lu.Disown()
			var id holdfast.Identity
			if id, err = client.Identify(ctx, os.NewFile(uintptr(l.Raw), l.Name)); err != nil {
				return session, nil, err
			}
			if id.Yours && id.Name == name && id.Direction == liveupdate.Outgoing && session.Raw < 0 {
				session = l
				continue
			}
		}
		rest = append(rest, l)
	}
	return session, rest, nil
}

// storeName is the FDNAME that the library gives a session in the fd store (storePrefix in store_linux.go). With the
// boot id in it, a session can be told from, and removed without, its predecessor of the same kernel name.
func storeName(kernelName string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return "b" + string(boot[:8]) + "-" + kernelName, nil
}

// become replaces this process by the command, with these descriptors from firstFD on. It returns only an error.
func become(path string, command []string, fds []systemd.Listened) error {
	var names []string
	for i := range fds {
		names = append(names, fds[i].Name)
		// First all out of the way of each other.
		raw, err := unix.FcntlInt(uintptr(fds[i].Raw), unix.F_DUPFD_CLOEXEC, firstFD+len(fds))
		if err != nil {
			return fmt.Errorf("file descriptor %d: %w", fds[i].Raw, err)
		}
		fds[i].Raw = raw
	}
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "LISTEN_") {
			env = append(env, variable)
		}
	}
	env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()), "LISTEN_FDS="+strconv.Itoa(len(fds)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"))
	for i := range fds {
		if err := unix.Dup3(fds[i].Raw, firstFD+i, 0); err != nil {
			return fmt.Errorf("file descriptor %d: %w", firstFD+i, err)
		}
	}
	return cannotRun(command[0], syscall.Exec(path, command, env))
}

// cannotRun has the exit statuses of env(1).
func cannotRun(command string, err error) error {
	status := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		status = 127
	}
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	return &exitError{status, fmt.Errorf("running %s: %w", command, err)}
}
