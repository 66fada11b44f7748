// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const longUpdate = `Replaces the running kernel by the one that is loaded, or by KERNEL, with all
memory that was put into live update sessions.

It looks first whether anything would be lost. Then every participant (programs that
have joined, holdfast status shows them) prepares, which is the slow part and while
everything still works; then they pause and save the rest; then PID 1 stops all
services and switches. Until that moment the update can be called off: by a
participant that vetoes, does not answer in time, or dies, if it is a required one;
and by holdfast cancel. Then everybody runs on, and no kernel stays loaded.

holdfast-updated does all this by itself. Ctrl-C, or a closed terminal, ends only the
watching. On a terminal it asks before it begins, and shows who is waited for;
elsewhere it needs --yes, and says only who is left behind, and what went wrong.

KERNEL, --entry, --initrd and the command line are what holdfast load takes: a KERNEL
that needs an initrd must be given one, unless it is a unified image or a boot entry
that has it.

--dry-run has everybody prepare for real, calls the update off, and leaves a loaded
kernel loaded; with KERNEL, that is checked and not loaded.

Exit status: 0 done, which is when the switch is under way, and it is ended by that;
1 failed or cancelled; 2 wrong usage; 3 refused, since something would be lost; 4 vetoed
or timed out; 130 after Ctrl-C, and where it is told to end (SIGTERM), before the switch.

