// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/oneline"
	running "github.com/holdfast-project/holdfast/internal/run"
)

const longRun = `Runs COMMAND, which need know nothing of live updates, on memory that crosses them, as
a service manager would: for a unit's ExecStart=, or a scope.

Each --mem is a memfd of SIZE bytes (K, M, G and T are powers of 1024), zero at first.
COMMAND finds its path

  {NAME}               in its words
  $HOLDFAST_MEM_NAME   in its environment, the name in capital letters
  PATH                 as a symbolic link

It leads to a descriptor that COMMAND inherits, so it is good in COMMAND and what that
forks. A COMMAND that changes its user by itself may not open it then: use User= in the
unit. A --file is a small file (64 MiB at most) that COMMAND leaves beside its memory; it
is put back to PATH. What is found there otherwise is moved to PATH.old.

When an update comes, or this process is told to end (SIGTERM, SIGINT), COMMAND is asked
to stop, by the signal S or by the shell command C, which finds its PID in $MAINPID.
If it then exits with status 0, or dies of S, its memory is taken to be whole. It is
preserved and committed, into the unit's fd store (FileDescriptorStoreMax= of 3 and one
for each --mem and --file, FileDescriptorStorePreserve=yes), or else parked with holdfastd.
The next start is on that memory. Otherwise nothing is committed, and the next start is
a clean one, never one on a half: COMMAND finds

  $HOLDFAST_START        fresh, restart (it was stopped in this kernel), update, or crash
  $HOLDFAST_GENERATION   how often the memory was committed

An update that is called off has COMMAND started again on its memory. So does a crash
with --restart, though nobody can say whether the memory is whole then. While COMMAND
runs, nothing of its memory is kept elsewhere: a SIGKILL of this process loses it.
COMMAND can write to its memory at any time, but not resize it while it is preserved,
from an update's prepare on; with another size than SIZE it isn't committed.

SIGHUP, SIGQUIT, SIGALRM, SIGUSR1, SIGUSR2, SIGWINCH and real-time signals are passed
on. In a unit, set KillMode=mixed, or COMMAND gets systemd's SIGTERM too, and
Type=notify: ready is COMMAND when it is executed, or with --notify when it says so.

Exit status: that of COMMAND, or 128 and the signal that killed it; 127 if it isn't
found, 126 if it can't be run; 0 after a stop that kept the memory; 1 if that failed or
the memory can't be had, 2 for wrong usage.`

const exampleRun = `  holdfast run --mem data=64M -- cache --memory={data}
  holdfast run --mem mem=1G:/run/memcached/mem --file meta:/run/memcached/mem.meta \
      --stop-signal USR1 --settle 3s -- memcached -m 1024 -e /run/memcached/mem`

func runCommand() *cobra.Command {
	c := running.Config{Session: "run", StopTimeout: time.Minute}
	var memory, files []string
	stop := "TERM"
	cmd := &cobra.Command{
		Use: "run --mem NAME=SIZE[:PATH]... [flags] -- COMMAND [ARGUMENT]...", Short: "Run a command on memory that crosses updates",
		Long: longRun, Example: exampleRun, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return errors.New(`run needs a COMMAND after "--"`)
			}
			if cmd.Flags().Changed("stop-signal") && c.StopCommand != "" {
				return errors.New("COMMAND is stopped either by --stop-signal or by --stop-command")
			}
			if c.Required && c.Optional {
				return errors.New("it can't be both --required and --optional")
			}
			if c.StopTimeout <= 0 || c.Settle < 0 {
				return errors.New("--stop-timeout must be more than nothing, as 30s, and --settle not less")
			}
			for _, s := range memory {
				m, err := running.ParseMemory(s)
				if err != nil {
					return err
				}
				c.Memory = append(c.Memory, m)
			}
			for _, s := range files {
				f, err := running.ParseFile(s)
				if err != nil {
					return err
				}
				c.Files = append(c.Files, f)
			}
			if err := running.Check(c.Memory, c.Files); err != nil {
				return err
			}
			var err error
			c.StopSignal, err = parseSignal(stop)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := exec.LookPath(args[0]); err != nil {
				return cannotRun(args[0], err)
			}
			c.Command = args
			status, err := running.Run(c, func(format string, args ...any) {
				fmt.Fprintln(os.Stderr, "holdfast run: "+oneline.Of(fmt.Sprintf(format, args...)))
			})
			if err == nil && status != 0 {
				err = fmt.Errorf("%s has ended with status %d", args[0], status)
			}
			if err != nil {
				// Not explained by what this process sees of the kernel: its unit need not have the device.
				return &exitError{status, err}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&memory, "mem", nil, "memory, NAME=SIZE or NAME=SIZE:PATH (repeatable)")
	flags.StringArrayVar(&files, "file", nil, "a file that COMMAND leaves beside it, NAME:PATH (repeatable)")
	flags.StringVar(&stop, "stop-signal", stop, "the signal on which COMMAND leaves its memory whole and ends")
	flags.StringVar(&c.StopCommand, "stop-command", "", "a shell command that has it do so instead")
	flags.DurationVar(&c.StopTimeout, "stop-timeout", c.StopTimeout, "how long that may take; then the update is called off, or COMMAND is killed")
	flags.DurationVar(&c.Settle, "settle", 0, "how long COMMAND stays stopped before it is started on the same memory")
	flags.BoolVar(&c.Restart, "restart", false, "after a crash, start COMMAND again on its memory; six within a minute end it")
	flags.BoolVar(&c.Notify, "notify", false, "COMMAND speaks sd_notify(3), and says itself when it is ready")
	flags.StringVar(&c.Session, "session", c.Session, "the session's name; two in one unit need different ones")
	flags.BoolVar(&c.Park, "park", false, "have holdfastd keep the memory, though the unit has an fd store")
	flags.BoolVar(&c.Required, "required", false, "no update without this one; the policy must allow it")
	flags.BoolVar(&c.Optional, "optional", false, "an update may go on without it, whatever the policy says")
	cmd.MarkFlagRequired("mem")
	return cmd
}

// parseSignal takes a signal's name, with or without SIG, or its number.
func parseSignal(s string) (syscall.Signal, error) {
	signal := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		signal = syscall.Signal(n)
	}
	if signal != 0 && signal != syscall.SIGKILL && signal != syscall.SIGSTOP {
		return signal, nil
	}
	return 0, fmt.Errorf("--stop-signal %q is no signal that a command can act on, such as USR1 or TERM", s)
}
