// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const (
	// Between attempts to reach holdfast-updated again; systemd starts it anew after 100 ms. A round that begins before the
	// participants are back knows nothing of them, so the longest is short.
	rejoinMin, rejoinMax = 50 * time.Millisecond, time.Second
	// voteTimeout is for one try of a vote.
	voteTimeout = 10 * time.Second
	// undoTimeout is for giving up a session: PID 1 may be slow to take it out of a store.
	undoTimeout = 30 * time.Second
)

// Participant is a program's part in the updates of its host, from [Join] to Close.
//
// It has three goroutines at most: one reads what holdfast-updated says, one decides, one runs Prepare and Quiesce. When the
// connection breaks it is made anew, with growing pauses. A round in which that happens is over for this participant,
// as if it had been told of an abort; but not once it was told that the switch has begun: then it waits for what the next
// holdfast-updated says, since what it committed may be about to cross.
type Participant struct {
	config  ParticipantConfig
	address string
	log     *slog.Logger

	cancel context.CancelFunc
	ended  chan struct{}
}

// Join makes the program a participant. It returns once holdfast-updated has confirmed that, or with an error where it
// can't be reached or refuses: [ErrNotPermitted] is about the host's policy. ctx is for that only; Close ends it.
func Join(ctx context.Context, config ParticipantConfig) (*Participant, error) {
	if config.Prepare == nil {
		return nil, errors.New("holdfast: join: there is no Prepare; what would this program do for an update?")
	}
	if config.Required && config.Optional {
		return nil, errors.New("holdfast: join: Required and Optional exclude each other")
	}
	p := &Participant{config: config, address: updateAddress(), log: config.Log, ended: make(chan struct{})}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	running, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	said := make(chan notice)
	joined := make(chan error, 1)
	// If it is given up before the confirmation, the subscription ends with it.
	stop := context.AfterFunc(ctx, cancel)
	go p.subscribe(running, said, joined)
	go p.run(running, said)
	select {
	case err := <-joined:
		if inTime := stop(); inTime && err == nil {
			return p, nil
		} else if inTime {
			p.Close()
			return nil, err
		}
	case <-ctx.Done():
	}
	p.Close()
	return nil, fmt.Errorf("holdfast: join %q: %w", config.Name, context.Cause(ctx))
}

func updateAddress() string {
	if address := os.Getenv("HOLDFAST_UPDATE_ADDRESS"); address != "" {
		return address
	}
	return UpdateAddress
}

// Close leaves, and returns when no callback runs any more. If a round is under way it is over for this participant, and
// Abort is called; a required one's leaving calls it off for everybody. Sessions of the round that were committed stay as they are,
// since a program that ends can reclaim its memory at its next start; and nothing happens to any once the switch has begun,
// when everything is being stopped. It must not be called from a callback.
func (p *Participant) Close() error {
	p.cancel()
	<-p.ended
	return nil
}

// notice is a reply to Join, or the end of the connection.
type notice struct {
	ID           string `json:"id"`
	Round        int    `json:"round"`
	Phase        string `json:"phase"`
	DeadlineUSec *int64 `json:"deadlineUSec"`
	Reason       string `json:"reason"`

	deadline time.Time
	first    bool // on its connection
	lost     bool
}

// subscribe keeps up the connection and passes on what it says.
func (p *Participant) subscribe(ctx context.Context, said chan<- notice, joined chan<- error) {
	defer close(said)
	pause := rejoinMin
	for ever := false; ; {
		first := true
		err := p.listen(ctx, func(n notice) bool {
			n.first, first = first, false
			if !ever {
				ever = true
				joined <- nil
			}
			pause = rejoinMin
			select {
			case said <- n:
				return true
			case <-ctx.Done():
				return false
			}
		})
		if !ever {
			joined <- err
			return
		}
		if ctx.Err() != nil {
			return // it was given up, not lost
		}
		if !first {
			select {
			case said <- notice{lost: true}:
			case <-ctx.Done():
				return
			}
		}
		p.log.Warn("the connection to holdfast-updated ended; trying again", "participant", p.config.Name, "in", pause, "error", err)
		// All participants lose theirs at once.
		if pause = wait(ctx, pause); ctx.Err() != nil {
			return
		}
	}
}