With --json, one object at the end: outcome (switching, rehearsed, cancelled,
nothingLoaded, blocked, vetoed, timedOut, inProgress, failed), round, phase, reason,
participants, findings.`

const exampleUpdate = `  holdfast update --dry-run
  holdfast update /boot/vmlinuz-7.3.4 --initrd /boot/initrd.img-7.3.4
  holdfast update --entry debian-7.3.4
  holdfast update --yes --timeout 5m --without cache`

type updateOptions struct {
	dryRun, force, yes, json bool
	timeout                  time.Duration
	without                  []string
	kernel                   nextKernel
}

func updateCommand() *cobra.Command {
	var o updateOptions
	cmd := &cobra.Command{
		Use: "update [KERNEL | --entry ID]", Short: "Replace the running kernel, and keep the memory",
		Long: longUpdate, Example: exampleUpdate,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := o.kernel.args(false)(cmd, args); err != nil {
				return err
			}
			switch {
			case o.timeout < 0 || o.timeout > 0 && o.timeout < time.Microsecond:
				return fmt.Errorf("--timeout %v: it must be a microsecond or more", o.timeout)
			case !o.yes && !o.dryRun && terminalOn(os.Stdin) == nil:
				return errors.New("standard input is not a terminal to ask at: say --yes, or --dry-run")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runUpdate(cmd, o) },
	}
	o.kernel.flags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&o.dryRun, "dry-run", false, "check, have everybody prepare, and call it off")
	flags.DurationVar(&o.timeout, "timeout", 0, "how long participants may take to prepare, and again to quiesce (default 2m)")
	flags.StringArrayVar(&o.without, "without", nil, "don't wait for the participant of this `NAME` (or OWNER/NAME), whose memory may be lost; may be given several times")
	flags.BoolVar(&o.force, "force", false, "go on though something would be lost; vetoes count all the same")
	flags.BoolVar(&o.yes, "yes", false, "don't ask")
	jsonFlag(cmd, &o.json)
	return cmd
}

// updateResult is what holdfast update --json prints.
type updateResult struct {
	Outcome      string        `json:"outcome"`
	Round        int           `json:"round,omitempty"`
	Phase        update.Phase  `json:"phase,omitempty"`
	Reason       string        `json:"reason,omitempty"`
	Participants []participant `json:"participants"`
	Findings     []finding     `json:"findings"`
}

func runUpdate(cmd *cobra.Command, o updateOptions) error {
	// PID 1 ends it too, on its way to the switch.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var next *nextFiles
	if o.kernel.named() {
		var err error
		if next, err = o.kernel.open(ctx); err != nil {
			return err
		}
		defer next.Close()
	}
	conn, err := dialUpdated(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !o.yes && !o.dryRun {
		if err := confirm(ctx, conn, next, cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	last, err := carryOut(ctx, conn, next, o)
	if err != nil && ctx.Err() != nil && last.Phase != update.Committing {
		return &exitError{130, detached(last.Round > 0)}
	}
	result := updateResult{Round: last.Round, Phase: last.Phase, Reason: last.Reason, Participants: last.Participants}
	var refused *refusedUpdate
	switch {
	case errors.As(err, &refused):
		result.Outcome = strings.ToLower(refused.kind[:1]) + refused.kind[1:]
		result.Findings = refused.Findings
		if refused.Participants != nil {
			result.Participants = refused.Participants
		}
		err = &exitError{refused.exitStatus(), err}
	case err != nil && last.Phase == update.Committing:
		// PID 1 ends holdfast-updated on its way, or the kernel everything.
		if result.Outcome, err = "switching", notSwitching(ctx); err != nil {
			result.Outcome = "failed"
		}
	case err != nil && errors.Is(err, io.EOF):
		result.Outcome, err = "failed", fmt.Errorf("holdfast-updated ended, so that the update is off and everything runs on; see its log (journalctl -u holdfast-updated): %w", err)
	case err != nil:
		result.Outcome = "failed"
	case last.Phase == update.Committing:
		result.Outcome = "switching"
	case o.dryRun && last.Reason == update.RehearsedReason:
		result.Outcome = "rehearsed"
	case strings.HasPrefix(last.Reason, "it was cancelled"):
		result.Outcome, err = "cancelled", fmt.Errorf("called off, and everything runs on: %s", last.Reason)
	default:
		result.Outcome, err = "failed", fmt.Errorf("called off, and everything runs on: %s", last.Reason)
	}
	if o.json {
		if result.Participants == nil {
			result.Participants = []participant{}
		}
		if result.Findings == nil {
			result.Findings = []finding{}
		}
		return errors.Join(printJSON(cmd.OutOrStdout(), result), err)
	}
	return err
}

// notSwitchingTimeout is how long another holdfast-updated has to answer.
const notSwitchingTimeout = 10 * time.Second

// notSwitching is an error unless another holdfast-updated says that the switch goes on: the one that was to ask for it may have ended
// before. At the end of ctx PID 1 ends this process, or somebody who has seen the same.
func notSwitching(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, notSwitchingTimeout)
	defer cancel()
	for {
		var s roundStatus
		conn, err := dialUpdated(within)
		if err == nil {
			err = callUpdated(within, conn, "Status", nil, nil, &s)
			conn.Close()
		}
		var refused *refusedUpdate
		switch {
		case ctx.Err() != nil || err == nil && s.Phase == update.Committing:
			return nil
		case err == nil:
			return fmt.Errorf("holdfast-updated ended before the switch, so that the update is off; see its log (journalctl -u holdfast-updated), and holdfast status")
		case within.Err() != nil || errors.As(err, &refused):
			return fmt.Errorf("holdfast-updated ended as it was about to switch, and whether that goes on can't be told: %w", err)
		}
		select {
		case <-within.Done():
		case <-time.After(quiesceRetry):
		}
	}
}

// detached is what Ctrl-C ends with. Where holdfast-updated has told of no round yet, it begins none any more.
func detached(begun bool) error {
	if !begun {
		return errors.New("given up before it began; nothing has changed but what holdfast status says is loaded")
	}
	return errors.New("no longer watching: the update goes on by itself; holdfast status --watch shows it, holdfast cancel calls it off")
}

var errNotBegun = errors.New("not begun, and nothing has changed")

// confirm shows what is about to happen, and wants a yes.
func confirm(ctx context.Context, conn *varlink.Client, next *nextFiles, w io.Writer) error {
	var s roundStatus
	if err := callUpdated(ctx, conn, "Status", nil, nil, &s); err != nil {
		return err
	}
	what := "the kernel that is loaded"
	if next != nil {
		what = next.String()
	} else if !s.Loaded {
		return &refusedUpdate{kind: "NothingLoaded"}
	}
	fmt.Fprintf(w, "This host switches to %s. Services are stopped, and memory that is in no session is lost.\n%s will be asked to get ready first. Go on? [y/N] ", what, participantCount(len(s.Participants)))
	answers := make(chan string, 1)
	go func() {
		answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(w)
		return &exitError{130, errNotBegun}
	}
	return errNotBegun
}

// carryOut returns the last that was heard of the round.
func carryOut(ctx context.Context, conn *varlink.Client, next *nextFiles, o updateOptions) (last roundStatus, err error) {
	if next != nil {
		if err := prepareKernel(ctx, conn, next, o); err != nil {
			return last, err
		}
	}
	in := struct {
		TimeoutUSec int64    `json:"timeoutUSec,omitempty"`
		DryRun      bool     `json:"dryRun,omitempty"`
		Without     []string `json:"without,omitempty"`
		Force       bool     `json:"force,omitempty"`
	}{o.timeout.Microseconds(), o.dryRun, o.without, o.force}
	var screen *terminal
	if !o.json {
		screen = terminalOn(os.Stderr)
	}
	show, stop := live(screen)
	defer stop()
	told := screen != nil || o.json
	err = follow(ctx, conn, "Start", in, func(s roundStatus) error {
		last = s
		show(s)
		if !told && (s.Phase == update.Committing || o.dryRun && s.Phase == update.Prepared) {
			told = true
			leftBehind(os.Stderr, s.Participants)
		}
		return nil
	})
	var refused *refusedUpdate
	if errors.As(err, &refused) && last.Round == 0 && next != nil && !o.dryRun {
		// Any reboot would switch to it, with nobody prepared.
		err = unloadAgain(ctx, conn, err)
	}
	return last, err
}

// leftBehind says who isn't ready for a switch that doesn't wait for them. On a terminal that is to be seen all the time.
func leftBehind(w io.Writer, all []participant) {
	for _, p := range all {
		if p.State != update.Ready {
			fmt.Fprintln(w, oneline.Of("holdfast: left behind: "+p.String()))
		}
	}
}

// unloadAgain drops what was loaded for an update that was refused then.
func unloadAgain(ctx context.Context, conn *varlink.Client, refused error) error {
	err := callUpdated(ctx, conn, "Unload", nil, nil, nil)
	var answer *refusedUpdate
	if err == nil || errors.As(err, &answer) && answer.kind == "InProgress" { // that one's it is
		return refused
	}
	return fmt.Errorf("%w; and the kernel stays loaded, so that any reboot switches to it: %w", refused, err)
}

// target is io.holdfast.Update.Target.
type target struct {
	KernelFileDescriptor int     `json:"kernelFileDescriptor"`
	InitrdFileDescriptor *int    `json:"initrdFileDescriptor,omitempty"`
	CommandLine          *string `json:"commandLine,omitempty"`
}

// prepareKernel loads the kernel, or for a dry run only looks at it.
func prepareKernel(ctx context.Context, conn *varlink.Client, next *nextFiles, o updateOptions) error {
	of := target{CommandLine: next.cmdline}
	fds := []int{int(next.kernel.Fd())}
	if next.initrd != nil {
		of.InitrdFileDescriptor = new(len(fds))
		fds = append(fds, int(next.initrd.Fd()))
	}
	in := map[string]any{"target": of}
	if !o.dryRun {
		if o.force {
			in["force"] = true
		}
		return callUpdated(ctx, conn, "Load", in, fds, nil)
	}
	var out struct {
		Findings []finding `json:"findings"`
	}
	if err := callUpdated(ctx, conn, "Check", in, fds, &out); err != nil {
		return err
	}
	blocked := &refusedUpdate{kind: "Blocked"}
	for _, f := range out.Findings {
		if f.Severity == "error" {
			blocked.Findings = append(blocked.Findings, f)
		}
	}
	if len(blocked.Findings) > 0 && !o.force {
		return blocked
	}
	return nil
}
