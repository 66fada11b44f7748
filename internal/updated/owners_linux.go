// SPDX-License-Identifier: MIT

package updated

import (
	"slices"
	"time"
)

// Owners are those that take part in an update, each once: whoever takes part is asked to commit what it has.
func (u *Updated) Owners() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var owners []string
	for _, p := range u.rounds.Snapshot().Participants {
		if !slices.Contains(owners, p.Owner) {
			owners = append(owners, p.Owner)
		}
	}
	return owners
}

// ReclaimWithin is how long the policy gives the owner of a session to come for it after an update; 0 where it doesn't say.
func (u *Updated) ReclaimWithin(kernelName string) time.Duration {
	return u.currentPolicy().Unclaimed(kernelName).ReclaimWithin
}