// wait waits for about the pause, or the end of ctx, and returns the next one.
func wait(ctx context.Context, pause time.Duration) time.Duration {
	timer := time.NewTimer(pause/2 + rand.N(pause))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return min(2*pause, rejoinMax)
}

var errEnded = errors.New("the participant was closed")

// listen is one connection, from Join to its end.
func (p *Participant) listen(ctx context.Context, each func(notice) bool) error {
	conn, err := varlink.Dial(ctx, p.address)
	if err != nil {
		return fmt.Errorf("holdfast: join %q: %w; is holdfast-updated.socket started? (systemctl enable --now holdfast-updated.socket holdfast-updated.service)", p.config.Name, err)
	}
	defer conn.Close()
	in := struct {
		Name     string `json:"name"`
		Required *bool  `json:"required,omitempty"`
	}{Name: p.config.Name}
	if p.config.Required || p.config.Optional {
		in.Required = &p.config.Required
	}
	err = conn.CallMore(ctx, "io.holdfast.Update.Join", in, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
		fd.CloseAll(fds)
		var n notice
		if err := json.Unmarshal(parameters, &n); err != nil {
			return err
		}
		if n.DeadlineUSec != nil {
			n.deadline = time.Now().Add(time.Duration(*n.DeadlineUSec) * time.Microsecond)
		}
		if !each(n) {
			return errEnded
		}
		return nil
	})
	return updateError(fmt.Sprintf("join %q", p.config.Name), err)
}

// updateError makes an answer of holdfast-updated an *Error.
func updateError(op string, err error) error {
	var refused *varlink.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		e := &Error{}
		if err := refused.Decode(e); err != nil {
			return fmt.Errorf("holdfast: %s: %w", op, err)
		}
		e.Op, e.Kind = op, refused.Name
		if e.Kind == updateErrors+"NotPermitted" {
			e.Kind = ErrNotPermitted.Kind
		}
		return e
	}
	return fmt.Errorf("holdfast: %s: %w", op, err)
}

const updateErrors = "io.holdfast.Update."

// errStale is a vote that came too late, which says nothing that the subscription doesn't.
var errStale = &Error{Kind: updateErrors + "StaleVote"}

// vote answers, again and again until it came through or ctx ends: a queue of connections that is full for a moment, where connect(2)
// fails at once, must not make one late who is ready. Nor must being refused for what may pass, such as too many connections.
func (p *Participant) vote(ctx context.Context, r *Round, phase string, ready bool, reason string, extend time.Duration) error {
	for pause := rejoinMin; ; {
		err := p.tryVote(ctx, r, phase, ready, reason, extend)
		var answer *Error
		if err == nil || errors.Is(err, errStale) || errors.As(err, &answer) && answer.Kind == varlink.ErrInvalidParameter {
			return err
		}
		if pause = wait(ctx, pause); ctx.Err() != nil {
			return err
		}
		p.log.Debug("a vote did not come through; trying again", "participant", p.config.Name, "phase", phase, "error", err)
	}
}

// tryVote is one try, on a connection of its own.
func (p *Participant) tryVote(ctx context.Context, r *Round, phase string, ready bool, reason string, extend time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	r.mu.Lock()
	id, number := r.id, r.number
	r.mu.Unlock()
	in := struct {
		ID         string `json:"id"`
		Round      int    `json:"round"`
		Phase      string `json:"phase"`
		Ready      bool   `json:"ready"`
		Reason     string `json:"reason,omitempty"`
		ExtendUSec int64  `json:"extendUSec,omitempty"`
	}{id, number, phase, ready, reason, extend.Microseconds()}
	conn, err := varlink.Dial(ctx, p.address)
	if err == nil {
		var fds []*fd.FD
		fds, err = conn.Call(ctx, "io.holdfast.Update.Vote", in, nil, nil)
		fd.CloseAll(fds)
		conn.Close()
	}
	return updateError(fmt.Sprintf("vote in round %d", number), err)
}

