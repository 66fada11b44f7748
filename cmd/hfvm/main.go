// SPDX-License-Identifier: MIT

// hfvm boots real kernels with the Live Update Orchestrator in QEMU and runs a script at every boot.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm"
	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/guest"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
)

const long = `hfvm builds and caches small kernels with the Live Update Orchestrator (LUO) and
root file systems of Debian, boots them in QEMU, and runs a script at every boot.

Nothing of the machine that it runs on is changed, except that on Debian, as root,
tools that are missing are installed with apt-get. What was built is in
~/.cache/holdfast ($XDG_CACHE_HOME) and may be deleted at any time; a run whose
kernels and root file systems are there needs no network.

  $HFVM_ACCEL    QEMU's accelerator, default tcg,thread=multi (software emulation)
  $HFVM_MIRROR   the Debian mirror, default the one of the machine's apt`

const longRun = `Boots a guest and runs SCRIPT, any executable file, as root at every boot: in a
unit of its own (hfvm.service) after basic.target, or, with --os none, as the
child of a minimal init. Its output is hfvm's standard output; the console, with
what the kernel and systemd print, is on standard error.

In the guest the script finds

  $HFVM_BOOT        1 at the first boot, 2 after a kexec, and so on
  hfvm-kexec-load   loads the kernel of the next boot, with this one's command line
  hfvm-kexec        switches to the loaded kernel at once; with an operating system
                    "systemctl kexec" is the orderly way
  hfvm-pass         ends the run: passed
  hfvm-fail TEXT    ends the run: failed

A script that loads kernels by itself finds the next one at /hfvm/kernel-next, the
command line for it in /hfvm/cmdline-next, and /hfvm/initrd where there is one;
/hfvm/boot has the number of the boot. What any other unit writes to the FIFO
/run/hfvm/output comes out as the script's output does, up to the kexec.

The kernels of odd boots are --kernel, of even ones --next-kernel. A kernel is a
series, 7.2, which is built from the source in Debian's archive (or from that of
the nearest newer series there); one that differs in something, such as 7.2-noluo, which
is without LUO (hfvm build --help has them all); or a bzImage.

The exit status is 0 only after hfvm-pass; 1 if the run failed: by hfvm-fail, a
script that ends with a status other than 0, a panic, a guest that powers off or
reboots without a verdict, or at --timeout; 2 for wrong usage. A script that ends
with status 0 and without a verdict decides nothing, as a kexec may be under way
(with --os none it has failed if no process is left).`

const longBuild = `Builds what hfvm run would otherwise build when it is first needed: kernels, from the
source in Debian's archive, which takes minutes each, and root file systems, by mmdebstrap. That
needs the network; a run whose kernels and root file systems are in the cache doesn't.`

const example = `  cat > hello.sh <<'EOF'
  #!/bin/sh -e
  echo "boot $HFVM_BOOT, kernel $(uname -r)"
  [ "$HFVM_BOOT" = 1 ] || exec hfvm-pass
  hfvm-kexec-load
  hfvm-kexec                 # with --os forky: systemctl kexec
  EOF
  chmod +x hello.sh
  hfvm run --os none --next-kernel 7.3 hello.sh`

func main() {
	// The same binary is the guest's, by other names.
	if guest.Main() {
		return
	}
	// Debian keeps debugfs and mke2fs where only root's PATH goes.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	fmt.Fprintln(os.Stderr, "hfvm:", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(os.Stderr, "See hfvm --help.")
		os.Exit(2)
	}
	os.Exit(1)
}

// A usageError is the caller's mistake.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "hfvm", Short: "Boot LUO kernels in QEMU and run a script at every boot", Long: long,
		SilenceErrors: true, SilenceUsage: true,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{errors.New("say run or build")}
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(runCommand(), buildCommand())
	return root
}

func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

func runCommand() *cobra.Command {
	var o hfvm.Options
	var seconds float64
	var cmdline []string
	cmd := &cobra.Command{
		Use: "run [flags] SCRIPT", Short: "Boot a guest and run SCRIPT at every boot", Long: longRun, Example: example,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Script = args[0]
			o.Cmdline = strings.Join(cmdline, " ")
			o.Timeout = time.Duration(seconds * float64(time.Second))
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			c, err := cache.Open(os.Stderr)
			if err != nil {
				return err
			}
			return hfvm.Run(cmd.Context(), c, o, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.Kernel, "kernel", "7.2", "kernel of the odd boots: `SERIES`, SERIES-VARIANT or the path of a bzImage")
	f.StringVar(&o.NextKernel, "next-kernel", "", "kernel of the even boots: `SERIES` or path (default that of --kernel)")
	f.StringVar(&o.OS, "os", "forky", "root file `SYSTEM`: forky, trixie, or none for an init and busybox")
	f.StringVar(&o.Initrd, "initrd", "none", "`INITRD`: dracut, with systemd in it, or none")
	f.IntVar(&o.Memory, "memory", 1024, "the guest's memory in `MIB`")
	f.StringArrayVar(&o.Packages, "package", nil, "install this Debian package too (repeatable); `NAME`s make an image of their own in the cache")
	f.StringArrayVar(&o.Add, "add", nil, "put a file or a whole tree into the guest, owned by root (repeatable): `SRC:DST`")
	f.StringArrayVar(&cmdline, "cmdline", nil, "more `WORDS` for the kernel's command line; liveupdate=off overrides the default")
	f.StringArrayVar(&o.Env, "env", nil, "a variable for the script (repeatable): `NAME=VALUE`")
	f.StringArrayVar(&o.Forward, "forward", nil, "lead a TCP port of this machine's 127.0.0.1 to one of the guest's, which gets a network for that alone (repeatable): `HOSTPORT:GUESTPORT`")
	f.Float64Var(&seconds, "timeout", 300, "`SECONDS` until the run has failed, counted from the start of QEMU")
	f.BoolVar(&o.QuietConsole, "quiet-console", false, "keep the console in the log only")
	f.StringVar(&o.Log, "log", "", "keep the console's log in this `FILE` (default a temporary one, kept if the run fails)")
	return cmd
}

func buildCommand() *cobra.Command {
	var kernels, suites, packages []string
	var initrd string
	cmd := &cobra.Command{
		Use: "build [flags]", Short: "Build kernels and root file systems into the cache", Long: longBuild,
		Example: "  hfvm build --kernel 7.2 --kernel 7.3 --os forky",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := hfvm.CheckBuild(kernels, suites, packages, initrd); err != nil {
				return usageError{err}
			}
			c, err := cache.Open(os.Stderr)
			if err != nil {
				return err
			}
			return hfvm.Build(cmd.Context(), c, kernels, suites, packages, initrd == "dracut")
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&kernels, "kernel", nil, "`SERIES` or SERIES-VARIANT (repeatable), of the variants "+strings.Join(kernel.Variants(), ", "))
	f.StringArrayVar(&suites, "os", nil, "root file `SYSTEM` (repeatable): forky or trixie")
	f.StringVar(&initrd, "initrd", "none", "`INITRD`: dracut for root file systems with an initrd")
	f.StringArrayVar(&packages, "package", nil, "root file systems with this Debian package too (repeatable): `NAME`")
	return cmd
}
