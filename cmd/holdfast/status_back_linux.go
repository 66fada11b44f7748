// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"slices"
	"strings"
)

// backMost is how many sessions are named.
const backMost = 16

// cameBack says for people what came of the sessions that the last update carried: how many are back, and by name those
// that aren't. nil if it carried none.
func (s roundStatus) cameBack() []string {
	if len(s.Outcomes) == 0 {
		return nil
	}
	n := map[string]int{}
	var open []outcome
	for _, o := range s.Outcomes {
		n[o.State]++
		// What somebody released was settled by that; what the policy did is yet to be seen by somebody.
		if o.State != "reclaimed" && (o.State != "released" || o.Reason != "") {
			open = append(open, o)
		}
	}
	var counts []string
	for _, c := range []struct{ state, text string }{{"reclaimed", "back"}, {"waiting", "waited for"}, {"overdue", "overdue"}, {"lost", "lost"}, {"released", "released"}} {
		if n[c.state] > 0 || c.state == "reclaimed" {
			counts = append(counts, fmt.Sprintf("%d %s", n[c.state], c.text))
		}
	}
	lines := []string{fmt.Sprintf("of %s: %s", count(len(s.Outcomes), "session"), strings.Join(counts, ", "))}
	if n["reclaimed"] == len(s.Outcomes) {
		lines = []string{"all of it is back: " + count(len(s.Outcomes), "session")}
	}
	// The worst first.
	order := []string{"lost", "overdue", "waiting", "released"}
	slices.SortStableFunc(open, func(a, b outcome) int { return slices.Index(order, a.State) - slices.Index(order, b.State) })
	for i, o := range open {
		if i == backMost {
			lines = append(lines, fmt.Sprintf("  and %d more; see holdfast status --json", len(open)-i))
			break
		}
		owner := o.Owner
		if owner == "" {
			owner = "an owner that isn't known"
		}
		line := fmt.Sprintf("  %s of %s is %s", o.Name, owner, o.State)
		if o.Reason != "" {
			line += ": " + o.Reason
		}
		lines = append(lines, line)
	}
	return lines
}