// run decides, until the subscription is over.
func (p *Participant) run(ctx context.Context, said <-chan notice) {
	defer close(p.ended)
	var r *Round    // the one that this participant is in
	var over *Round // the one that was called off, and isn't over for everybody yet
	stopVoting := func() {}
	resumed := func() {
		if over != nil && p.config.Resumed != nil {
			p.config.Resumed()
		}
		over = nil
	}
	abort := func(reason string) {
		if r != nil {
			r.abort(reason, false)
			r, over = nil, r
		}
	}
	for n := range said {
		stopVoting() // what comes next makes it needless
		stopVoting = func() {}
		if ctx.Err() != nil {
			continue // it is closed
		}
		switch {
		case n.lost && r != nil && r.committing:
			// The switch may be under way. The next connection tells.
		case n.lost:
			abort("the connection to holdfast-updated broke")
			resumed()
		case r != nil && (n.ID != r.id && !(n.first && r.committing && n.Phase == "committing") || n.ID == r.id && n.Round != r.number):
			// Another holdfast-updated, or another round, that knows nothing of ours.
			abort("holdfast-updated was restarted before the switch")
			resumed()
		}
		if n.lost {
			continue
		}
		switch n.Phase {
		case "preparing", "quiescing":
			if r == nil {
				resumed()
				r = p.newRound(ctx, n)
			}
			r.setDeadline(n.deadline)
			r.phases <- n.Phase
		case "committing":
			if r != nil {
				r.committing = true
				r.goOn(n)
			}
		case "aborted":
			if r == nil {
				continue
			}
			abort(n.Reason)
			stopVoting = p.runsOn(ctx, over)
		case "resumed", "idle":
			abort(n.Reason)
			resumed()
		}
	}
	stopVoting()
	switch {
	case r != nil && r.committing:
		r.cancel()
		<-r.worked
	case r != nil:
		r.abort("the participant was closed", true)
	}
}

