// SPDX-License-Identifier: MIT

package updated

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// join serves a participant as long as its connection lasts.
func (u *Updated) join(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Name     string `json:"name"`
		Required *bool  `json:"required"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	if name.Check(in.Name, name.Max) != nil {
		return nil, varlink.InvalidParameter("name")
	}
	if !call.More() {
		return nil, &varlink.Error{Name: varlink.ErrExpectedMore}
	}
	identity, err := call.Peer.(*peer.Process).Identity()
	if err != nil {
		return nil, visible(err)
	}
	grant, err := u.currentPolicy().Allow(identity)
	if err != nil {
		u.refused(call, err.Error())
		return nil, visible(err)
	}
	required := grant.Required
	if in.Required != nil {
		if required = *in.Required; required && !grant.Required {
			u.refused(call, "its rule does not let it be required")
			return nil, notPermitted("the rule does not let "+grant.Owner+" be a required participant (required = true)", grant.Rule)
		}
	}

	from := places.Of(identity)
	s, err := u.subscribe(from, in.Name, grant.Owner, required)
	if err != nil {
		u.refused(call, err.Error())
		return nil, err
	}
	u.Log.Info("a participant joined", "participant", in.Name, "owner", grant.Owner, "pid", identity.PID, "required", required)
	defer func() {
		u.endedWith()
		u.unsubscribe(from, s)
		u.Log.Info("a participant left", "participant", in.Name, "owner", grant.Owner, "pid", identity.PID)
	}()
	for {
		switch next, last := u.next(s); {
		case last:
			return &varlink.Reply{Parameters: next}, nil
		case next != nil:
			if err := call.Continue(&varlink.Reply{Parameters: next}); err != nil {
				return nil, err
			}
			u.wasTold(s)
			continue
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return nil, nil // nobody is there to be answered
		}
	}
}

func (u *Updated) vote(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		ID         string       `json:"id"`
		Round      int          `json:"round"`
		Phase      update.Phase `json:"phase"`
		Ready      bool         `json:"ready"`
		Reason     *string      `json:"reason"`
		ExtendUSec *int64       `json:"extendUSec"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	v := update.Vote{ID: in.ID, Round: in.Round, Phase: in.Phase, Ready: in.Ready}
	if in.Reason != nil {
		v.Reason = line(*in.Reason)
	}
	if in.ExtendUSec != nil {
		if v.Extend = time.Duration(*in.ExtendUSec) * time.Microsecond; v.Ready || *in.ExtendUSec <= 0 || *in.ExtendUSec > extendMax.Microseconds() {
			return nil, varlink.InvalidParameter("extendUSec")
		}
	}
	identity, err := call.Peer.(*peer.Process).Identity()
	if err != nil {
		return nil, visible(err)
	}
	owner, err := u.currentPolicy().Owner(identity)
	if err != nil {
		return nil, visible(err)
	}
	if !v.Ready && v.Extend == 0 {
		u.endedWith()
	}
	u.do(func(r *update.Rounds, now time.Time) {
		p, there := r.Of(in.ID)
		if there && p.Owner != owner {
			err = notPermitted("that participant belongs to somebody else", "")
			return
		}
		if err = r.Vote(now, v); err == nil {
			u.Log.Info("a vote", "owner", owner, "participant", p.Name, "pid", identity.PID, "round", v.Round, "phase", string(v.Phase), "ready", v.Ready, "extend", v.Extend, "reason", v.Reason)
		}
	})
	if err != nil {
		u.Log.Debug("a vote does not count", "owner", owner, "pid", identity.PID, "reason", err)
	}
	return nil, visible(err)
}

// extendMax keeps sums of times in range.
const extendMax = 365 * 24 * time.Hour

// participant is io.holdfast.Update.Participant.
type participant struct {
	Name      string       `json:"name"`
	Owner     string       `json:"owner"`
	Required  bool         `json:"required"`
	State     update.State `json:"state"`
	Reason    string       `json:"reason,omitempty"`
	SinceUSec int64        `json:"sinceUSec"`
}

func participants(of []update.Participant) []participant {
	all := []participant{}
	for _, p := range of {
		all = append(all, participant{p.Name, p.Owner, p.Required, p.State, p.Reason, max(0, time.Since(p.Since).Microseconds())})
	}
	return all
}

