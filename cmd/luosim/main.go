// SPDX-License-Identifier: MIT

// Command luosim runs any program under an emulated Live Update Orchestrator.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast/internal/luosim/machine"
	"github.com/holdfast-project/holdfast/internal/version"
	"github.com/holdfast-project/holdfast/luosim"
)

const long = `luosim runs a program, unmodified and unprivileged, on a machine with an emulated
Live Update Orchestrator (LUO): with /dev/liveupdate, sessions, and kexec that
hands them over. It needs Linux 5.19 or newer, and nothing else.`

const longRun = `Runs COMMAND, and whatever it starts, under an emulated Live Update Orchestrator.

/dev/liveupdate is there and can be opened by anybody; its ioctls, and those of
sessions, behave as the kernel's. kexec_file_load() takes any file for a kernel,
and reboot(LINUX_REBOOT_CMD_KEXEC) ends all processes and starts COMMAND again,
as the next kernel would, with

  $LUOSIM_BOOT   1, 2, …: which boot it is

What was preserved in sessions can be retrieved then; nothing else in memory comes
back. Files on disk are the real ones. When COMMAND ends, so does everything that
it left, and its exit status is luosim's (128+N if signal N killed it).

Faults, any number of them, with @BOOT behind for one boot only:
`

const longKexec = `Loads a stand-in for a kernel and switches to it, by the same system calls as
anybody: kexec_file_load() and reboot(). For scripts that run under luosim.`

func main() {
	status := 0
	root := &cobra.Command{
		Use: "luosim", Short: "Any program under an emulated Live Update Orchestrator", Long: long,
		Version: version.Version, SilenceErrors: true, SilenceUsage: true,
		Example: "  luosim run -- ./my-vmm-test",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return errors.New("a command is missing") },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	config := machine.Config{Updates: machine.Unlimited, Log: os.Stderr}
	var updates int
	var faults []string
	run := &cobra.Command{
		Use:   "run [--updates N] [--kernel 7.2|7.0] [--fault NAME[=ARGUMENT][@BOOT]]... -- COMMAND [ARGUMENT]...",
		Short: "Run COMMAND under the emulated kernel", DisableFlagsInUseLine: true,
		Long: longRun + machine.FaultHelp + "\n",
		Example: `  luosim run -- ./my-vmm-test
  luosim run --fault busy=3 --fault retrieve=7@2 -- ./my-vmm-test
  go test -exec 'luosim run --' ./...
  luosim run -- sh -c 'echo boot $LUOSIM_BOOT; [ $LUOSIM_BOOT = 3 ] || luosim kexec'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no COMMAND is given")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("updates") {
				if updates < 1 {
					return errors.New("--updates must be 1 or more")
				}
				config.Updates = updates
			}
			config.Command = args
			err := config.SetFaults(faults)
			if err != nil {
				return err
			}
			if boot := luosim.Boot(); boot > 0 {
				err = fmt.Errorf("this is inside luosim already ($LUOSIM_BOOT is %d): it doesn't nest", boot)
			} else {
				status, err = machine.Run(config)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "luosim:", err)
				status = 1
			}
			return nil
		},
	}
	flags := run.Flags()
	flags.SetInterspersed(false)
	flags.IntVar(&updates, "updates", 0, "end at the reboot(KEXEC) after `N` updates, with status 0 (default: no limit)")
	flags.StringVar(&config.Version, "kernel", machine.DefaultVersion, "`version` of the emulated kernel: "+strings.Join(machine.VersionNames(), " or ")+"; 7.0 has no GET_NAME")
	flags.StringArrayVar(&faults, "fault", nil, "let something go wrong: `NAME`[=ARGUMENT][@BOOT], see above")
	kexec := &cobra.Command{
		Use: "kexec", Short: "Inside of luosim run: update to the next kernel", Long: longKexec, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if luosim.Boot() == 0 {
				fmt.Fprintln(os.Stderr, "luosim: this is not inside luosim run ($LUOSIM_BOOT is not set): the real machine isn't restarted")
			} else {
				fmt.Fprintln(os.Stderr, "luosim: kexec:", luosim.Kexec())
			}
			status = 1
			return nil
		},
	}
	root.AddCommand(run, kexec)
	if err := root.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "luosim: %v\nTry: luosim run --help\n", err)
		status = 2
	}
	os.Exit(status)
}
