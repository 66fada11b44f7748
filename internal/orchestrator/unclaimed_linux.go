// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/policy"
)

// againAfter is when unclaimed sessions are looked at again: timers don't run while the machine sleeps, CLOCK_BOOTTIME does.
const againAfter = time.Minute

// ReleaseUnclaimed releases what came over an update, is parked, and has waited for as long as the policy lets it, until ctx
// ends or nothing is unclaimed any more. The time counts from the start of the kernel, so that a restart of this process
// begins nothing anew.
func (o *Orchestrator) ReleaseUnclaimed(ctx context.Context) {
	for {
		waiting := o.Custody.Unclaimed()
		if len(waiting) == 0 {
			return // none can come
		}
		wait, released := againAfter, false
		for _, kernelName := range waiting {
			at, rule := o.releaseAt(kernelName)
			if at == 0 {
				continue
			}
			if left := time.Duration(at-o.now()) * time.Microsecond; left > 0 {
				wait = min(wait, left)
			} else {
				released = o.releaseUnclaimed(ctx, kernelName, rule) || released
			}
		}
		if released {
			continue // it may have been the last one
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-o.policyChanged():
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// releaseAt is when the policy has a session released that nobody claims, on CLOCK_BOOTTIME in microseconds, and by which
// rule; 0 is never.
func (o *Orchestrator) releaseAt(kernelName string) (bootUSec int64, rule string) {
	u := o.currentPolicy().Unclaimed(kernelName)
	return u.ReleaseAfter.Microseconds(), u.Rule
}

func (o *Orchestrator) now() int64 {
	if o.bootTime != nil {
		return o.bootTime()
	}
	return custody.BootTime()
}

func (o *Orchestrator) releaseUnclaimed(ctx context.Context, kernelName, rule string) (released bool) {
	digest, portion, _ := name.Parse(kernelName)
	released, bytes, err := o.Custody.ReleaseUnclaimed(ctx, kernelName)
	owner := o.owners.of(digest, o.currentPolicy())
	fields := []any{"owner", owner, "digest", digest, "name", portion, "kernelName", kernelName, "rule", rule}
	switch {
	case err != nil:
		o.Log.Error("could not release an unclaimed session", append(fields, "reason", err)...)
	case released:
		o.Custody.Returned(kernelName, owner, true, rule)
		if bytes > 0 {
			fields = append(fields, "bytes", bytes)
		}
		o.Log.Warn("released a session that nobody has claimed", fields...)
	}
	return released
}

// policyChanged is sent to by SetPolicy.
func (o *Orchestrator) policyChanged() chan struct{} {
	o.changed.Do(func() { o.change = make(chan struct{}, 1) })
	return o.change
}

// owners are those that this process has learned of: hints for people, by the digests in sessions' names, which prove them.
type owners struct {
	mu sync.Mutex
	by map[string]string
}

// ownersMax bounds what clients that may act for others can make it remember.
const ownersMax = 4096

func (k *owners) add(owner string) {
	if owner == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.by == nil {
		k.by = map[string]string{}
	}
	if len(k.by) < ownersMax {
		k.by[name.Digest(owner)] = owner
	}
}

// of is whose digest it is: of somebody who has asked for sessions, or whom the policy names; or "".
func (k *owners) of(digest string, p *policy.Policy) string {
	k.mu.Lock()
	owner := k.by[digest]
	k.mu.Unlock()
	if owner != "" {
		return owner
	}
	return p.OwnerOf(digest)
}

// ofSession is whose it is, by the units too that have it in their fd stores.
func (k *owners) ofSession(s *inventory.Session, digest string, p *policy.Policy) string {
	for _, unit := range s.Stores() {
		if owner := "/" + strings.TrimPrefix(unit, "/"); name.Digest(owner) == digest {
			return owner
		}
	}
	return k.of(digest, p)
}
