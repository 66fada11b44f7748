// SPDX-License-Identifier: MIT

package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// DefaultDeadline is how long owners have, from when holdfast-updated has begun in this kernel.
const DefaultDeadline = 5 * time.Minute

// askEvery is how often holdfastd is asked, which has PID 1 asked for all stores; askRarely when nobody's time runs any more.
// holdfastd stamps the times, so that this decides nothing but how soon it is known.
const (
	askEvery  = time.Second
	askRarely = 5 * time.Second
)

// Ask asks the holdfastd at address.
func Ask(ctx context.Context, address string) (Listing, error) {
	var l Listing
	client, err := varlink.Dial(ctx, address)
	if err != nil {
		return l, err
	}
	defer client.Close()
	_, err = client.Call(ctx, "io.holdfast.Sessions.List", map[string]bool{"all": true}, nil, &l)
	return l, err
}

// Watch follows what comes back after an update. Its fields must not be changed once it runs.
type Watch struct {
	// Ask is [Ask] at an address.
	Ask      func(context.Context) (Listing, error)
	Recorder *timeline.Recorder
	// Within is how long the owner of a session has; DefaultDeadline where that is 0, or there is no such function.
	Within func(kernelName string) time.Duration
	Log    *slog.Logger
	// Changed, unless nil, is called when the outcomes have.
	Changed func()

	mu       sync.Mutex
	looked   bool
	outcomes []Outcome
}

// Outcomes are those of the last look. What the policy is about to release is said as of now.
func (w *Watch) Outcomes() []Outcome {
	w.mu.Lock()
	outcomes, looked := slices.Clone(w.outcomes), w.looked
	w.mu.Unlock()
	if !looked && w.Recorder.Crossed() {
		// Nothing is settled before holdfastd has said what there is.
		never := func(string) bool { return false }
		outcomes = append(Outcomes(Before{Carried: w.Recorder.CarriedOver(), Back: w.Recorder.CameBack()}, Listing{}, never),
			Outcome{Owner: "/holdfastd.service", Name: "list", State: Waiting, Reason: "it has yet to say what came back"})
	}
	now := timeline.Now()
	for i := range outcomes {
		o := &outcomes[i]
		if o.ReleaseAt > 0 && (o.State == Waiting || o.State == Overdue) {
			if o.Reason != "" {
				o.Reason += "; "
			}
			o.Reason += "the policy has it released in " + In(o.ReleaseAt-now)
		}
	}
	return outcomes
}

// In is a time to come, as people say it: by days and hours, hours and minutes, or less.
func In(d time.Duration) string {
	d = max(d, 0)
	days := d / (24 * time.Hour)
	switch text, _ := strings.CutSuffix((d % (24 * time.Hour)).Truncate(time.Minute).String(), "0s"); {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, d%(24*time.Hour)/time.Hour)
	case d >= time.Minute:
		return text
	}
	return d.Truncate(time.Second).String()
}

// late tells whether the owner's time is over.
func (w *Watch) late(kernelName string) bool {
	var within time.Duration
	if w.Within != nil {
		within = w.Within(kernelName)
	}
	return timeline.Now() > w.Recorder.Began()+cmp.Or(within, DefaultDeadline)
}

// Run looks until all is settled, and after that as long as something may still come in spite of its deadline.
func (w *Watch) Run(ctx context.Context) {
	carried := w.Recorder.CarriedOver()
	before := Before{Carried: carried, Seen: map[string]bool{}}
	if !w.Recorder.Crossed() {
		return
	}
	unnoted := false
	if report, err := w.Recorder.Report(); err == nil {
		before.Participants = report.Participants
		unnoted = report.Round == 0
	}
	pause := askEvery
	var told error
	for {
		l, err := w.Ask(ctx)
		if err == nil {
			l.Sessions = slices.DeleteFunc(l.Sessions, func(s Session) bool { return w.Recorder.Own(s.KernelName) })
			l.Returns = slices.DeleteFunc(l.Returns, func(r Return) bool { return w.Recorder.Own(r.KernelName) })
			var back []timeline.Session
			for _, r := range l.Returns {
				back = append(back, r.Timeline())
			}
			w.Recorder.Back(back)
			before.Back = w.Recorder.CameBack()
			outcomes := Outcomes(before, l, w.late)
			var now []timeline.Session
			for _, o := range outcomes {
				// How it is known may be gone by the next look.
				if o.State == Reclaimed && o.KernelName != "" {
					now = append(now, timeline.Session{Owner: o.Owner, Name: o.Name, KernelName: o.KernelName, State: string(Reclaimed), At: timeline.Now()})
				}
			}
			w.Recorder.Back(now)
			for _, s := range l.Sessions {
				if s.Direction == "incoming" {
					before.Seen[s.KernelName] = true
				}
			}
			if unnoted && !w.late("") {
				outcomes = append(outcomes, Outcome{Owner: "/holdfastd.service", Name: "list", State: Waiting,
					Reason: "the kernel was left without an update's round, so nobody has noted what it carried: what comes back is seen until its time is over"})
			}
			// What processes held up to the kexec nobody has listed before: it is seen when it comes back.
			unlisted := len(carried) == 0 && !w.late("")
			if w.look(outcomes) && !unlisted {
				return
			}
			if pause = askEvery; !unlisted && !slices.ContainsFunc(outcomes, func(o Outcome) bool { return !o.State.Settled() }) {
				pause = askRarely
			}
		} else if told == nil && ctx.Err() == nil {
			w.Log.Warn("could not ask holdfastd what came back", "reason", err)
		}
		told = err
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// look takes new outcomes, and tells whether none of them will change.
func (w *Watch) look(outcomes []Outcome) (final bool) {
	w.mu.Lock()
	changed := !w.looked || !slices.Equal(w.outcomes, outcomes)
	w.outcomes, w.looked = outcomes, true
	w.mu.Unlock()
	if changed && w.Changed != nil {
		w.Changed()
	}
	return !slices.ContainsFunc(outcomes, func(o Outcome) bool { return o.State != Reclaimed && o.State != Released })
}