// progress is a reply to Start.
type progress struct {
	Round        int           `json:"round"`
	Phase        update.Phase  `json:"phase"`
	Participants []participant `json:"participants"`
	Reason       string        `json:"reason,omitempty"`
}

func progressOf(s update.Snapshot) progress {
	return progress{s.Round, s.Phase, participants(s.Participants), s.Reason}
}

func (u *Updated) start(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		TimeoutUSec *int64   `json:"timeoutUSec"`
		DryRun      *bool    `json:"dryRun"`
		Without     []string `json:"without,omitempty"`
		Force       *bool    `json:"force"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	o := update.Options{Without: in.Without, DryRun: in.DryRun != nil && *in.DryRun}
	if in.TimeoutUSec != nil {
		if *in.TimeoutUSec <= 0 || *in.TimeoutUSec > extendMax.Microseconds() {
			return nil, varlink.InvalidParameter("timeoutUSec")
		}
		o.Timeout = time.Duration(*in.TimeoutUSec) * time.Microsecond
	}
	if err := u.administrator(call); err != nil {
		return nil, err
	}
	force := in.Force != nil && *in.Force
	if unclear := u.unclear(o.Without); len(unclear) > 0 && !force {
		return nil, Blocked(unclear)
	}
	started, err := u.begin(ctx, o, force)
	if err != nil {
		return nil, err
	}
	for sent := -1; ; {
		v := u.look()
		if call.More() && v.Round == started.number && v.version != sent {
			// Who called may go: the round goes on.
			if err := call.Continue(&varlink.Reply{Parameters: progressOf(v.Snapshot)}); err != nil {
				return nil, err
			}
			sent = v.version
		}
		select {
		case <-started.done:
			return started.answer()
		case <-v.changed:
		case <-ctx.Done():
			return nil, nil // nobody is there to be answered
		}
	}
}

// unclear says which of those who are not to be waited for can't be told: a slip of the pen would leave somebody else behind, or
// wait for who is meant.
func (u *Updated) unclear(without []string) (findings []Finding) {
	u.mu.Lock()
	there := u.rounds.Snapshot().Participants
	for _, e := range u.expected {
		there = append(there, update.Participant{Name: e.Name, Owner: e.Owner})
	}
	u.mu.Unlock()
	for _, w := range without {
		only := update.Options{Without: []string{w}}
		var who []string
		for _, p := range there {
			if full := p.Owner + "/" + p.Name; p.State != update.Gone && only.Excuses(p.Name, p.Owner) && !slices.Contains(who, full) {
				who = append(who, full)
			}
		}
		switch {
		case len(who) == 0:
			findings = append(findings, Finding{ID: "without", Severity: "error", Text: fmt.Sprintf("no participant is called %q", line(w)), Hint: "holdfast status shows who there is"})
		case len(who) > 1:
			findings = append(findings, Finding{ID: "without", Severity: "error", Text: fmt.Sprintf("%d owners have a participant called %q", len(who), line(w)),
				Hint: "name one with its owner: " + strings.Join(who[:min(len(who), 8)], ", ")})
		}
	}
	return findings
}

// answer is what came of the round.
func (r *round) answer() (*varlink.Reply, error) {
	guilty := map[string]any{"participants": participants(r.result.Guilty), "reason": r.result.Reason}
	switch r.result.Cause {
	case update.Veto, update.Departure:
		return nil, reply("Vetoed", guilty)
	case update.Timeout:
		return nil, reply("TimedOut", guilty)
	}
	return &varlink.Reply{Parameters: progressOf(r.result)}, nil
}

func (u *Updated) cancel(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Reason *string `json:"reason"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	if err := u.administrator(call); err != nil {
		return nil, err
	}
	reason := ""
	if in.Reason != nil {
		reason = line(*in.Reason)
	}
	var err error
	u.do(func(r *update.Rounds, now time.Time) {
		err = r.Cancel(now, reason)
		switch {
		case !errors.Is(err, update.ErrNoRound):
		case u.limbo:
			err = &update.InProgressError{Phase: update.Committing}
		case u.begins:
			u.cancelled = &reason
		}
	})
	if errors.Is(err, update.ErrNoRound) {
		return nil, nil
	}
	return nil, visible(err)
}

