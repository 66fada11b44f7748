// SPDX-License-Identifier: MIT

package update

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Phase is how far a round is.
type Phase string

const (
	Idle       Phase = "idle" // there was no round yet
	Preparing  Phase = "preparing"
	Prepared   Phase = "prepared"
	Quiescing  Phase = "quiescing"
	Committing Phase = "committing"
	Aborted    Phase = "aborted"
	Resumed    Phase = "resumed"
)

// Revocable tells whether a round that is so far can be called off.
func (p Phase) Revocable() bool { return p == Preparing || p == Prepared || p == Quiescing }

// Over tells whether a round that is so far needs nobody any more.
func (p Phase) Over() bool { return p == Idle || p == Resumed }

// State is how a participant stands to the phase.
type State string

const (
	Waiting State = "waiting" // its answer is yet to come
	Ready   State = "ready"
	Vetoed  State = "vetoed"
	Late    State = "late" // it had not answered at its deadline
	Gone    State = "gone" // its connection ended
)

// Participant is a program that takes part in rounds, as long as its connection lasts.
type Participant struct {
	ID       string
	Name     string
	Owner    string
	Required bool // without it there is no update
	State    State
	Reason   string
	Since    time.Time // when it came to this state, or to this phase
	Deadline time.Time // for its answer; zero where none is waited for
}

func (p *Participant) String() string { return fmt.Sprintf("%s (%s)", p.Name, p.Owner) }

const (
	// DefaultTimeout is how long a phase may take where Options don't say.
	DefaultTimeout = 2 * time.Minute
	// ExtensionMax bounds what participants may extend a phase to, in multiples of its time.
	ExtensionMax = 10
	// goneMax bounds those that are shown though they have left: some may come and go all the time.
	goneMax = 16
	// namesMax bounds the participants that a reason names.
	namesMax = 8
	// ResumeTimeout is how long participants have to say that they are running again.
	ResumeTimeout = 30 * time.Second
)

// Options are those of a round.
type Options struct {
	Timeout time.Duration // for each of preparing and quiescing; 0 is DefaultTimeout
	Without []string      // participants that are told, and not waited for: NAME, or OWNER/NAME
	DryRun  bool          // prepare, then call it off
	// UnderWay says that the kernel will be switched in any case, since PID 1 is on its way to. Then nothing calls the
	// round off: who isn't ready at its deadline is lost, and the others are not.
	UnderWay bool
}

// Excuses tells whether a participant is one of Without.
func (o *Options) Excuses(name, owner string) bool {
	return slices.Contains(o.Without, name) || slices.Contains(o.Without, owner+"/"+name)
}

// Cause is why a round was called off.
type Cause int

const (
	None      Cause = iota
	Veto            // of a required participant
	Departure       // of a required participant
	Timeout         // of a required participant
	Cancelled
	Rehearsed // by Options.DryRun
	Failure   // of what isn't a participant's
)

// RehearsedReason is the reason of a dry run's end where nothing else was.
const RehearsedReason = "it was a dry run, and everybody was ready"

// InProgressError says that a round is in the way.
type InProgressError struct{ Phase Phase }

func (e *InProgressError) Error() string { return "a round is in progress: " + string(e.Phase) }

// StaleError is what a vote gets that isn't for the present phase of the present round.
type StaleError struct{ Round int }

func (e *StaleError) Error() string {
	return fmt.Sprintf("the vote is not for the present phase of round %d", e.Round)
}

var (
	// ErrExtension is the answer to who asks for more time than there can be.
	ErrExtension = fmt.Errorf("no more than %d times the time of a phase can be had", ExtensionMax)
	// ErrPhase is the answer to a vote for what can't be voted for.
	ErrPhase = errors.New("there is no vote for this phase")
	// ErrNoRound says that there is nothing to cancel.
	ErrNoRound = errors.New("there is no round")
)

