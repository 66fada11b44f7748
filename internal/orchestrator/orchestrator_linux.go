// SPDX-License-Identifier: MIT

// Package orchestrator answers io.holdfast.Sessions. A request reads: who is asking (peer), may it (policy), do it
// (liveupdate), answer (varlink). It keeps nothing that can't be asked of the kernel again.
package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const (
	iface = "io.holdfast.Sessions"

	// waitMin and waitMax bound how long a call waits for a busy device: liveupdate.DefaultTimeout where it doesn't say.
	// Who doesn't want to wait gets one try.
	waitMin = 10 * time.Millisecond
	waitMax = time.Minute

	// connectionsPerUnit bounds what one unit can take of the server's 4,096 connections.
	connectionsPerUnit = 2048

	// crowded is how many connections at once leave something behind in Go's runtime.
	crowded = 128
)

// Orchestrator hands out sessions. Its fields must not be changed once it serves; SetPolicy may be called at any time.
type Orchestrator struct {
	Device  liveupdate.Device
	Cgroups *peer.Cgroups
	Custody *custody.Custody
	Version string
	Log     *slog.Logger
	// Stores, unless nil, looks into the fd stores of all units.
	Stores func(context.Context) ([]systemd.UnitStore, error)
	// StartOver, unless nil, is called when the last one of a crowd of connections has gone. Go's runtime never gives
	// back all that it took for a crowd (goroutines, tables of spans), and nothing would be lost with the process.
	StartOver func()

	// policy is what each request looks at once, so that it sees one and the same.
	policy  atomic.Pointer[policy.Policy]
	change  chan struct{}
	changed sync.Once // of change: that it is made
	rates   rates
	owners  owners

	bootTime func() int64 // custody.BootTime unless it is set: machines that are emulated share the clock of this one

	// nameMax is what the running kernel allows, once it was asked; it can't change under a running daemon.
	nameMax struct {
		sync.Mutex
		bytes int
	}

	// handing has, by kernel name, the sessions whose client may have got its descriptor while this process has
	// yet to close its own.
	handing struct {
		sync.Mutex
		closed map[string]chan struct{}
	}

	connections places.Connections
	crowd       struct {
		sync.Mutex
		now, most int
		idle      *time.Timer
	}
}

// SetPolicy has the requests from now on decided by p. Before the first one, the built-in rule is all there is.
func (o *Orchestrator) SetPolicy(p *policy.Policy) {
	o.policy.Store(p)
	select {
	case o.policyChanged() <- struct{}{}:
	default: // it is to be looked at already
	}
}

func (o *Orchestrator) currentPolicy() *policy.Policy {
	if p := o.policy.Load(); p != nil {
		return p
	}
	return &policy.Policy{}
}

// Server returns the server of the interface.
func (o *Orchestrator) Server() *varlink.Server {
	return &varlink.Server{
		Vendor: "Holdfast", Product: "holdfastd", Version: o.Version, URL: "https://github.com/holdfast-project/holdfast",
		Interfaces: []varlink.Interface{{
			Name:        iface,
			Description: api.Sessions,
			Methods: map[string]varlink.Method{
				"Describe": o.describe,
				"Acquire":  o.acquire,
				"Identify": o.identify,
				"Park":     o.park,
				"Reclaim":  o.reclaim,
				"Release":  o.release,
				"List":     o.list,
			},
		}},
		Admit:  o.admit,
		MaxFDs: 2 + custody.FilesMax, // Park's
		Log:    o.Log,
	}
}

// admit takes hold of the process that connected, before it can end and its PID be used again.
func (o *Orchestrator) admit(conn *net.UnixConn) (any, func(), error) {
	process, err := o.Cgroups.FromConn(conn)
	if err != nil {
		return nil, nil, visible("", err)
	}
	id, err := process.Identity()
	if err != nil {
		process.Close()
		return nil, nil, visible("", err)
	}
	from := places.Of(id)
	if !o.connections.Enter(from, connectionsPerUnit) {
		process.Close()
		o.Log.Warn("refused a connection", "from", from.Name, "pid", id.PID, "uid", id.UID, "reason", "too many")
		return nil, nil, notPermitted("there are too many connections of "+from.Name, policy.BuiltIn)
	}
	o.arrived()
	return process, func() {
		process.Close()
		o.connections.Leave(from)
		o.left()
	}, nil
}

// arrived counts a connection that was let in.
func (o *Orchestrator) arrived() {
	c := &o.crowd
	c.Lock()
	defer c.Unlock()
	if c.idle == nil {
		c.idle = time.AfterFunc(time.Hour, o.idle)
	}
	c.idle.Stop()
	c.now++
	c.most = max(c.most, c.now)
}

