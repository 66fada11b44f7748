// SPDX-License-Identifier: MIT

package updated

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// round is one that goes on by itself.
type round struct {
	number int
	update.Options
	done   chan struct{}   // it is over, or with UnderWay everybody is ready
	result update.Snapshot // once done
}

const (
	// lookInterval is between looks whether a kexec of somebody else's is under way, which is a question to PID 1.
	lookInterval = time.Second
	// appearTimeout is how long logind has from the end of the last delay to the job for kexec.target. It queues that at once.
	appearTimeout = 30 * time.Second
)

// unloadTimeout bounds dropping the loaded kernel, which is one system call.
const unloadTimeout = 10 * time.Second

// between does something between rounds: none begins meanwhile.
func (u *Updated) between(do func() error) error {
	u.mu.Lock()
	p := u.rounds.Phase()
	switch {
	case u.limbo:
		p = update.Committing
	case p.Over() && u.starting: // or another kernel is being loaded
		p = update.Preparing
	case p.Over():
		u.starting = true
		u.mu.Unlock()
		defer u.do(func(*update.Rounds, time.Time) { u.starting = false })
		return do()
	}
	u.mu.Unlock()
	return visible(&update.InProgressError{Phase: p})
}

// begin begins a round if nothing is in the way of it.
func (u *Updated) begin(ctx context.Context, o update.Options, force bool) (*round, error) {
	var begun *round
	err := u.between(func() (err error) {
		u.do(func(*update.Rounds, time.Time) { u.begins, u.cancelled = true, nil })
		defer u.do(func(*update.Rounds, time.Time) {
			u.begins = false
			u.forgetWhoLeft()
		})
		begun, err = u.beginFree(ctx, o, force)
		return err
	})
	return begun, err
}

func (u *Updated) beginFree(ctx context.Context, o update.Options, force bool) (*round, error) {
	var err error
	if !o.UnderWay {
		if o.UnderWay, err = u.askUnderWay(ctx); err != nil {
			return nil, err
		}
	}
	if o.UnderWay && o.DryRun {
		return nil, visible(&update.InProgressError{Phase: update.Committing})
	}
	loaded, err := u.Loaded()
	if err != nil {
		return nil, err
	}
	if !loaded && !o.DryRun && !o.UnderWay {
		return nil, reply("NothingLoaded", nil)
	}
	if !force && !o.UnderWay && u.Check != nil {
		findings, err := u.Check(ctx, nil)
		if err != nil {
			return nil, visible(err)
		}
		if findings = slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Severity != "error" }); len(findings) > 0 {
			return nil, Blocked(findings)
		}
	}
	if missed := u.missed(ctx, o); len(missed) > 0 && !force && !o.UnderWay {
		return nil, Blocked(missed)
	}
	// The watch is the round's, and lasts longer than this call.
	watching, unwatch := context.WithCancel(u.ctx)
	orchestrator, err := u.Orchestrator(watching)
	if err != nil && !force && !o.UnderWay {
		unwatch()
		return nil, Blocked([]Finding{{ID: "orchestrator", Severity: "error", Text: fmt.Sprintf("holdfastd does not answer: %v", err),
			Hint: "start it: systemctl start holdfastd.socket holdfastd.service"}})
	}
	own := !o.DryRun && !o.UnderWay
	if own {
		if err := u.mark(markRound); err != nil {
			unwatch()
			return nil, err
		}
	}
	r := &round{Options: o, done: make(chan struct{})}
	u.do(func(rounds *update.Rounds, now time.Time) {
		switch {
		case u.stopping:
			err = errors.New("holdfast-updated is being stopped")
		case u.cancelled != nil:
			err = visible(update.ErrNoRound)
		case ctx.Err() != nil:
			err = context.Cause(ctx) // who asked for it has gone, and was told of nothing
		case !force && !o.UnderWay && u.missing(o) != nil: // one has left since missed
			err = Blocked(u.missing(o))
		default:
			if r.number, err = rounds.Start(now, o); err == nil {
				u.orchestrator, u.switching = orchestrator, false
				u.rounding.Add(1)
			}
		}
	})
	if err != nil {
		unwatch()
		if own {
			u.unmark()
		}
		if errors.Is(err, update.ErrNoRound) {
			return u.notBegun(o)
		}
		return nil, visible(err)
	}
	go func() {
		defer u.rounding.Done()
		defer unwatch()
		u.conduct(watching, r, orchestrator.Ended)
	}()
	return r, nil
}

