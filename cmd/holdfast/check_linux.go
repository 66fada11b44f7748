// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast/internal/check"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const longUpdateCheck = `Says what an update to another kernel would lose, before there is one. It changes nothing.

With a KERNEL, an image or --entry, it looks into that: whether it is whole, and would be
loaded here; whether it has KHO, LUO and memfd support, in the versions that this kernel
has; whether live update is switched on for it; and which systemd its initrd has. KERNEL is
a bzImage, a unified kernel image (.efi), or on arm64 an Image. Of a unified one the
initrd and the command line in it are taken, unless --initrd or --cmdline say otherwise; for
any other the command line is this kernel's, unless it is given.

In any case it looks at this host: at this kernel and at systemd, at every session, who
holds it, and whether it is committed, that is, in an fd store or parked; and at the fd
stores and memory limits of the units that have sessions. Run it as root: what it
can't look at is a warning.

  error     an update would lose something, or not work: holdfast load and update refuse,
            but for kho=on liveupdate=on, which they add
  warning   for you to look at: it may go well
  ok        looked at, and found right

Sessions of programs that take part in the update (holdfast-updated knows them) need not
be committed yet: they will be asked to.

Exit status: 0 if there is no error; 3 if there is one; 1 if it failed; 2 for wrong usage.

With --json it prints findings, each with id, severity, text, and hint where there is one.`

const exampleUpdateCheck = `  holdfast check
  holdfast check /boot/vmlinuz-7.3.4 --initrd /boot/initrd.img-7.3.4
  holdfast check --entry debian-7.3.4
  holdfast check --json /boot/vmlinuz-7.3.4 | jq -r '.findings[] | select(.severity == "error").id'`

// Exit statuses beside those that all commands have.
const statusBlocked = 3 // by findings that are errors

// checkTimeout is for unpacking two kernels, and for PID 1 to answer.
const checkTimeout = 2 * time.Minute

func checkCommand() *cobra.Command {
	var next nextKernel
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check [KERNEL | --entry ID]", Short: "Say what an update would lose", Long: longUpdateCheck, Example: exampleUpdateCheck,
		Args: next.args(false),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			var t check.Target
			if next.named() {
				files, err := next.open(ctx)
				if err != nil {
					return err
				}
				defer files.Close()
				t = check.Target{Kernel: files.kernel, Initrd: files.initrd, CommandLine: files.cmdline}
			}
			var err error
			if t.Participants, err = participants(ctx); err != nil {
				return err
			}
			findings, err := check.Run(ctx, t)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), map[string][]check.Finding{"findings": findings})
			} else {
				err = printFindings(cmd.OutOrStdout(), findings)
			}
			if n := len(check.Errors(findings)); err == nil && n > 0 {
				err = &exitError{statusBlocked, fmt.Errorf("an update would be refused: %s", count(n, "error"))}
			}
			return err
		},
	}
	next.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

// updateAddress is where holdfast-updated listens.
const updateAddress = "/run/holdfast/io.holdfast.Update"

// participants are the owners that will be asked to commit before an update: nobody, where no holdfast-updated runs. It tells only root, and
// who isn't root is told by the findings that there is more to see.
func participants(ctx context.Context) (owners []string, err error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if _, err := os.Stat(updateAddress); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := varlink.Dial(ctx, updateAddress)
	if err != nil {
		return nil, fmt.Errorf("asking holdfast-updated who takes part: %w", err)
	}
	defer client.Close()
	var answer struct{ Participants []struct{ Owner string } }
	fds, err := client.Call(ctx, "io.holdfast.Update.Status", nil, nil, &answer)
	fd.CloseAll(fds)
	if err != nil {
		return nil, fmt.Errorf("asking holdfast-updated who takes part: %w", err)
	}
	for _, p := range answer.Participants {
		owners = append(owners, p.Owner)
	}
	return owners, nil
}

// How a severity looks on a terminal.
var severityColor = map[check.Severity]string{check.Error: "\x1b[1;31m", check.Warning: emphasis, check.OK: "\x1b[32m"}

// printFindings prints a line for each, and what to do below it.
func printFindings(out io.Writer, findings []check.Finding) error {
	color := isTerminal(out) && os.Getenv("NO_COLOR") == ""
	width := 0
	for _, f := range findings {
		width = max(width, len(f.ID))
	}
	numbers := map[check.Severity]int{}
	var text bytes.Buffer
	for _, f := range findings {
		numbers[f.Severity]++
		before, after := "", ""
		if color {
			before, after = severityColor[f.Severity], plain
		}
		fmt.Fprintf(&text, "%s%-7s%s  %-*s  %s\n", before, f.Severity, after, width, f.ID, oneline.Of(f.Text))
		if f.Hint != "" {
			fmt.Fprintf(&text, "%*s-> %s\n", 7+2+width+2, "", oneline.Of(f.Hint))
		}
	}
	verdict := "an update would go well, as far as can be told"
	switch {
	case numbers[check.Error] > 0:
		verdict = "an update would be refused"
	case numbers[check.Warning] > 0:
		verdict = "nothing stands in the way of an update, but look at the warnings"
	}
	fmt.Fprintf(&text, "\n%s, %s, %d ok: %s\n", count(numbers[check.Error], "error"), count(numbers[check.Warning], "warning"), numbers[check.OK], verdict)
	_, err := out.Write(text.Bytes())
	return err
}
