// SPDX-License-Identifier: MIT

package custody

import (
	"slices"
)

// returnsMax bounds what is remembered of sessions that are no longer here, in a reply to List that may have a MiB.
const returnsMax = 2048

// Return is a session of the previous kernel that its owner has got, or that was released.
type Return struct {
	KernelName string
	Owner      string // of who got it; "" where it was released by its kernel name
	Released   bool   // and nobody had got it
	BootUSec   int64  // when, on CLOCK_BOOTTIME
	Rule       string // of the policy that released it; "" where somebody did
}

// Returned remembers, for List, that a session of the previous kernel was returned: the first time counts. It is told only
// as long as this process lives; what has to know it for longer asks in time. rule is the policy's, where that released it.
func (c *Custody) Returned(kernelName, owner string, released bool, rule string) {
	now := BootTime()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.returns) < returnsMax && !slices.ContainsFunc(c.returns, func(r Return) bool { return r.KernelName == kernelName }) {
		c.returns = append(c.returns, Return{kernelName, owner, released, now, rule})
	}
}

// Returns are the sessions of the previous kernel that were returned, in that order.
func (c *Custody) Returns() []Return {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.returns)
}