// Rounds is the participants and the present round, or the last one. The zero value is idle. It isn't safe for
// concurrent use.
type Rounds struct {
	round   int
	phase   Phase
	began   time.Time // the phase
	options Options
	reason  string
	cause   Cause
	guilty  []Participant
	dropped bool // the loaded kernel, after an abort
	present []*participant
	passed  []Phase // since the last Passed
}

type participant struct {
	Participant
	excused bool // named in Options.Without
	resumed bool // said so, or was never told anything else
}

// become leaves Since where nothing changes: a participant may say the same as often as it likes.
func (p *participant) become(s State, now time.Time) {
	if p.State != s {
		p.State, p.Since = s, now
	}
}

// Snapshot is what there is to see of Rounds.
type Snapshot struct {
	Round        int
	Phase        Phase
	Reason       string // why it was called off
	Cause        Cause
	Guilty       []Participant // who caused it, as they were then
	Participants []Participant // in the order in which they joined
}

// Snapshot returns a copy.
func (r *Rounds) Snapshot() Snapshot {
	s := Snapshot{Round: r.round, Phase: r.Phase(), Reason: r.reason, Cause: r.cause, Guilty: slices.Clone(r.guilty)}
	for _, p := range r.present {
		s.Participants = append(s.Participants, p.Participant)
	}
	return s
}

// Round is the number of the present round, or of the last one; 0 before the first.
func (r *Rounds) Round() int { return r.round }

// Reason is why it was called off.
func (r *Rounds) Reason() string { return r.reason }

// Of is the participant of that ID.
func (r *Rounds) Of(id string) (Participant, bool) {
	if i := r.index(id); i >= 0 {
		return r.present[i].Participant, true
	}
	return Participant{}, false
}

func (r *Rounds) index(id string) int {
	return slices.IndexFunc(r.present, func(p *participant) bool { return p.ID == id })
}

// Phase is that of the present round, or of the last one.
func (r *Rounds) Phase() Phase {
	if r.phase == "" {
		return Idle
	}
	return r.phase
}

// Join adds a participant. Where a round is under way it takes part: as others do if it comes while they prepare; if it
// comes later it has to do both at once.
func (r *Rounds) Join(now time.Time, id, name, owner string, required bool) {
	p := &participant{Participant: Participant{ID: id, Name: name, Owner: owner, Required: required, State: Waiting, Since: now}}
	p.excused = r.options.Excuses(name, owner)
	p.resumed = true
	if r.phase.Revocable() {
		p.resumed = false
		r.await(now, p)
	}
	r.present = append(r.present, p)
}

// await waits for p's answer to the present phase. Who joins in the middle of it, and maybe again and again, doesn't hold it up for
// ever: a required one has what an extension could give it, and for others the phase isn't any longer.
func (r *Rounds) await(now time.Time, p *participant) {
	p.State, p.Reason, p.Since, p.Deadline = Waiting, "", now, time.Time{}
	if p.excused {
		return
	}
	p.Deadline = r.began.Add(r.options.Timeout)
	if p.Required {
		p.Deadline = earlier(now.Add(r.options.Timeout), r.longest())
	}
}

