// SPDX-License-Identifier: MIT

// Package updated answers io.holdfast.Update, and takes rounds from the first question to the switch. The rules of a round
// are package update's; here are the participants' connections, the clock, and what is done in each phase. When the
// process ends, so do the connections, which calls a round off; what the next process must know of it lies in a file.
package updated

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const (
	iface = "io.holdfast.Update"

	// connectionsPerUnit bounds what one unit can take of the server's 4,096 connections. A participant has one, and
	// one more for the moment of a vote.
	connectionsPerUnit = 1024
)

// Finding is io.holdfast.Update.Finding.
type Finding struct {
	ID       string `json:"id"`
	Severity string `json:"severity"` // ok, warning, error
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"`
}

// Outcome is io.holdfast.Update.Outcome.
type Outcome struct {
	Owner  string `json:"owner"`
	Name   string `json:"name"`
	State  string `json:"state"` // reclaimed, waiting, overdue, lost, released
	Reason string `json:"reason,omitempty"`
}

// Target is a next kernel. The descriptors are lent for the length of the call.
type Target struct {
	Kernel, Initrd *fd.FD  // nil: what is loaded
	CommandLine    *string // nil: what this kernel runs with
}

// Watched is a process that is watched.
type Watched struct {
	Ended <-chan struct{} // closed when it has ended, or is watched no longer
	// Answers tells whether it still does. A process that has ended never does, whether or not Ended is closed yet.
	Answers func() bool
}

// Updated serves the interface. Its fields must not be changed once it serves; SetPolicy may be called at any time.
// Each func may be called from any goroutine.
type Updated struct {
	Cgroups *peer.Cgroups
	Version string
	Log     *slog.Logger

	// Loaded tells whether a kernel is loaded, and Unload drops it.
	Loaded func() (bool, error)
	Unload func(context.Context) error
	// Switch switches to the loaded kernel. It returns only if that failed, or at the end of its context.
	Switch func(context.Context) error
	// UnderWay tells whether a kexec is on its way already, whoever asked for it.
	UnderWay func(context.Context) (bool, error)
	// Mark is a file that says how far a round is, and Mark.participants who takes part: what the next process finds, in the same
	// boot, if this one is killed. They may be lost; then a kernel may stay loaded that needn't, and nobody is waited for.
	Mark string
	// Orchestrator makes sure that holdfastd answers, and watches it until ctx ends.
	Orchestrator func(ctx context.Context) (Watched, error)

	// What is nil of these is not there: the methods are answered with MethodNotImplemented, and a round does without.

	Check    func(context.Context, *Target) ([]Finding, error)                                // nil is what is loaded; errors are those in the way
	Load     func(ctx context.Context, t *Target, force bool) (commandLine string, err error) // force: in spite of findings
	Report   func(context.Context) (json.RawMessage, error)
	Outcomes func(context.Context) ([]Outcome, error)
	// Serving is called once, when changes may be announced.
	Serving func()
	// Changed is told each change, in order, before anybody else. It must be quick and not call Updated.
	Changed func(time.Time, update.Snapshot)
	// BeforeSwitch is called when everybody is ready; an error calls the round off.
	BeforeSwitch func(context.Context) error

	policy atomic.Pointer[policy.Policy]

	ctx context.Context // of Serve

	mu       sync.Mutex
	rounds   update.Rounds
	changed  chan struct{} // closed at the next change
	version  int           // counts the changes that can be seen
	starting bool          // somebody is on the way to the next round
	// begins: that is a round. cancelled: it is to be none, for this reason.
	begins    bool
	cancelled *string
	stopping  bool
	switching bool // PID 1 was asked, or is about to be
	// subscriptions are the participants' by ID, and untold counts what they are yet to be told of.
	subscriptions map[string]*subscription
	untold        int
	// limbo is a kexec that was under way when this process started, and that everybody was ready for.
	limbo bool
	// orchestrator is the present round's.
	orchestrator Watched
	// expected are those who took part when another process ended, and haven't come back; until then they are waited for.
	expected      []seat
	expectedUntil time.Time
	noting        sync.Mutex
	// lookInterval and appearTimeout are the constants where 0.
	lookInterval, appearTimeout time.Duration
	perUnit                     int // connections: the constant where 0

	rounding    sync.WaitGroup
	connections places.Connections
	joined      places.Connections // a half of those that there may be: there is always room for votes
}

