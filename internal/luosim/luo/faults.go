// SPDX-License-Identifier: MIT

package luo

// Every is a count that never ends.
const Every = -1

// Faults are what goes wrong in one boot. The zero value is a machine in order. Counts go down as they are met;
// [Every] doesn't.
type Faults struct {
	Busy      int  // that many opens of the device fail as if another process had it open
	EIO       bool // every open fails, as when what the old kernel left can't be read
	NoDevice  bool // the kernel has no Live Update Orchestrator
	Lost      bool // the sessions of the old kernel did not arrive
	Freezing  int  // that many reboot(KEXEC) fail
	Finishing int  // that many FINISH fail

	Preserve TokenFault // PRESERVE_FD fails for want of memory
	Retrieve TokenFault // RETRIEVE_FD fails for want of memory, for ever
}

// TokenFault is for one token, or for all.
type TokenFault struct {
	All    bool
	Tokens []uint64
}

// Add makes it meet what the other one meets too.
func (f *TokenFault) Add(other TokenFault) {
	f.All = f.All || other.All
	f.Tokens = append(f.Tokens, other.Tokens...)
}

func (f TokenFault) meets(token uint64) bool {
	for _, t := range f.Tokens {
		if t == token {
			return true
		}
	}
	return f.All
}

func (f *Faults) busy() bool { return met(&f.Busy) }

func (f *Faults) freeze() bool { return met(&f.Freezing) }

func (f *Faults) finish() bool { return met(&f.Finishing) }

func met(count *int) bool {
	switch *count {
	case 0:
		return false
	case Every:
	default:
		*count--
	}
	return true
}
