// SPDX-License-Identifier: MIT

// Package report shows the timeline of an update: as text, as one HTML file, as a trace.
package report

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/timeline"
)

// meaning says what a span is, to those who haven't read the documentation.
var meaning = map[string]string{
	"prepare":   "participants preserve their memory, and work on",
	"quiesce":   "participants pause, and commit",
	"stop":      "services are stopped, up to the switch",
	"kexec":     "from the switch to the next kernel's start",
	"kernel":    "the next kernel, up to its first process",
	"initrd":    "systemd in the initrd",
	"userspace": "systemd, up to the start of holdfastd",
	"reclaim":   "up to the last session that came back",
}

// bar is a line of a chart.
type bar struct {
	Label string
	span  timeline.Span
	// Open: it has no end yet.
	Open bool
	Note string
}

func (b bar) Begin() int64 { return b.span.Begin }
func (b bar) End() int64   { return b.span.End }

// Length is how long it took, or "".
func (b bar) Length() string {
	if b.Open {
		return ""
	}
	return seconds(b.span.End - b.span.Begin)
}

// group is a chart.
type group struct {
	ID, Title string
	// Empty says why there are no bars.
	Empty string
	Bars  []bar
}

func seconds(usec int64) string { return fmt.Sprintf("%.3f s", float64(usec)/1e6) }

// end is where the last span does.
func end(r *timeline.Report) int64 {
	var last int64
	for _, s := range r.Spans {
		last = max(last, s.End)
	}
	for _, o := range r.Owners {
		if o.Blackout != nil {
			last = max(last, o.Blackout.End)
		}
	}
	return last
}

func groups(r *timeline.Report) []group {
	phases := group{ID: "phases", Title: "The update", Empty: "nothing was recorded"}
	for _, s := range r.Spans {
		phases.Bars = append(phases.Bars, bar{Label: s.Name, span: s, Note: meaning[s.Name]})
	}
	participants := group{ID: "participants", Title: "Participants, up to their answer", Empty: "none were asked"}
	for _, p := range r.Participants {
		for _, a := range p.Answers {
			note := a.State
			if !p.Required {
				note += ", optional"
			}
			if a.Reason != "" {
				note += ": " + a.Reason
			}
			label := cmp.Or(p.Name, p.Owner)
			if p.Name != "" && p.Owner != "" && !strings.Contains(p.Owner, p.Name) {
				label = p.Owner + " " + p.Name
			}
			participants.Bars = append(participants.Bars, bar{Label: label + " " + a.Name, span: a.Span, Note: note})
		}
	}
	owners := group{ID: "owners", Title: "Blackout of each owner", Empty: "no sessions were carried"}
	for _, o := range r.Owners {
		b := bar{Label: ownerLabel(o), Note: tally(o.Sessions)}
		if o.Blackout == nil {
			b.Open = true
		} else {
			b.span = *o.Blackout
		}
		owners.Bars = append(owners.Bars, b)
	}
	all := []group{phases, participants, owners}
	for _, g := range all {
		for i := range g.Bars {
			b := &g.Bars[i]
			// A report may be anybody's file.
			b.Label, b.Note = oneline.Of(b.Label), oneline.Of(b.Note)
			b.span.Begin = max(b.span.Begin, 0)
			b.span.End = max(b.span.End, b.span.Begin)
		}
	}
	return all
}

// ownerLabel is never empty.
func ownerLabel(o timeline.Owner) string {
	return cmp.Or(o.Owner, "unknown ("+o.Sessions[0].KernelName+")")
}

// tally counts an owner's sessions by what came of them.
func tally(sessions []timeline.Carriage) string {
	count := map[string]int{}
	for _, s := range sessions {
		count[s.State]++
	}
	var parts []string
	for _, state := range []string{"reclaimed", "released", "waiting"} {
		if n := count[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	return strings.Join(parts, ", ")
}

// headline is the update in a sentence.
func headline(r *timeline.Report) string {
	what := fmt.Sprintf("update %d", r.Round)
	if r.Round == 0 {
		what = "update without a round"
	}
	text := fmt.Sprintf("%s: %s to %s, %s, took %s", what, cmp.Or(r.From.Release, "?"), cmp.Or(r.To.Release, "?"), r.Began.Format(time.RFC3339), seconds(end(r)))
	return oneline.Of(text)
}

// caveats are what to know before the numbers are used.
func caveats(r *timeline.Report) []string {
	accuracy := fmt.Sprintf("to %.2f ms", float64(r.Clock.AccuracyUSec)/1e3)
	text := []string{"Both kernels' clocks are related by the processor's counter, " + accuracy + "."}
	if r.Clock.Source != "counter" {
		text[0] = "Both kernels' clocks are related by the wall clock, since no counter went on over the kexec: only " + accuracy + "."
	}
	if r.Dropped > 0 {
		text = append(text, fmt.Sprintf("%d events are missing: there was no room for them.", r.Dropped))
	}
	return text
}
