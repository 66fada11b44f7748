// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// subject is io.holdfast.Sessions.Subject.
type subject struct {
	PIDFileDescriptor *int    `json:"pidFileDescriptor"`
	Owner             *string `json:"owner"`
}

// asking is who asks, and in whose name.
type asking struct {
	id    peer.Identity // of the client
	grant policy.Grant  // of the client, once it was asked for
	// owner is whose sessions it is about: the client's own, or the subject's. "" is nobody's.
	owner string
	// payer is the cgroup that would be charged for the memory; "" where an owner was named instead of a process.
	payer string
}

// fields are those of a log line about it. client is there only where it isn't the owner.
func (a asking) fields(more ...any) []any {
	fields := []any{"owner", a.owner, "pid", a.id.PID, "uid", a.id.UID}
	if a.grant.Owner != "" && a.grant.Owner != a.owner {
		fields = append(fields, "client", a.grant.Owner)
	}
	return append(fields, more...)
}

// may tells who asks, and whether sessions may be had in that name.
func (o *Orchestrator) may(call *varlink.Call, subject *subject) (asking, error) {
	p := o.currentPolicy()
	id, err := call.Peer.(*peer.Process).Identity()
	who := asking{id: id}
	if err != nil {
		return who, err
	}
	who.payer = id.Cgroup
	if who.grant, err = p.Allow(id); err != nil {
		who.owner, _ = p.Owner(id)
		return who, err
	}
	who.owner = who.grant.Owner
	if subject != nil {
		err = o.actFor(call, p, &who, subject)
	}
	if err == nil {
		o.owners.add(who.owner)
	}
	return who, err
}

// whose tells who asks, who needs no permission unless it asks for somebody else.
func (o *Orchestrator) whose(call *varlink.Call, subject *subject) (asking, error) {
	if subject != nil {
		return o.may(call, subject)
	}
	id, err := call.Peer.(*peer.Process).Identity()
	who := asking{id: id, payer: id.Cgroup}
	if err == nil {
		who.owner, err = o.currentPolicy().Owner(id)
	}
	return who, err
}

// actFor has the request be about the subject. What decides is the rule of the client alone, which is trusted with the
// subject: it could name an owner as well as show its process. So the subject's own rule says only who the owner is,
// and not whether the subject might ask by itself.
func (o *Orchestrator) actFor(call *varlink.Call, p *policy.Policy, who *asking, subject *subject) error {
	deny := func(format string, args ...any) error {
		return &policy.Denial{Reason: fmt.Sprintf(format, args...), Rule: who.grant.Rule}
	}
	var owner, payer string
	switch {
	case (subject.PIDFileDescriptor == nil) == (subject.Owner == nil):
		return varlink.InvalidParameter("subject")
	case subject.Owner != nil:
		if owner = *subject.Owner; policy.CheckOwner(owner) != nil {
			return varlink.InvalidParameter("subject.owner")
		}
	default:
		pidfd, err := call.TakeFD(*subject.PIDFileDescriptor, "subject.pidFileDescriptor")
		if err != nil {
			return err
		}
		defer call.Drop(pidfd)
		id, err := o.Cgroups.OfPIDFD(pidfd)
		switch {
		case errors.Is(err, peer.ErrNotAPIDFD):
			return varlink.InvalidParameter("subject.pidFileDescriptor")
		case errors.Is(err, peer.ErrGone):
			return deny("the subject's process has ended")
		case err != nil:
			return deny("who the subject is can't be told: %v", err)
		}
		if owner, err = p.Owner(id); err != nil {
			return err
		}
		if owner == "" {
			return &policy.NoOwner{Cgroup: id.Cgroup}
		}
		payer = id.Cgroup
	}
	if !who.grant.MayActFor(owner) {
		return deny("the rule does not let %s act for %s", who.grant.Owner, owner)
	}
	who.owner, who.payer = owner, payer
	return nil
}

// memory is io.holdfast.Sessions.Memory.
type memory struct {
	Limit     int64 `json:"limit"`
	Available int64 `json:"available"`
}

// room tells what whoever retrieves the memory can be charged for. Where it can't be told the client's own look at its
// limits has to do.
func (o *Orchestrator) room(who asking) *memory {
	if who.payer == "" {
		return nil
	}
	m, err := peer.MemoryOf(who.payer)
	if err != nil {
		o.Log.Warn("the memory limits of a client can't be told", "cgroup", who.payer, "reason", err)
	}
	if m == nil {
		return nil
	}
	return &memory{m.Limit, m.Available}
}

// checkName tells whether a session may have this name: in this kernel, and by the rule.
func (o *Orchestrator) checkName(ctx context.Context, who asking, n string) error {
	err := name.Check(n, name.Max)
	if err == nil && len(n) > name.LinkMax {
		var max int
		if max, err = o.longestName(ctx); err == nil {
			err = name.Check(n, max)
		}
	}
	if err != nil {
		return err
	}
	return who.grant.CheckName(n)
}

// rateLimited says that sessions are asked for too fast.
type rateLimited struct {
	from  places.Place
	wait  time.Duration
	rate  policy.Rate
	first bool // since one was let through
}

func (r *rateLimited) Error() string {
	return fmt.Sprintf("%s asks for more than %s; there is room for one in %v", r.from.Name, r.rate, r.wait)
}

func (r *rateLimited) retryUSec() int64 { return (r.wait + time.Microsecond - 1).Microseconds() }

// checkRate counts the request, by where the client is.
func (o *Orchestrator) checkRate(who asking) error {
	from := places.Of(who.id)
	wait, first := o.rates.take(from, who.grant, time.Now())
	if wait > 0 {
		return &rateLimited{from, wait, who.grant.Rate, first}
	}
	return nil
}