func (u *Updated) status(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	if err := call.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	if err := u.seesAll(call); err != nil {
		return nil, err
	}
	for sent := -1; ; {
		v := u.look()
		if v.version != sent {
			reply, err := u.statusOf(ctx, v)
			if err != nil || !call.More() || v.stopping {
				return reply, err
			}
			if err := call.Continue(reply); err != nil {
				return nil, err
			}
			sent = v.version
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return nil, nil // nobody is there to be answered
		}
	}
}

func (u *Updated) statusOf(ctx context.Context, v view) (*varlink.Reply, error) {
	loaded, err := u.Loaded()
	if err != nil {
		return nil, err
	}
	status := struct {
		progress
		Loaded   bool      `json:"loaded"`
		Outcomes []Outcome `json:"outcomes"`
	}{progressOf(v.Snapshot), loaded, []Outcome{}}
	switch {
	case v.limbo && v.Phase.Over():
		status.Phase = update.Committing
	case v.begins && v.Phase.Over():
		// Nobody has been asked yet, and what was answered in an earlier round is of no interest.
		status.Round, status.Phase, status.Reason = v.Round+1, update.Preparing, ""
		for i := range status.Participants {
			status.Participants[i].State, status.Participants[i].Reason = update.Waiting, ""
		}
	}
	if u.Outcomes != nil {
		outcomes, err := u.Outcomes(ctx)
		if err != nil {
			return nil, err
		}
		status.Outcomes = append(status.Outcomes, outcomes...)
	}
	return &varlink.Reply{Parameters: status}, nil
}

// target is io.holdfast.Update.Target.
type target struct {
	KernelFileDescriptor *int    `json:"kernelFileDescriptor"`
	InitrdFileDescriptor *int    `json:"initrdFileDescriptor"`
	CommandLine          *string `json:"commandLine"`
}

// take takes the descriptors, which are closed after the call.
func (t *target) take(call *varlink.Call) (*Target, error) {
	taken := &Target{CommandLine: t.CommandLine}
	var err error
	if t.KernelFileDescriptor != nil {
		if taken.Kernel, err = call.TakeFD(*t.KernelFileDescriptor, "target.kernelFileDescriptor"); err != nil {
			return nil, err
		}
		call.Drop(taken.Kernel)
	}
	if t.InitrdFileDescriptor != nil {
		if taken.Initrd, err = call.TakeFD(*t.InitrdFileDescriptor, "target.initrdFileDescriptor"); err != nil {
			return nil, err
		}
		call.Drop(taken.Initrd)
	}
	return taken, nil
}

func (u *Updated) check(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Target *target `json:"target"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	if err := u.administrator(call); err != nil {
		return nil, err
	}
	var of *Target
	if in.Target != nil {
		var err error
		if of, err = in.Target.take(call); err != nil {
			return nil, err
		}
	}
	findings, err := u.Check(ctx, of)
	if err != nil {
		return nil, visible(err)
	}
	return &varlink.Reply{Parameters: map[string][]Finding{"findings": append([]Finding{}, findings...)}}, nil
}

func (u *Updated) load(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Target target `json:"target"`
		Force  *bool  `json:"force"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	if err := u.administrator(call); err != nil {
		return nil, err
	}
	of, err := in.Target.take(call)
	if err != nil {
		return nil, err
	}
	var commandLine string
	if err := u.between(func() (err error) {
		commandLine, err = u.Load(ctx, of, in.Force != nil && *in.Force)
		return err
	}); err != nil {
		return nil, err
	}
	return &varlink.Reply{Parameters: map[string]string{"commandLine": commandLine}}, nil
}

func (u *Updated) unload(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	if err := call.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	if err := u.administrator(call); err != nil {
		return nil, err
	}
	return nil, u.between(func() error { return u.Unload(ctx) })
}

func (u *Updated) report(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	if err := call.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	if err := u.seesAll(call); err != nil {
		return nil, err
	}
	report, err := u.Report(ctx)
	if err != nil {
		return nil, visible(err)
	}
	return &varlink.Reply{Parameters: map[string]any{"report": report}}, nil
}

// ErrNoReport is what Report says where there was no update yet.
var ErrNoReport = reply("NoReport", nil)

// Blocked is what refuses a kernel for what was found.
func Blocked(findings []Finding) error {
	return reply("Blocked", map[string][]Finding{"findings": findings})
}
