// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const longStatus = `Says what works on this host: whether the kernel can carry memory over a live
update, whether holdfastd answers, whether systemd carries fd stores, and whether a
kernel is loaded to switch to. It changes nothing, and works without holdfastd too.

Exit status: 0 if sessions can be had; 1 if not, with the reason and what to do
about it on standard error.

After an update it says besides of each session whether it is back, and why not.

With --watch it shows instead how the update that is under way, or the next one, goes
on, until Ctrl-C: who is ready, who isn't, since when. With --json that is one object
a line, as io.holdfast.Update.Status answers it.

With --json: ready; problem and hint where not ready (the problem is a word:
noDevice, notEnabled, handoverFailed, policyBroken, noOrchestrator, …); kernel with
release, device and kexecLoaded; orchestrator, as io.holdfast.Sessions.Describe
answers it, or null; systemd with version and carriesStores, or null where it isn't
PID 1; update, as io.holdfast.Update.Status answers it, absent where holdfast-updated
doesn't or only root may know.`

// carriesStores is for the text; systemd.CarriesStores decides.
const carriesStores = 261

// status is what holdfast status --json prints.
type status struct {
	Ready   bool   `json:"ready"`
	Problem string `json:"problem,omitempty"`
	Hint    string `json:"hint,omitempty"`

	Kernel struct {
		Release     string `json:"release"`
		Device      bool   `json:"device"`
		KexecLoaded bool   `json:"kexecLoaded"`
	} `json:"kernel"`
	Orchestrator *orchestratorStatus `json:"orchestrator"`
	Systemd      *systemdStatus      `json:"systemd"`
	Update       *roundStatus        `json:"update,omitempty"`

	err error // why it isn't ready, as a sentence
}

type orchestratorStatus struct {
	Version string `json:"version"`
	Keeper  string `json:"keeper"`
	NameMax int    `json:"nameMax"`
	Problem string `json:"problem,omitempty"`
}

func orchestratorOf(d holdfast.Description) *orchestratorStatus {
	return &orchestratorStatus{d.Version, d.Keeper, d.NameMax, d.Problem}
}

type systemdStatus struct {
	Version       string `json:"version,omitempty"`
	CarriesStores bool   `json:"carriesStores"`

	err error
}