// left counts one that has gone.
func (o *Orchestrator) left() {
	c := &o.crowd
	c.Lock()
	defer c.Unlock()
	if c.now--; c.now == 0 {
		c.idle.Reset(time.Second)
	}
}

// idle gives the memory back to the host that connections have taken, when there are none.
func (o *Orchestrator) idle() {
	c := &o.crowd
	c.Lock()
	// What is parked would have to be handed back, and only PID 1 does that.
	startOver := o.StartOver != nil && c.now == 0 && c.most >= crowded && o.Custody.Empty()
	c.Unlock()
	if startOver {
		o.StartOver()
		return
	}
	debug.FreeOSMemory()
}

// session is io.holdfast.Sessions.Session.
type session struct {
	Name       string `json:"name,omitempty"`
	Owner      string `json:"owner,omitempty"`
	KernelName string `json:"kernelName"`
	Direction  string `json:"direction"`
	Parked     bool   `json:"parked"`
	Foreign    bool   `json:"foreign"`
	Claimed    *bool  `json:"claimed,omitempty"`

	ReleaseBootUSec int64 `json:"releaseBootUSec,omitempty"`

	Holders []holder `json:"holders,omitempty"`
}

// holder is io.holdfast.Sessions.Holder.
type holder struct {
	PID  int    `json:"pid"`
	Unit string `json:"unit,omitempty"`
}

func (o *Orchestrator) describe(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	if err := call.Parameters(&struct{}{}); err != nil {
		return nil, err
	}
	reply := struct {
		Version string `json:"version"`
		Keeper  string `json:"keeper"`
		NameMax int    `json:"nameMax"`
		Problem string `json:"problem,omitempty"`
	}{Version: o.Version, Keeper: o.Custody.Kind(), NameMax: name.Max}
	max, err := o.longestName(ctx)
	if err == nil {
		reply.NameMax = max
	} else if reply.Problem = problem(err); reply.Problem == "" && !errors.Is(err, liveupdate.ErrBusy) {
		reply.Problem = err.Error()
	}
	if reply.Problem == "" && o.currentPolicy().Broken() != "" {
		reply.Problem = "policyBroken"
	}
	return &varlink.Reply{Parameters: reply}, nil
}

// longestName is how long a client's portion of a name may be.
func (o *Orchestrator) longestName(ctx context.Context) (int, error) {
	o.nameMax.Lock()
	defer o.nameMax.Unlock()
	if o.nameMax.bytes == 0 {
		features, err := o.Device.Features(ctx)
		if err != nil {
			return 0, err
		}
		o.nameMax.bytes = features.NameMax - name.Overhead
	}
	return o.nameMax.bytes, nil
}