// runsOn says so to holdfast-updated. What it returns ends the tries.
func (p *Participant) runsOn(ctx context.Context, r *Round) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.vote(ctx, r, "aborted", true, "", 0); err != nil && !errors.Is(err, errStale) && ctx.Err() == nil {
			p.log.Warn("holdfast-updated was not told that the program runs on", "participant", p.config.Name, "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Round is one try of an update, as a participant sees it. Its methods may be called from any goroutine until Abort is
// called.
type Round struct {
	of         *Participant
	committing bool // run's alone

	ctx    context.Context
	cancel context.CancelFunc
	phases chan string // to work
	worked chan struct{}

	mu       sync.Mutex // run, which alone writes them, reads id and number without
	number   int
	id       string // of the participant, on the connection that the round goes on by
	phase    string
	deadline time.Time
	over     bool
	held     []held
}

// held is a session that ends with the round, if that is called off.
type held struct {
	client  *Client
	session *Session
}

func (p *Participant) newRound(ctx context.Context, n notice) *Round {
	// More phases than there are never come.
	r := &Round{of: p, number: n.Round, id: n.ID, phases: make(chan string, 8), worked: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(ctx)
	go r.work()
	return r
}

// work runs the callbacks, and votes.
func (r *Round) work() {
	defer close(r.worked)
	var prepared bool
	var failed error
	for {
		var phase string
		select {
		case phase = <-r.phases:
		case <-r.ctx.Done():
			return
		}
		r.mu.Lock()
		r.phase = phase
		r.mu.Unlock()
		// Who joins while the others quiesce does both.
		if !prepared && failed == nil {
			prepared = true
			failed = r.of.config.Prepare(r.ctx, r)
		}
		if phase == "quiescing" && failed == nil && r.ctx.Err() == nil && r.of.config.Quiesce != nil {
			failed = r.of.config.Quiesce(r.ctx, r)
		}
		if r.ctx.Err() != nil {
			return
		}
		reason := ""
		if failed != nil {
			reason = failed.Error()
		}
		if err := r.of.vote(r.ctx, r, phase, failed == nil, reason, 0); err != nil && r.ctx.Err() == nil {
			r.of.log.Warn("a vote did not count", "participant", r.of.config.Name, "phase", phase, "error", err)
		}
	}
}

// goOn has the round be the one that another connection speaks of.
func (r *Round) goOn(n notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id, r.number = n.ID, n.Round
}

// Number counts the rounds of the holdfast-updated that runs.
func (r *Round) Number() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.number
}

// Deadline is when an answer must have come in the present phase; zero if it isn't waited for.
func (r *Round) Deadline() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.deadline
}

func (r *Round) setDeadline(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = t
}

// Extend asks for time until d from now for the present phase, from inside of Prepare or Quiesce. The reason is shown to
// the operator. There can't be more than ten times the time of a phase.
func (r *Round) Extend(ctx context.Context, d time.Duration, reason string) error {
	r.mu.Lock()
	phase := r.phase
	r.mu.Unlock()
	until := time.Now().Add(d)
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	if err := r.of.vote(ctx, r, phase, false, reason, max(d, time.Microsecond)); err != nil {
		return err
	}
	if until.After(r.Deadline()) {
		r.setDeadline(until)
	}
	return nil
}

// Acquire is [Client.Acquire] for a session that is of this round alone: if the update is called off it is closed, and
// taken out of where it was put by [Session.Park] or [Session.Store]; the files in it can be resized again then. The caller
// must not close it, and the client must stay open until the round is over.
func (r *Round) Acquire(ctx context.Context, client *Client, name string, options ...AcquireOption) (*Session, error) {
	session, err := client.Acquire(ctx, name, options...)
	if err != nil {
		return nil, err
	}
	if err := r.Hold(client, session); err != nil {
		session.Close()
		return nil, err
	}
	return session, nil
}

// Hold has a session that was got otherwise end with the round too.
func (r *Round) Hold(client *Client, session *Session) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return fmt.Errorf("holdfast: round %d: the update was called off", r.number)
	}
	r.held = append(r.held, held{client, session})
	return nil
}

// abort gives up all that the round holds, or only what isn't committed, and tells the program.
func (r *Round) abort(reason string, keepCommitted bool) {
	r.cancel()
	<-r.worked
	r.mu.Lock()
	r.over = true
	sessions := r.held
	r.held = nil
	r.mu.Unlock()
	for _, h := range sessions {
		if keepCommitted && h.session.committed() {
			continue
		}
		if err := h.giveUp(); err != nil {
			r.of.log.Error("a session could not be given up, and its files can't be resized", "participant", r.of.config.Name, "session", h.session.Name(), "error", err)
		}
	}
	if r.of.config.Abort != nil {
		r.of.config.Abort(reason)
	}
}

// giveUp takes the session out of everywhere, and closes it.
func (h held) giveUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	h.session.mu.Lock()
	stored, storing, committed := h.session.stored, h.session.storing, h.session.manifest != nil
	h.session.mu.Unlock()
	var left error
	if storing {
		// Where Store was broken off, as by the end of the round, PID 1 may have it all the same.
		left = h.session.Discard(ctx)
	}
	h.session.Close()
	if stored || !committed {
		return left
	}
	// Even where Park failed: the orchestrator may keep it all the same.
	outgoing := liveupdate.Outgoing
	if err := h.client.release(ctx, h.session.Name(), &outgoing); err != nil && !errors.Is(err, ErrNoSuchSession) {
		return errors.Join(left, err)
	}
	return left
}

func (s *Session) committed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.manifest != nil
}