// phase is one that a participant is yet to be told of.
type phase struct {
	round  int
	phase  update.Phase
	reason string
}

// SetPolicy has the requests from now on decided by p. Before the first one, the built-in rule is all there is.
func (u *Updated) SetPolicy(p *policy.Policy) { u.policy.Store(p) }

func (u *Updated) currentPolicy() *policy.Policy {
	if p := u.policy.Load(); p != nil {
		return p
	}
	return &policy.Policy{}
}

// Serve answers until ctx ends. A round that is under way is called off then, unless the switch has begun: PID 1 ends this
// process on its way there.
func (u *Updated) Serve(ctx context.Context, listener *net.UnixListener) error {
	u.ctx = ctx
	u.mu.Lock()
	u.subscriptions = map[string]*subscription{}
	u.joined.Share = 2
	u.changed = make(chan struct{})
	u.mu.Unlock()
	u.takeUp(ctx)
	if u.Serving != nil {
		u.Serving()
	}
	methods := map[string]varlink.Method{
		"Join":   u.join,
		"Vote":   u.vote,
		"Start":  u.start,
		"Cancel": u.cancel,
		"Status": u.status,
		"Unload": u.unload,
	}
	if u.Check != nil {
		methods["Check"] = u.check
	}
	if u.Load != nil {
		methods["Load"] = u.load
	}
	if u.Report != nil {
		methods["Report"] = u.report
	}
	server := &varlink.Server{
		Vendor: "Holdfast", Product: "holdfast-updated", Version: u.Version, URL: "https://github.com/holdfast-project/holdfast",
		Interfaces: []varlink.Interface{{Name: iface, Description: api.Update, Methods: methods}},
		Admit:      u.admit,
		Log:        u.Log,
	}
	stop := context.AfterFunc(ctx, u.stop)
	defer stop()
	err := server.Serve(ctx, listener)
	u.rounding.Wait()
	return err
}

// stop has everybody who waits go.
func (u *Updated) stop() {
	u.do(func(r *update.Rounds, now time.Time) {
		u.stopping = true
		if r.Phase() != update.Committing || !u.switching {
			r.Fail(now, "holdfast-updated was stopped")
		}
		for _, s := range u.subscriptions {
			s.wake()
		}
	})
}

// do makes a change and tells everybody.
func (u *Updated) do(change func(r *update.Rounds, now time.Time)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	change(&u.rounds, now)
	s := u.rounds.Snapshot()
	passed := u.rounds.Passed()
	for _, p := range passed {
		u.tellAll(phase{s.Round, p, s.Reason})
		u.Log.Info("an update is "+string(p), "round", s.Round, "participants", len(s.Participants), "reason", s.Reason)
	}
	if u.Changed != nil {
		for _, p := range append(passed[:max(0, len(passed)-1):max(0, len(passed)-1)], s.Phase) {
			each := s
			each.Phase = p
			u.Changed(now, each)
		}
	}
	u.version++
	u.wake()
	if u.stopping {
		for _, s := range u.subscriptions {
			s.wake()
		}
	}
}

// wake has all look again who wait for a change; participants wait for what they are told alone. The lock is held.
func (u *Updated) wake() {
	close(u.changed)
	u.changed = make(chan struct{})
}

// Announce has those who watch the status look again: what Outcomes returns has changed.
func (u *Updated) Announce() { u.do(func(*update.Rounds, time.Time) {}) }

// view is what there is, and how to learn of the next change.
type view struct {
	update.Snapshot
	version  int
	changed  <-chan struct{}
	next     time.Time // when a deadline ends
	due      bool      // there is one
	untold   bool      // a participant has yet to be told of a phase
	stopping bool
	limbo    bool
	begins   bool
}

