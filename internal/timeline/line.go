// SPDX-License-Identifier: MIT

package timeline

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/holdfast-project/holdfast/internal/name"
)

// Event is what a line is about.
type Event string

const (
	// Boot is the first line of each kernel: BootID, Release, Clock; Last, what the counter was when the kernel before
	// gave its last sign of life; Dropped, how many of that kernel's lines had no room; and a Reason where an update has led
	// here, and what was recorded of it can't be read.
	Boot Event = "boot"
	// ClockRead has a Clock.
	ClockRead Event = "clock"
	// Round begins one: Round, Clock.
	Round Event = "round"
	// Phase begins one: Phase, and a Reason where it ends the round.
	Phase Event = "phase"
	// Answer is a participant's to a phase: Phase, Participant, Owner, Required, State, Reason.
	Answer Event = "answer"
	// Carried is a session that was committed before the kernel was left: Owner, Name, KernelName, Where.
	Carried Event = "carried"
	// Shutdown is the moment in which PID 1 began to stop the host, and Switch the one in which systemd-shutdown was about to
	// switch to the next kernel; that is known, and added, only there.
	Shutdown Event = "shutdown"
	Switch   Event = "switch"
	// Initrd, Userspace and Daemon are the moments in which PID 1 of the initrd, PID 1, and holdfastd began.
	Initrd    Event = "initrd"
	Userspace Event = "userspace"
	Daemon    Event = "daemon"
	// Back is a session of the previous kernel whose owner has got it, or that was released: Owner, Name, KernelName, State,
	// and, in the last line of several, Clock.
	Back Event = "back"
)

// Line is an event.
type Line struct {
	Event Event `json:"event"`
	// At is CLOCK_BOOTTIME, in nanoseconds.
	At          int64    `json:"at"`
	Round       int      `json:"round,omitempty"`
	Phase       string   `json:"phase,omitempty"`
	Participant string   `json:"participant,omitempty"`
	Owner       string   `json:"owner,omitempty"`
	Required    bool     `json:"required,omitempty"`
	Name        string   `json:"name,omitempty"`
	KernelName  string   `json:"kernelName,omitempty"`
	Where       string   `json:"where,omitempty"`
	State       string   `json:"state,omitempty"`
	Reason      string   `json:"reason,omitempty"`
	BootID      string   `json:"bootID,omitempty"`
	Release     string   `json:"release,omitempty"`
	Clock       *Reading `json:"clock,omitempty"`
	Last        uint64   `json:"last,omitempty,string"`
	Dropped     uint64   `json:"dropped,omitempty"`
}

// parseLines reads what there is. Lines that aren't JSON, and events that are unknown, are of no use to anybody.
func parseLines(text []byte) []Line {
	var lines []Line
	for raw := range bytes.Lines(text) {
		var l Line
		if raw[len(raw)-1] == '\n' && json.Unmarshal(raw, &l) == nil {
			lines = append(lines, l.long())
		}
	}
	return lines
}

// short leaves out what the kernel name says, of which there may be a thousand, and reasons that are essays.
func (l Line) short() Line {
	if _, portion, _ := name.Parse(l.KernelName); portion == l.Name {
		l.Name = ""
	}
	l.Reason = strings.ToValidUTF8(l.Reason[:min(len(l.Reason), reasonMax)], "")
	return l
}

func (l Line) long() Line {
	if l.Name == "" {
		_, l.Name, _ = name.Parse(l.KernelName)
	}
	return l
}

const reasonMax = 512

// kernels splits lines into those of each kernel.
func kernels(lines []Line) [][]Line {
	var boots [][]Line
	for _, l := range lines {
		switch {
		case l.Event == Boot:
			boots = append(boots, []Line{l})
		case len(boots) > 0:
			boots[len(boots)-1] = append(boots[len(boots)-1], l)
		}
	}
	return boots
}

// ofBeginning tells whether an event belongs to the report of an update for the sake of the kernel that came.
func ofBeginning(e Event) bool {
	return e == Boot || e == Initrd || e == Userspace || e == Daemon || e == Back
}

// ending are the lines about a kernel's end: its last round, or, if that was called off, only how it was left in spite of it.
// What was to be carried may still be noted then.
func ending(lines []Line) []Line {
	from, round := 0, false
	for i, l := range lines {
		switch {
		case l.Event == Round:
			from, round = i, true
		case l.Event == Phase && l.Phase == "aborted":
			from, round = i+1, false
		}
	}
	var of []Line
	for _, l := range lines[from:] {
		switch l.Event {
		case Shutdown, Switch, ClockRead:
			of = append(of, l)
		case Round, Phase, Answer, Carried:
			if round {
				of = append(of, l)
			}
		}
	}
	return of
}

// compact leaves of the lines what the last update is told with: of the kernel before this one its end, and of this one its
// beginning.
func compact(lines []Line) []Line {
	boots := kernels(lines)
	boots = boots[max(0, len(boots)-2):]
	var kept []Line
	keep := func(l Line) {
		if n := len(kept); n > 1 && l.Event == ClockRead && kept[n-1].Event == ClockRead && kept[n-2].Event == ClockRead {
			n-- // between the readings at both ends nothing happened
			kept = kept[:n]
		}
		kept = append(kept, l)
	}
	for i, boot := range boots {
		var end []Line
		if i < len(boots)-1 {
			end = ending(boot)
		}
		for _, l := range boot {
			switch {
			case i == len(boots)-1 && ofBeginning(l.Event), l.Event == Boot, l.Event == ClockRead && (len(end) == 0 || l.At < end[0].At):
				keep(l)
			}
		}
		for _, l := range end {
			keep(l)
		}
	}
	return kept
}
