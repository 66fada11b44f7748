// SPDX-License-Identifier: MIT

package holdfast

import "github.com/holdfast-project/holdfast/liveupdate"

// Address is the unix socket on which the orchestrator listens.
const Address = "/run/holdfast/io.holdfast"

// Description is what works on this host, and what is in the way.
type Description struct {
	Version string `json:"version"` // of the orchestrator
	Keeper  string `json:"keeper"`  // what it keeps parked sessions with; "none" where it keeps none
	NameMax int    `json:"nameMax"` // the longest name that may be asked for, in bytes
	Problem string `json:"problem"` // empty where sessions can be had; else noDevice, notEnabled, handoverFailed, or an error's text
}

// memoryReply is io.holdfast.Sessions.Memory.
type memoryReply struct {
	Limit     int64 `json:"limit"`
	Available int64 `json:"available"`
}

// Identity is what a session is.
type Identity struct {
	Name       string // the client's own portion of the name; empty for a foreign session
	Owner      string // empty where only the digest in the kernel name is known: the session is somebody else's
	KernelName string // the whole name, as the kernel has it
	Direction  liveupdate.Direction
	Foreign    bool // made by somebody else than the orchestrator
	Yours      bool // belongs to the caller's unit

	memory *memoryReply
}