func (o *Orchestrator) acquire(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Name        string   `json:"name"`
		Fresh       *bool    `json:"fresh"`
		Replace     *bool    `json:"replace"`
		TimeoutUSec *int64   `json:"timeoutUSec"`
		Subject     *subject `json:"subject"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	if t := in.TimeoutUSec; t != nil {
		if *t < 0 {
			return nil, varlink.InvalidParameter("timeoutUSec")
		}
		limited, cancel := context.WithTimeout(ctx, max(waitMin, time.Duration(min(*t, waitMax.Microseconds()))*time.Microsecond))
		defer cancel()
		ctx = limited
	}

	who, err := o.may(call, in.Subject)
	if err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	if err := o.checkName(ctx, who, in.Name); err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	if err := o.checkRate(who); err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	kernelName := name.Kernel(who.owner, in.Name)
	made, done, err := o.create(ctx, kernelName, in.Fresh != nil && *in.Fresh, in.Replace != nil && *in.Replace)
	if err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	o.Log.Info("handed out a session", who.fields("name", in.Name, "kernelName", made.Name(), "rule", who.grant.Rule)...)
	return &varlink.Reply{
		Parameters: struct {
			Session               session `json:"session"`
			SessionFileDescriptor int     `json:"sessionFileDescriptor"`
		}{Session: session{Name: in.Name, Owner: who.owner, KernelName: made.Name(), Direction: liveupdate.Outgoing.String()}},
		FDs:  []*fd.FD{fd.New(made.Disown())},
		Done: done,
	}, nil
}

// create makes a session. done is to be called when it is closed here: a client that has closed its own descriptor may
// ask for the name again at once, by another connection, and shall not find it taken for the moment until then.
//
// Unless it is to be fresh, one of that name that came from the previous kernel must not be overlooked. Where the kernel
// has it still it is taken into custody, if there is a keeper: without one it is safer where it is. Only then, with
// replace, a parked one of this kernel is dropped.
func (o *Orchestrator) create(ctx context.Context, kernelName string, fresh, replace bool) (made *liveupdate.Session, done func(), err error) {
	h := &o.handing
	h.Lock()
	earlier := h.closed[kernelName]
	h.Unlock()
	if earlier != nil {
		select {
		case <-earlier:
		case <-ctx.Done():
		}
	}
	unlock, err := o.Custody.Lock(ctx, kernelName)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	waiting, here := o.Custody.Get(kernelName, liveupdate.Incoming)
	claimed := waiting.Claimed
	look := !fresh && !claimed && o.Custody.Keeps()
	switch {
	case !fresh && here && !claimed:
		err = errWaiting
	case replace:
		made, err = o.replace(ctx, kernelName, look)
	case look:
		var direction liveupdate.Direction
		made, direction, err = o.Device.RetrieveOrCreate(ctx, kernelName)
		if err == nil && direction == liveupdate.Incoming {
			made, err = nil, o.waiting(ctx, made)
		}
	default:
		made, err = o.Device.Create(ctx, kernelName)
	}
	if err != nil {
		return nil, nil, err
	}
	closed := make(chan struct{})
	h.Lock()
	defer h.Unlock()
	if h.closed == nil {
		h.closed = map[string]chan struct{}{}
	}
	h.closed[kernelName] = closed
	return made, func() {
		h.Lock()
		defer h.Unlock()
		if h.closed[kernelName] == closed {
			delete(h.closed, kernelName)
		}
		close(closed)
	}, nil
}

// waiting takes a session that the kernel had into custody, and is the error for whoever would have overlooked it.
func (o *Orchestrator) waiting(ctx context.Context, session *liveupdate.Session) error {
	if err := o.Custody.Adopt(ctx, session); err != nil {
		o.Log.Error("holds a session that the keeper hasn't", "kernelName", session.Name(), "reason", err)
	}
	return errWaiting
}

// replace drops the parked session of this kernel, and makes another. Nothing is dropped before it is known that none of
// the previous kernel waits.
func (o *Orchestrator) replace(ctx context.Context, kernelName string, look bool) (*liveupdate.Session, error) {
	if look {
		waits, err := o.Device.Retrieve(ctx, kernelName)
		switch {
		case err == nil:
			return nil, o.waiting(ctx, waits)
		case !errors.Is(err, liveupdate.ErrNoSuchSession) && !errors.Is(err, liveupdate.ErrAlreadyRetrieved):
			return nil, err
		}
	}
	dropped, err := o.Custody.DropOutgoing(ctx, kernelName)
	if err != nil {
		return nil, err
	}
	// The keeper closes its copy some time after it was told to.
	for pause := time.Millisecond; ; pause *= 2 {
		made, err := o.Device.Create(ctx, kernelName)
		if !dropped || pause > time.Second || !errors.Is(err, liveupdate.ErrNameTaken) {
			return made, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (o *Orchestrator) identify(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		SessionFileDescriptor int      `json:"sessionFileDescriptor"`
		Subject               *subject `json:"subject"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	who, err := o.whose(call, in.Subject)
	if err != nil {
		return nil, o.refuse(who, "", err)
	}
	taken, err := call.TakeFD(in.SessionFileDescriptor, "sessionFileDescriptor")
	if err != nil {
		return nil, err
	}
	defer call.Drop(taken)
	asked, err := liveupdate.FromFD(taken.Raw())
	if err != nil {
		return nil, visible("", err)
	}
	defer asked.Disown() // the descriptor is still taken's
	direction, err := asked.Direction()
	if err != nil {
		return nil, visible("", err)
	}
	reply := struct {
		Session session `json:"session"`
		Yours   bool    `json:"yours"`
		Memory  *memory `json:"memory,omitempty"`
	}{Session: session{KernelName: asked.Name(), Direction: direction.String()}}
	if direction == liveupdate.Incoming {
		reply.Memory = o.room(who)
	}
	digest, portion, ok := name.Parse(asked.Name())
	reply.Session.Name, reply.Session.Foreign = portion, !ok
	reply.Session.Parked, reply.Session.Claimed = o.parked(asked.Name(), direction)
	if ok && who.owner != "" && digest == name.Digest(who.owner) {
		reply.Session.Owner, reply.Yours = who.owner, true
		if direction == liveupdate.Incoming {
			// From its own fd store, which the library asks about first.
			o.Custody.Returned(asked.Name(), who.owner, false, "")
		}
	}
	return &varlink.Reply{Parameters: reply}, nil
}

// parked is what is said of a session's being in custody.
func (o *Orchestrator) parked(kernelName string, d liveupdate.Direction) (parked bool, claimed *bool) {
	p, parked := o.Custody.Get(kernelName, d)
	if parked && d == liveupdate.Incoming {
		claimed = &p.Claimed
	}
	return parked, claimed
}