func (u *Updated) look() view {
	u.mu.Lock()
	defer u.mu.Unlock()
	v := view{Snapshot: u.rounds.Snapshot(), version: u.version, changed: u.changed, untold: u.untold > 0, stopping: u.stopping, limbo: u.limbo}
	v.next, v.due = u.rounds.Next()
	v.begins = u.begins
	return v
}

// shown is the phase that others see.
func (u *Updated) shown(p update.Phase) update.Phase {
	if u.limbo && p.Over() {
		return update.Committing
	}
	return p
}

// admit takes hold of the process that connected, before it can end and its PID be used again.
func (u *Updated) admit(conn *net.UnixConn) (any, func(), error) {
	process, err := u.Cgroups.FromConn(conn)
	if err != nil {
		return nil, nil, visible(err)
	}
	id, err := process.Identity()
	if err != nil {
		process.Close()
		return nil, nil, visible(err)
	}
	from := places.Of(id)
	if !u.connections.Enter(from, cmp.Or(u.perUnit, connectionsPerUnit)) {
		process.Close()
		u.Log.Warn("refused a connection", "from", from.Name, "pid", id.PID, "uid", id.UID, "reason", "too many")
		return nil, nil, notPermitted("there are too many connections of "+from.Name, policy.BuiltIn)
	}
	return process, func() {
		process.Close()
		u.connections.Leave(from)
	}, nil
}

// administrator makes sure that the caller may do on this host what its administrator may.
func (u *Updated) administrator(call *varlink.Call) error {
	yes, err := call.Peer.(*peer.Process).AdministersHost()
	if err != nil {
		return visible(err)
	}
	if !yes {
		u.refused(call, "not the host's administrator")
		return notPermitted("only the host's administrator may: root, with CAP_SYS_ADMIN, outside of containers", policy.BuiltIn)
	}
	return nil
}

// seesAll makes sure that the caller may see what is others'.
func (u *Updated) seesAll(call *varlink.Call) error {
	if id, err := call.Peer.(*peer.Process).Identity(); err == nil {
		if grant, err := u.currentPolicy().Allow(id); err == nil && grant.ListAll {
			return nil
		}
	}
	return u.administrator(call)
}

func (u *Updated) refused(call *varlink.Call, reason string) {
	id, _ := call.Peer.(*peer.Process).Identity()
	u.Log.Warn("refused a call", "method", call.Method(), "pid", id.PID, "uid", id.UID, "cgroup", id.Cgroup, "reason", reason)
}

func reply(kind string, parameters any) *varlink.Error {
	return &varlink.Error{Name: iface + "." + kind, Parameters: parameters}
}

func notPermitted(reason, rule string) *varlink.Error {
	return reply("NotPermitted", struct {
		Reason string `json:"reason"`
		Rule   string `json:"rule,omitempty"`
	}{reason, rule})
}

// visible is the varlink error for an error of the layers below.
func visible(err error) error {
	var noOwner *policy.NoOwner
	var denial *policy.Denial
	var inProgress *update.InProgressError
	var stale *update.StaleError
	switch {
	case errors.Is(err, peer.ErrGone):
		return notPermitted(err.Error(), "")
	case errors.As(err, &noOwner):
		return notPermitted(noOwner.Error(), policy.BuiltIn)
	case errors.As(err, &denial):
		return notPermitted(denial.Reason, denial.Rule)
	case errors.As(err, &inProgress):
		return reply("InProgress", map[string]string{"phase": string(inProgress.Phase)})
	case errors.As(err, &stale):
		return reply("StaleVote", map[string]int{"round": stale.Round})
	case errors.Is(err, update.ErrExtension):
		return varlink.InvalidParameter("extendUSec")
	case errors.Is(err, update.ErrPhase):
		return varlink.InvalidParameter("phase")
	}
	return err
}
