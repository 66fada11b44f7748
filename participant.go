// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"log/slog"
)

// UpdateAddress is the unix socket on which holdfast-updated listens, which carries out updates.
const UpdateAddress = "/run/holdfast/io.holdfast.Update"

// ParticipantConfig says how a program takes part in updates. All functions but Prepare may be nil. They are called one at
// a time, each on a goroutine of the Participant's.
type ParticipantConfig struct {
	// Name is what operators see, and name in holdfast update --without: 1 to 43 bytes, [A-Za-z0-9][A-Za-z0-9_.@-]*.
	Name string
	// Required asks to be one without which there is no update; the policy's rule must allow it. Optional asks not to be
	// one though the rule says so. With neither, the rule decides.
	Required, Optional bool

	// Prepare preserves what it can while the program goes on working: pinning memory is the slow part of an update. The
	// round has until [Round.Deadline]; [Round.Extend] gets more time. An error is a veto, and its text is shown to the
	// operator. ctx ends when the update is called off, or the Participant closed.
	Prepare func(ctx context.Context, r *Round) error
	// Quiesce pauses the program, saves the rest, and commits: after it, nothing that must survive may change. It comes
	// after Prepare, in the same round. An error is a veto.
	Quiesce func(ctx context.Context, r *Round) error
	// Abort is called when the update was called off, after Prepare and Quiesce have returned, and the round's sessions
	// were given up: their files can be resized again. The program goes on when it returns. It is called once for each
	// round in which Prepare was.
	Abort func(reason string)
	// Resumed is called when the round is over for everybody, after Abort; not once the Participant is closed.
	Resumed func()

	// Log, unless nil, is told of connections that broke, and of votes that did not count.
	Log *slog.Logger
}