// longest is until when the present phase can be extended.
func (r *Rounds) longest() time.Time { return r.began.Add(ExtensionMax * r.options.Timeout) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Leave is a participant's connection that ended.
func (r *Rounds) Leave(now time.Time, id string) {
	i := r.index(id)
	if i < 0 {
		return
	}
	p := r.present[i]
	if r.Phase().Over() {
		r.present = slices.Delete(r.present, i, i+1)
		return
	}
	p.State, p.Reason, p.Since, p.Deadline, p.resumed = Gone, "its connection ended", now, time.Time{}, true
	r.forget()
	if r.needs(p) {
		r.abort(now, Departure, fmt.Sprintf("the connection of %s ended", p), p)
	}
	r.advance(now)
}

// forget drops who has been gone for the longest time, if there are many.
func (r *Rounds) forget() {
	gone, oldest := 0, 0
	for i, p := range r.present {
		if p.State == Gone {
			if gone == 0 || p.Since.Before(r.present[oldest].Since) {
				oldest = i
			}
			gone++
		}
	}
	if gone > goneMax {
		r.present = slices.Delete(r.present, oldest, oldest+1)
	}
}

// needs tells whether the round is over without p.
func (r *Rounds) needs(p *participant) bool {
	return r.phase.Revocable() && p.Required && !p.excused && !r.options.UnderWay
}

// Vote is a participant's answer.
type Vote struct {
	ID     string
	Round  int
	Phase  Phase
	Ready  bool // else it is a veto, unless Extend is there
	Reason string
	Extend time.Duration // from now on; more time is needed
}

// Vote counts an answer. The error is a *StaleError, ErrExtension or ErrPhase.
//
// A veto counts in each phase up to the switch, whichever it was meant for: what was right once may be no more.
func (r *Rounds) Vote(now time.Time, v Vote) error {
	if v.Phase != Preparing && v.Phase != Prepared && v.Phase != Quiescing && v.Phase != Aborted {
		return ErrPhase
	}
	i := r.index(v.ID)
	if i < 0 || v.Round != r.round || r.present[i].State == Gone {
		return &StaleError{r.round}
	}
	p := r.present[i]
	veto := !v.Ready && v.Extend == 0
	switch {
	case v.Phase == Aborted && r.phase == Aborted:
		p.resumed, p.Deadline = true, time.Time{}
		if p.State == Waiting {
			p.State, p.Reason, p.Since = Ready, v.Reason, now
		}
	case veto && v.Phase != Aborted && r.phase.Revocable():
		p.become(Vetoed, now)
		p.Reason, p.Deadline = v.Reason, time.Time{}
		if r.needs(p) {
			text := fmt.Sprintf("%s vetoes", p)
			if v.Reason != "" {
				text += ": " + v.Reason
			}
			r.abort(now, Veto, text, p)
		}
	case v.Phase != r.phase || v.Phase == Aborted:
		return &StaleError{r.round}
	case v.Phase == Prepared:
		return ErrPhase
	case v.Ready:
		p.become(Ready, now)
		p.Reason, p.Deadline = v.Reason, time.Time{}
	default:
		until := now.Add(v.Extend)
		if until.After(r.longest()) {
			return ErrExtension
		}
		p.become(Waiting, now)
		p.Reason = v.Reason
		if !p.excused && until.After(p.Deadline) {
			p.Deadline = until
		}
	}
	r.advance(now)
	return nil
}

// Start begins a round and returns its number. The error is an *InProgressError.
func (r *Rounds) Start(now time.Time, o Options) (int, error) {
	if !r.Phase().Over() {
		return 0, &InProgressError{r.phase}
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	r.round++
	r.options, r.reason, r.cause, r.guilty, r.dropped = o, "", None, nil, false
	r.enter(now, Preparing)
	r.present = slices.DeleteFunc(r.present, func(p *participant) bool { return p.State == Gone })
	for _, p := range r.present {
		p.excused, p.resumed = o.Excuses(p.Name, p.Owner), false
		r.await(now, p)
	}
	r.advance(now)
	return r.round, nil
}

func (r *Rounds) enter(now time.Time, phase Phase) {
	r.phase, r.began = phase, now
	r.passed = append(r.passed, phase)
}

// Passed are the phases that were entered since the last call: with nobody to wait for there can be several at once.
func (r *Rounds) Passed() []Phase {
	passed := r.passed
	r.passed = nil
	return passed
}

// Quiesce goes on from prepared.
func (r *Rounds) Quiesce(now time.Time) {
	if r.phase != Prepared {
		return
	}
	r.enter(now, Quiescing)
	for _, p := range r.present {
		if p.State == Ready || p.State == Waiting {
			r.await(now, p)
		}
	}
	r.advance(now)
}

// Cancel calls the round off. The error is ErrNoRound, or an *InProgressError where it is too late.
func (r *Rounds) Cancel(now time.Time, reason string) error {
	switch {
	case r.Phase().Over():
		return ErrNoRound
	case r.phase == Committing || r.options.UnderWay:
		return &InProgressError{r.phase}
	case r.phase.Revocable():
		text := "it was cancelled"
		if reason != "" {
			text += ": " + reason
		}
		r.abort(now, Cancelled, text)
	}
	return nil
}

// Fail calls the round off for something that isn't a participant's, in any phase up to and with committing; but not where
// the kernel is switched in any case.
func (r *Rounds) Fail(now time.Time, reason string) {
	if !r.options.UnderWay && (r.phase.Revocable() || r.phase == Committing) {
		r.abort(now, Failure, reason)
	}
}

// Stay says that the kernel isn't switched, where Options.UnderWay said that it would be in any case.
func (r *Rounds) Stay(now time.Time, reason string) {
	if r.options.UnderWay && (r.phase.Revocable() || r.phase == Committing) {
		r.abort(now, Cancelled, reason)
	}
}

// Dropped says that after an abort the loaded kernel was dropped, or why that failed. The round isn't over before.
func (r *Rounds) Dropped(now time.Time, err error) {
	if err != nil {
		r.reason += fmt.Sprintf("; and the next kernel is still loaded, so that any reboot switches to it: %v", err)
	}
	r.dropped = true
	r.advance(now)
}

// abort has everybody go back.
func (r *Rounds) abort(now time.Time, cause Cause, reason string, guilty ...*participant) {
	r.enter(now, Aborted)
	r.cause, r.reason = cause, reason
	for _, p := range guilty {
		r.guilty = append(r.guilty, p.Participant)
	}
	for _, p := range r.present {
		if p.resumed {
			continue
		}
		p.Deadline = now.Add(ResumeTimeout)
		if p.State == Ready || p.State == Waiting {
			p.State, p.Reason, p.Since = Waiting, "", now
		}
	}
}

// advance goes to the next phase if nobody is waited for any more.
func (r *Rounds) advance(now time.Time) {
	if slices.ContainsFunc(r.present, func(p *participant) bool { return !p.Deadline.IsZero() }) {
		return
	}
	switch r.phase {
	case Preparing:
		if r.options.DryRun {
			r.abort(now, Rehearsed, RehearsedReason)
			return
		}
		r.enter(now, Prepared)
	case Quiescing:
		r.enter(now, Committing)
	case Aborted:
		if r.dropped {
			r.enter(now, Resumed)
		}
	}
}

// Next is when Tick is to be called, at the latest.
func (r *Rounds) Next() (next time.Time, ok bool) {
	for _, p := range r.present {
		if !p.Deadline.IsZero() && (!ok || p.Deadline.Before(next)) {
			next, ok = p.Deadline, true
		}
	}
	return next, ok
}

// Tick looks who has missed a deadline.
func (r *Rounds) Tick(now time.Time) {
	var needed []*participant
	var names []string
	for _, p := range r.present {
		if p.Deadline.IsZero() || p.Deadline.After(now) {
			continue
		}
		p.Deadline = time.Time{}
		if p.State == Waiting {
			if p.State, p.Since = Late, now; p.Reason == "" {
				p.Reason = "it did not answer in time"
			}
		}
		if r.needs(p) {
			needed, names = append(needed, p), append(names, p.String())
		}
	}
	if len(names) > namesMax {
		names = append(names[:namesMax], fmt.Sprintf("%d others", len(names)-namesMax))
	}
	if len(needed) > 0 {
		r.abort(now, Timeout, fmt.Sprintf("%s did not answer to %s in time", strings.Join(names, ", "), r.phase), needed...)
	}
	r.advance(now)
}
