// SPDX-License-Identifier: MIT

package holdfast

import "github.com/holdfast-project/holdfast/liveupdate"

// ReleaseOption says more of what [Client.Release] gives up.
type ReleaseOption func(*liveupdate.Direction)

// OnlyDirection gives up the session of that direction, and no other.
func OnlyDirection(d liveupdate.Direction) ReleaseOption {
	return func(only *liveupdate.Direction) { *only = d }
}

// ParkedSession is one that the orchestrator keeps for the caller.
type ParkedSession struct {
	Name       string
	KernelName string
	Direction  liveupdate.Direction
	Claimed    bool // of the previous kernel: its owner has got it since the update
}
