// SPDX-License-Identifier: MIT

package report

import (
	"encoding/json"
	"io"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// traceEvent is one of the Trace Event Format, which Perfetto (ui.perfetto.dev) and Chrome open.
type traceEvent struct {
	Name     string            `json:"name"`
	Type     string            `json:"ph"` // X complete, i instant, M metadata
	Time     int64             `json:"ts"` // microseconds
	Duration *int64            `json:"dur,omitempty"`
	Process  int               `json:"pid"`
	Thread   int               `json:"tid"`
	Scope    string            `json:"s,omitempty"` // t: the instant is its thread's
	Args     map[string]string `json:"args,omitempty"`
}

// Trace writes a trace: a process for each chart, and a thread for each bar's label.
func Trace(w io.Writer, r *timeline.Report) error {
	var events []traceEvent
	meta := func(kind, name string, process, thread int) {
		events = append(events, traceEvent{Name: kind, Type: "M", Process: process, Thread: thread, Args: map[string]string{"name": name}})
	}
	span := func(name string, s timeline.Span, process, thread int, note string) {
		length := s.End - s.Begin
		events = append(events, traceEvent{Name: name, Type: "X", Time: s.Begin, Duration: &length, Process: process, Thread: thread, Args: map[string]string{"note": note}})
	}
	meta("process_name", headline(r), 1, 0)
	meta("thread_name", "phases", 1, 1)
	for _, s := range r.Spans {
		// reclaim begins while others go on: the threads of a trace have no overlapping spans.
		thread := 1
		if s.Name == "reclaim" {
			thread = 2
			meta("thread_name", "reclaim", 1, 2)
		}
		span(s.Name, s, 1, thread, meaning[s.Name])
	}
	meta("process_name", "participants", 2, 0)
	for i, p := range r.Participants {
		meta("thread_name", p.Owner+" "+p.Name, 2, i+1)
		for _, a := range p.Answers {
			span(a.Name, a.Span, 2, i+1, a.State+" "+a.Reason)
		}
	}
	meta("process_name", "owners", 3, 0)
	for i, o := range r.Owners {
		meta("thread_name", ownerLabel(o), 3, i+1)
		if o.Blackout != nil {
			span("blackout", *o.Blackout, 3, i+1, tally(o.Sessions))
		}
		for _, s := range o.Sessions {
			if s.Back != nil {
				events = append(events, traceEvent{Name: s.Name + " " + s.State, Type: "i", Time: *s.Back, Process: 3, Thread: i + 1, Scope: "t"})
			}
		}
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	return encoder.Encode(struct {
		Unit   string       `json:"displayTimeUnit"`
		Events []traceEvent `json:"traceEvents"`
	}{"ms", events})
}
