// SPDX-License-Identifier: MIT

// Package reconcile says after an update what came of each session that was carried.
package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/timeline"
)

// State is what came of a session.
type State string

const (
	Reclaimed State = "reclaimed" // its owner has got it
	Waiting   State = "waiting"   // its owner has still time
	Overdue   State = "overdue"   // it is there, and its owner didn't come in time
	Lost      State = "lost"      // it was carried, and isn't to be found
	Released  State = "released"  // it was given up
)

// Settled tells whether nothing more is to be waited for.
func (s State) Settled() bool { return s != Waiting }

// Outcome is one of them. It is io.holdfast.Update.Outcome, but for what isn't in its JSON.
type Outcome struct {
	Owner      string `json:"owner"` // "" where only the digest in the kernel name is known
	Name       string `json:"name"`
	KernelName string `json:"-"`
	State      State  `json:"state"`
	Reason     string `json:"reason,omitempty"`
	// ReleaseAt is when the policy has it released, on CLOCK_BOOTTIME; 0 is never.
	ReleaseAt time.Duration `json:"-"`
}

// Listing is what holdfastd answers to List with all.
type Listing struct {
	Sessions []Session `json:"sessions"`
	Returns  []Return  `json:"returns"`
}

// Session is io.holdfast.Sessions.Session, as far as it counts here.
type Session struct {
	Name            string   `json:"name"`
	Owner           string   `json:"owner"`
	KernelName      string   `json:"kernelName"`
	Direction       string   `json:"direction"`
	Parked          bool     `json:"parked"`
	Foreign         bool     `json:"foreign"`
	Claimed         *bool    `json:"claimed"`
	ReleaseBootUSec int64    `json:"releaseBootUSec"`
	Holders         []Holder `json:"holders"`
}

// Holder is io.holdfast.Sessions.Holder.
type Holder struct {
	Unit string `json:"unit"`
}

// where says who keeps it.
func (s Session) where() string {
	if s.Parked {
		return "parked with holdfastd"
	}
	var units []string
	for _, h := range s.Holders {
		units = append(units, h.Unit)
	}
	if units == nil {
		return ""
	}
	return "in the fd store of " + strings.Join(units, " and of ")
}

// Return is io.holdfast.Sessions.Return.
type Return struct {
	Name       string `json:"name"`
	Owner      string `json:"owner"`
	KernelName string `json:"kernelName"`
	Released   bool   `json:"released"`
	BootUSec   int64  `json:"bootUSec"`
	Rule       string `json:"rule"`
}

// Timeline is the same for the timeline.
func (r Return) Timeline() timeline.Session {
	state := Reclaimed
	if r.Released {
		state = Released
	}
	return timeline.Session{Owner: r.Owner, Name: r.Name, KernelName: r.KernelName, State: string(state), At: time.Duration(r.BootUSec) * time.Microsecond}
}

// Before is what the timeline says of the time before the update, and of what came back by an earlier listing, which a
// restart of holdfastd forgets.
type Before struct {
	Carried, Back []timeline.Session
	Participants  []timeline.Participant
	// Seen are the kernel names of those that were listed in this kernel, as sessions of the previous one.
	Seen map[string]bool
}

