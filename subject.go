// SPDX-License-Identifier: MIT

package holdfast

import "os"

// Subject is whom a client acts for, which the orchestrator's policy must allow it ("delegate"): see [Client.As].
type Subject struct {
	owner string
	pidfd *os.File
}

// Owner is an owner by its name, as a rule of the policy gives it to processes: qemu/vm1. None of them need exist yet.
func Owner(name string) Subject { return Subject{owner: name} }

// Process is whoever owns what belongs to the process of a pidfd. The descriptor stays the caller's, and must be open
// for as long as it is used.
func Process(pidfd *os.File) Subject { return Subject{pidfd: pidfd} }

func (s Subject) String() string {
	if s.pidfd != nil {
		return "the process of a pidfd"
	}
	return s.owner
}