// notBegun is the round that was cancelled before anybody was asked for anything.
func (u *Updated) notBegun(o update.Options) (*round, error) {
	u.mu.Lock()
	r := &round{Options: o, done: make(chan struct{}), result: u.rounds.Snapshot()}
	reason := "it was cancelled"
	if *u.cancelled != "" {
		reason += ": " + *u.cancelled
	}
	u.mu.Unlock()
	close(r.done)
	r.number = r.result.Round
	if err := u.drop(r); err != nil {
		return nil, err
	}
	r.result.Phase, r.result.Reason, r.result.Cause, r.result.Guilty = update.Resumed, reason, update.Cancelled, nil
	return r, nil
}

// MakeReady takes everybody through a round for a switch that somebody else is about to carry out, and returns when they are
// ready, or at the end of ctx. A round that is in the way is waited for: everybody may be ready by it.
func (u *Updated) MakeReady(ctx context.Context) error {
	for {
		o := update.Options{UnderWay: true}
		if end, limited := ctx.Deadline(); limited {
			o.Timeout = time.Until(end) / 2 // for each of two phases
		}
		begun, err := u.begin(ctx, o, true)
		var answered *varlink.Error
		if errors.As(err, &answered) && answered.Name == iface+".InProgress" {
			if ready, err := u.overOrCommitting(ctx); ready || err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		select {
		case <-begun.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// overOrCommitting waits until nothing is in the way of a round any more, or everybody is ready by the one that is.
func (u *Updated) overOrCommitting(ctx context.Context) (ready bool, err error) {
	for {
		v := u.look()
		u.mu.Lock()
		free := !u.starting && !u.limbo && u.rounds.Phase().Over()
		u.mu.Unlock()
		switch {
		case v.limbo || v.Phase == update.Committing:
			return true, nil
		case free:
			return false, nil
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// orchestratorEnded is why a round is called off.
const orchestratorEnded = "holdfastd ended, and what it was about to keep may not be whole"

// conduct does what each phase of the round asks for, to its end. ctx is the round's.
func (u *Updated) conduct(ctx context.Context, r *round, ended <-chan struct{}) {
	done := false
	finish := func() {
		if !done {
			done = true
			close(r.done)
		}
	}
	defer finish()
	var stays <-chan struct{}
	if r.UnderWay {
		stays = u.watchKexec(ctx, false, r.done)
	}
	fail := func(format string, args ...any) {
		u.do(func(rounds *update.Rounds, now time.Time) { rounds.Fail(now, fmt.Sprintf(format, args...)) })
	}
	dropped := false
	for {
		v := u.look()
		if !done {
			r.result = v.Snapshot
		}
		if v.stopping && r.UnderWay {
			return // so is everything
		}
		switch v.Phase {
		case update.Prepared:
			u.do(func(rounds *update.Rounds, now time.Time) { rounds.Quiesce(now) })
			continue
		case update.Committing:
			if v.untold {
				break // who lost its connection before it was told would take that for an abort
			}
			if r.UnderWay {
				if !done {
					if err := u.mark(markReady); err != nil {
						u.Log.Warn("if holdfast-updated is killed now, everybody will take that for an abort", "error", err)
					}
					finish() // who waits may let PID 1 go on
				}
				break
			}
			err := u.commit(u.ctx)
			if u.ctx.Err() != nil && u.switched() {
				return // PID 1 ends all processes now
			}
			fail("the switch failed: %v", err)
			continue
		case update.Aborted:
			if !dropped {
				dropped = true
				err := u.drop(r)
				u.do(func(rounds *update.Rounds, now time.Time) { rounds.Dropped(now, err) })
				continue
			}
			if v.stopping {
				return
			}
		case update.Resumed:
			return
		}
		deadline, stop := alarm(v)
		select {
		case <-v.changed:
		case <-deadline:
			u.do(func(rounds *update.Rounds, now time.Time) { rounds.Tick(now) })
		case <-ended:
			ended = nil
			if u.ctx.Err() == nil {
				fail(orchestratorEnded)
			}
		case <-stays:
			stays = nil
			u.do(func(rounds *update.Rounds, now time.Time) {
				rounds.Stay(now, calledOff)
			})
		}
		stop()
	}
}

// watchKexec has the channel closed when the kexec of somebody else's, that was seen under way, is so no longer, or when it hasn't
// come to that in a while after everybody was ready.
func (u *Updated) watchKexec(ctx context.Context, seen bool, ready <-chan struct{}) <-chan struct{} {
	stays := make(chan struct{})
	go func() {
		looks := time.NewTicker(cmp.Or(u.lookInterval, lookInterval))
		defer looks.Stop()
		var late <-chan time.Time
		for {
			select {
			case <-looks.C:
			case <-ready:
				ready, late = nil, time.After(cmp.Or(u.appearTimeout, appearTimeout))
				continue
			case <-late:
				seen = true
			case <-ctx.Done():
				return
			}
			if underWay, err := u.askUnderWay(ctx); err == nil && underWay {
				seen = true
			} else if err == nil && seen {
				close(stays)
				return
			}
		}
	}()
	return stays
}

// endedWith calls the round off if holdfastd has ended: what went wrong with a participant then has that as its cause, and comes
// here by another way, which may be the faster one.
func (u *Updated) endedWith() {
	u.mu.Lock()
	answers, revocable := u.orchestrator.Answers, u.rounds.Phase().Revocable()
	u.mu.Unlock()
	if !revocable || answers == nil || answers() || u.ctx.Err() != nil {
		return
	}
	u.do(func(rounds *update.Rounds, now time.Time) {
		if rounds.Phase().Revocable() { // in the switch PID 1 ends everybody
			rounds.Fail(now, orchestratorEnded)
		}
	})
}

// alarm fires when a deadline ends.
func alarm(v view) (<-chan time.Time, func()) {
	if !v.due {
		return nil, func() {}
	}
	timer := time.NewTimer(max(0, time.Until(v.next)))
	return timer.C, func() { timer.Stop() }
}

// commit returns only if the switch failed.
func (u *Updated) commit(ctx context.Context) error {
	if loaded, err := u.Loaded(); err != nil {
		return err
	} else if !loaded {
		return errors.New("no kernel is loaded any more: somebody unloaded it")
	}
	if u.BeforeSwitch != nil {
		if err := u.BeforeSwitch(ctx); err != nil {
			return err
		}
	}
	stopped := true
	u.do(func(r *update.Rounds, _ time.Time) {
		if r.Phase() == update.Committing {
			stopped, u.switching = false, true
		}
	})
	if stopped {
		return errors.New("it was called off")
	}
	if err := u.mark(markSwitch); err != nil {
		return err
	}
	err := u.Switch(ctx)
	// PID 1 may be on its way all the same, where only its answer was lost: then all that is ready must stay so.
	for first := true; ; first = false {
		underWay, asked := u.askUnderWay(context.WithoutCancel(ctx))
		if asked == nil && !underWay {
			u.do(func(*update.Rounds, time.Time) { u.switching = false })
			return err
		}
		if first {
			u.Log.Warn("the switch seems to have failed, and is under way, or that can't be told", "error", errors.Join(err, asked))
		}
		select {
		case <-time.After(cmp.Or(u.lookInterval, lookInterval)):
		case <-ctx.Done():
			return err
		}
	}
}

// switched tells whether PID 1 was asked for the switch.
func (u *Updated) switched() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.switching
}

// drop unloads the kernel, so that a later reboot doesn't switch to it with everybody unprepared. A dry run leaves it, and so
// does a round for somebody else's switch: it is theirs.
func (u *Updated) drop(r *round) error {
	if r.DryRun {
		return nil
	}
	if r.UnderWay {
		u.unmark()
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), unloadTimeout)
	defer cancel()
	underWay, err := u.askUnderWay(ctx)
	switch {
	case err != nil:
		err = fmt.Errorf("whether it is being switched to can't be told: %w", err)
	case underWay:
		u.Log.Warn("somebody else has begun a kexec: the next kernel stays loaded for that, and everybody is made ready", "round", r.number)
		u.unmark()
		u.makeReady(u.ctx)
		return nil
	default:
		err = u.Unload(ctx)
	}
	if err != nil {
		u.Log.Error("the next kernel could not be unloaded", "round", r.number, "error", err)
		return err
	}
	u.unmark()
	return nil
}

// reasonMax bounds a reason, in bytes: those of all participants go into each answer.
const reasonMax = 200

// line makes one line of what somebody else wrote, and not too long a one.
func line(text string) string {
	text = oneline.Of(text)
	return strings.ToValidUTF8(text[:min(len(text), reasonMax)], "")
}