// Outcomes puts together what was carried, what came back, and what there is now. late tells whether the time for a
// session's owner is over. They are ordered by owner and name.
//
// A session that only the kernel has can't be seen by anybody: until late it waits, and then it counts as lost, with a word
// on how to find out.
func Outcomes(before Before, now Listing, late func(kernelName string) bool) []Outcome {
	all := map[string]*Outcome{} // by kernel name
	owners := map[string]string{}
	known := func(owner string) { owners[name.Digest(owner)] = owner }
	of := func(kernelName, owner, portion string) *Outcome {
		digest, parsed, _ := name.Parse(kernelName)
		if owner != "" && name.Digest(owner) == digest {
			known(owner)
		}
		o := all[kernelName]
		if o == nil {
			o = &Outcome{Name: cmp.Or(portion, parsed), KernelName: kernelName}
			all[kernelName] = o
		}
		return o
	}
	where, anew := map[string]string{}, map[string]bool{}
	for _, s := range before.Carried {
		of(s.KernelName, s.Owner, s.Name)
		where[s.KernelName] = s.Where
	}
	for _, s := range before.Back {
		of(s.KernelName, s.Owner, s.Name).State = State(s.State)
	}
	for _, r := range now.Returns {
		o := of(r.KernelName, r.Owner, r.Name)
		o.State = cmp.Or(o.State, State(r.Timeline().State))
		if r.Rule != "" {
			o.Reason = "nobody claimed it in the time that the policy gives (" + r.Rule + ")"
		}
	}
	for _, s := range now.Sessions {
		switch {
		case s.Foreign:
		case s.Direction == "incoming":
			o := of(s.KernelName, s.Owner, s.Name)
			if o.State != "" {
				break
			}
			o.ReleaseAt = time.Duration(s.ReleaseBootUSec) * time.Microsecond
			if s.Claimed != nil && *s.Claimed {
				o.State = Reclaimed
			} else if late(s.KernelName) {
				o.State, o.Reason = Overdue, cmp.Or(s.where(), "it is kept")+"; its owner hasn't asked for it"
			} else {
				o.State, o.Reason = Waiting, s.where()
			}
		case all[s.KernelName] != nil && all[s.KernelName].State == "" && before.Seen[s.KernelName]:
			// It was there, and its owner has renewed it since.
			all[s.KernelName].State = Reclaimed
		case all[s.KernelName] != nil:
			anew[s.KernelName] = true
		}
	}
	for _, p := range before.Participants {
		known(p.Owner)
	}
	unready := before.unready()
	for kernelName, o := range all {
		digest, _, _ := name.Parse(kernelName)
		o.Owner = owners[digest]
		switch {
		case o.State != "":
		case late(kernelName):
			was := ""
			if w := where[kernelName]; w != "" {
				was = " (" + w + ")"
			}
			o.State, o.Reason = Lost, fmt.Sprintf("it was committed%s, and is in no store now; if the kernel still has it, starting its owner brings it back, and holdfast release --kernel-name %s frees it", was, kernelName)
			if anew[kernelName] {
				// Its owner has not found it, or nobody was there to see that it did.
				o.Reason = fmt.Sprintf("it was committed%s, and nobody has seen it since the update; its owner has made another one of that name", was)
			}
			if p := unready[o.Owner]; p != "" {
				o.Reason = p + "; " + o.Reason
			}
		default:
			o.State, o.Reason = Waiting, "it hasn't been seen yet: maybe only the kernel has it"
		}
	}
	for _, p := range before.Participants {
		if unready[p.Owner] == "" || p.Owner == "" {
			continue
		}
		// Whatever it had was never committed, as far as anybody could see.
		had := false
		for _, o := range all {
			had = had || o.Owner == p.Owner
		}
		if !had {
			o := &Outcome{Owner: p.Owner, Name: p.Name, State: Waiting, Reason: unready[p.Owner] + ", and had nothing committed that could be seen"}
			if late("") {
				o.State = Lost
			}
			all["participant "+p.Owner] = o
		}
	}
	var outcomes []Outcome
	for _, o := range all {
		outcomes = append(outcomes, *o)
	}
	slices.SortFunc(outcomes, func(a, b Outcome) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Name, b.Name), cmp.Compare(a.KernelName, b.KernelName))
	})
	return outcomes
}

// unready says of each owner that took part how it came that it wasn't ready when the kernel was left.
func (b Before) unready() map[string]string {
	why := map[string]string{}
	for _, p := range b.Participants {
		if len(p.Answers) == 0 {
			continue
		}
		switch last := p.Answers[len(p.Answers)-1]; last.State {
		case "vetoed", "late", "gone":
			text := fmt.Sprintf("the kernel was switched without its participant %s, which %s", p.Name,
				map[string]string{"vetoed": "vetoed", "late": "was late", "gone": "was gone"}[last.State])
			if last.Reason != "" {
				text += ": " + last.Reason
			}
			why[p.Owner] = text
		}
	}
	return why
}

// Carried are the sessions of this kernel in a listing: what an update will carry, if it is held up to the kexec.
func (l Listing) Carried() []timeline.Session {
	var sessions []timeline.Session
	for _, s := range l.Sessions {
		if s.Direction == "outgoing" && !s.Foreign {
			sessions = append(sessions, timeline.Session{Owner: s.Owner, Name: s.Name, KernelName: s.KernelName, Where: s.where()})
		}
	}
	return sessions
}