func statusCommand() *cobra.Command {
	var asJSON, watching bool
	cmd := &cobra.Command{
		Use: "status", Short: "Say what works on this host, and what is in the way",
		Long: longStatus, Example: "  holdfast status\n  holdfast status --json | jq .ready\n  holdfast status --watch",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watching {
				return watch(cmd, asJSON)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			s := look(ctx)
			out := cmd.OutOrStdout()
			var err error
			if asJSON {
				err = printJSON(out, s)
			} else {
				err = s.print(out)
			}
			return errors.Join(err, s.err)
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&watching, "watch", false, "show how an update goes on, until Ctrl-C")
	return cmd
}

// watch shows each change of an update.
func watch(cmd *cobra.Command, asJSON bool) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	conn, err := dialUpdated(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	out := cmd.OutOrStdout()
	var screen *terminal
	if !asJSON {
		screen = terminalOn(os.Stdout)
	}
	show, done := live(screen)
	defer done()
	var said string
	err = follow(ctx, conn, "Status", nil, func(s roundStatus) error {
		switch {
		case asJSON:
			return json.NewEncoder(out).Encode(s)
		case screen != nil:
			show(s)
			return nil
		}
		if text := strings.Join(s.lines(), "; "); text != said {
			said = text
			_, err := fmt.Fprintln(out, text)
			return err
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lookAtUpdate is nil where there is no holdfast-updated that says.
func lookAtUpdate(ctx context.Context) *roundStatus {
	conn, err := dialUpdated(ctx)
	if err != nil {
		return nil
	}
	defer conn.Close()
	s := roundStatus{at: time.Now()}
	if callUpdated(ctx, conn, "Status", nil, nil, &s) != nil {
		return nil
	}
	return &s
}

func look(ctx context.Context) *status {
	s := &status{}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		s.Kernel.Release = unix.ByteSliceToString(uts.Release[:])
	}
	_, err := os.Stat(liveupdate.DevicePath)
	s.Kernel.Device = err == nil
	loaded, _ := os.ReadFile("/sys/kernel/kexec_loaded") // absent: this kernel has no kexec
	s.Kernel.KexecLoaded = strings.TrimSpace(string(loaded)) == "1"
	s.Systemd = lookAtSystemd(ctx)
	s.Update = lookAtUpdate(ctx)

	description, err := describe(ctx)
	switch {
	case err != nil:
		s.Problem, s.err = "noOrchestrator", err
	case description.Problem == "policyBroken":
		s.Problem, s.err = description.Problem, errors.New("the policy is broken, and what its broken files would decide is denied; see holdfast policy check, then systemctl reload holdfastd")
		s.Orchestrator = orchestratorOf(description)
	case description.Problem != "":
		s.Problem, s.err = description.Problem, notReady(description.Problem)
		fallthrough
	default:
		s.Orchestrator = orchestratorOf(description)
	}
	// Without holdfastd it looks for itself: starting it would not help on a kernel that isn't ready.
	var kernel *holdfast.Error
	if s.err = explain(s.err); errors.As(s.err, &kernel) && kernel.Kind == holdfast.ErrKernelNotReady.Kind {
		s.Problem, s.Hint = kernel.Problem, kernel.Hint
	} else if s.err != nil {
		_, s.Hint, _ = strings.Cut(s.err.Error(), "; ")
	}
	s.Ready = s.err == nil
	return s
}

func describe(ctx context.Context) (holdfast.Description, error) {
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return holdfast.Description{}, err
	}
	defer client.Close()
	return client.Describe(ctx)
}

func lookAtSystemd(ctx context.Context) *systemdStatus {
	version, err := systemd.Version(ctx)
	if version == "" && err == nil {
		return nil
	}
	return &systemdStatus{Version: version, CarriesStores: systemd.CarriesStores(version), err: err}
}

// explain turns the failure of a request into what is behind it: on a kernel without live update, every command says
// so in the same words.
func explain(err error) error {
	var answered *holdfast.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answered) && answered.Kind == holdfast.ErrKernelNotReady.Kind:
		e := *answered
		e.Op = ""
		return &e
	case errors.As(err, &answered) && answered.Kind != holdfast.ErrNotASession.Kind:
		return err
	}
	if problem, hint := kernelProblem(); problem != "" {
		return &holdfast.Error{Kind: holdfast.ErrKernelNotReady.Kind, Problem: problem, Hint: hint}
	}
	return err
}

// notReady is the error for a problem that the orchestrator's Describe named in a word.
func notReady(problem string) error {
	e := &holdfast.Error{Kind: holdfast.ErrKernelNotReady.Kind, Problem: problem,
		Hint: "see the kernel's log (dmesg) for why, and reboot"}
	if here, hint := kernelProblem(); here == problem {
		e.Hint = hint
	}
	return e
}

// kernelProblem is what can be told of this kernel without opening the device: the word for what is in the way of
// sessions, and what to do about it.
func kernelProblem() (problem, hint string) {
	err := liveupdate.Device{}.Available()
	var e *liveupdate.Error
	if !errors.As(err, &e) {
		return "", ""
	}
	switch {
	case errors.Is(err, liveupdate.ErrNoDevice):
		return "noDevice", e.Hint
	case errors.Is(err, liveupdate.ErrNotEnabled):
		return "notEnabled", e.Hint
	}
	return "", "" // not root, and so not asked
}

func (s *status) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(name, format string, args ...any) {
		lines := strings.Split(fmt.Sprintf(format, args...), "\n\t")
		for i := range lines {
			lines[i] = oneline.Of(lines[i])
		}
		fmt.Fprintf(table, "%s\t%s\n", name, strings.Join(lines, "\n\t"))
	}
	device := "there is no " + liveupdate.DevicePath
	if s.Kernel.Device {
		device = liveupdate.DevicePath + " is there"
	}
	line("kernel", "%s, %s", s.Kernel.Release, device)
	if s.Kernel.KexecLoaded {
		line("next kernel", "loaded: holdfast update switches to it")
	} else {
		line("next kernel", "none is loaded")
	}
	switch o := s.Orchestrator; {
	case o == nil:
		line("orchestrator", "does not answer")
	default:
		line("orchestrator", "holdfastd %s, keeper: %s, names of up to %d bytes", o.Version, o.Keeper, o.NameMax)
	}
	switch d := s.Systemd; {
	case d == nil:
		line("systemd", "is not PID 1: no fd store carries sessions across an update")
	case d.err != nil:
		line("systemd", "does not say its version: %v", d.err)
	case d.CarriesStores:
		line("systemd", "%s, carries fd stores across an update", d.Version)
	default:
		line("systemd", "%s, does not carry fd stores across an update: %d or newer does", d.Version, carriesStores)
	}
	if s.Update != nil {
		line("update", "%s", strings.Join(s.Update.lines(), "\n\t"))
		if back := s.Update.cameBack(); back != nil {
			line("last update", "%s", strings.Join(back, "\n\t"))
		}
	}
	if s.Ready {
		line("sessions", "can be had")
	} else {
		line("sessions", "can't be had")
	}
	return table.Flush()
}