// refuse logs why somebody gets no session, and returns what it gets to see.
func (o *Orchestrator) refuse(who asking, name string, err error) error {
	if limited, ok := errors.AsType[*rateLimited](err); ok && !limited.first {
		return visible(name, err)
	}
	rule := who.grant.Rule
	if denial, ok := errors.AsType[*policy.Denial](err); ok {
		rule = denial.Rule
	}
	o.Log.Warn("refused a session", who.fields("name", name, "cgroup", who.id.Cgroup, "rule", rule, "reason", err.Error())...)
	return visible(name, err)
}

// visible is the varlink error for an error of the layers below. What isn't known is not shown to the client.
func visible(n string, err error) error {
	var denial *policy.Denial
	var noOwner *policy.NoOwner
	var limited *rateLimited
	var stranger *notOwner
	var quota *custody.QuotaError
	var full *custody.FullError
	var invalid *name.InvalidError
	var busy *liveupdate.BusyError
	var kernel *liveupdate.Error
	reply := func(kind string, parameters any) error {
		return &varlink.Error{Name: iface + "." + kind, Parameters: parameters}
	}
	switch {
	case errors.Is(err, peer.ErrGone):
		return notPermitted(err.Error(), "")
	case errors.As(err, &noOwner):
		return reply("NoOwner", map[string]string{"cgroup": noOwner.Cgroup})
	case errors.As(err, &denial):
		return notPermitted(denial.Reason, denial.Rule)
	case errors.As(err, &limited):
		return reply("RateLimited", map[string]int64{"retryUSec": limited.retryUSec()})
	case errors.As(err, &invalid):
		return reply("NameInvalid", map[string]string{"name": invalid.Name, "reason": invalid.Reason})
	case errors.Is(err, liveupdate.ErrNotASession):
		return reply("NotASession", nil)
	case errors.Is(err, custody.ErrAmbiguous):
		return varlink.InvalidParameter("direction")
	case errors.Is(err, custody.ErrOtherFile):
		return varlink.InvalidParameter("files")
	case errors.Is(err, errWaiting):
		return reply("IncomingWaiting", map[string]string{"name": n})
	case errors.Is(err, custody.ErrNotOutgoing):
		return reply("NotOutgoing", map[string]string{"kernelName": n})
	case errors.As(err, &stranger):
		return reply("NotOwner", map[string]string{"kernelName": stranger.kernelName})
	case errors.As(err, &quota):
		return reply("QuotaExceeded", map[string]int{"limit": quota.Limit})
	case errors.As(err, &full):
		return reply("KeeperFull", map[string]int{"limit": full.Limit})
	case errors.Is(err, custody.ErrNoKeeper):
		return reply("KeeperFull", map[string]int{"limit": 0})
	case errors.Is(err, liveupdate.ErrNoSuchSession), errors.Is(err, custody.ErrNotHere):
		return reply("NoSuchSession", map[string]string{"name": n})
	case errors.Is(err, liveupdate.ErrNameTaken):
		return reply("NameTaken", map[string]string{"name": n})
	case errors.As(err, &busy):
		holder := struct {
			Holder string `json:"holder,omitempty"`
		}{}
		if len(busy.Holders) > 0 {
			holder.Holder = fmt.Sprintf("process %d (%s)", busy.Holders[0].PID, busy.Holders[0].Comm)
		}
		return reply("DeviceBusy", holder)
	case errors.Is(err, context.DeadlineExceeded):
		return reply("DeviceBusy", nil) // it waited for those who were before it in this process
	case problem(err) != "" && errors.As(err, &kernel):
		return reply("KernelNotReady", map[string]string{"problem": problem(err), "hint": kernel.Hint})
	case errors.As(err, &kernel):
		var errno syscall.Errno
		errors.As(err, &errno)
		return reply("KernelError", map[string]any{"operation": kernel.Op, "errno": int(errno)})
	}
	return err
}

func notPermitted(reason, rule string) *varlink.Error {
	parameters := struct {
		Reason string `json:"reason"`
		Rule   string `json:"rule,omitempty"`
	}{reason, rule}
	return &varlink.Error{Name: iface + ".NotPermitted", Parameters: parameters}
}

// problem is the word for what keeps the kernel from having sessions.
func problem(err error) string {
	switch {
	case errors.Is(err, liveupdate.ErrNoDevice):
		return "noDevice"
	case errors.Is(err, liveupdate.ErrNotEnabled):
		return "notEnabled"
	case errors.Is(err, liveupdate.ErrHandoverFailed):
		return "handoverFailed"
	}
	return ""
}
