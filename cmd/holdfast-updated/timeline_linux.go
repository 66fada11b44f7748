// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/reconcile"
	"github.com/holdfast-project/holdfast/internal/shutdown"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/updated"
)

const (
	// openWait is how long holdfastd may take to give the timeline of the last update back, and saveWait to list what is
	// carried: an update doesn't fail for want of a report.
	openWait = 20 * time.Second
	saveWait = 5 * time.Second
)

// record has u record its updates, say what came of the last one, and hold up those that others begin. end is to be called when u serves no longer.
func record(ctx context.Context, u *updated.Updated, orchestrator string, block bool, log *slog.Logger) (end func(), err error) {
	opening, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	client, err := holdfast.Dial(opening)
	if err != nil {
		log.Warn("there will be no report of an update", "reason", err)
		client = nil
	}
	recorder, err := timeline.Open(opening, client, log)
	if recorder == nil {
		return nil, err
	}
	if err != nil {
		log.Warn("there may be no report of an update", "reason", err)
	}
	ask := func(ctx context.Context) (reconcile.Listing, error) { return reconcile.Ask(ctx, orchestrator) }
	watch := &reconcile.Watch{Ask: ask, Recorder: recorder, Within: u.ReclaimWithin, Log: log, Changed: u.Announce}
	var saving, watching sync.WaitGroup
	save := func() {
		ctx, cancel := context.WithTimeout(ctx, saveWait)
		defer cancel()
		listing, err := ask(ctx)
		if err == nil {
			recorder.Carried(listing.Carried())
			err = recorder.Carry(ctx, client)
		}
		if err != nil {
			log.Warn("the report will lack what was carried", "reason", err)
		}
	}
	saved := 0
	u.Changed = func(_ time.Time, s update.Snapshot) {
		var standings []timeline.Standing
		for _, p := range s.Participants {
			standings = append(standings, timeline.Standing{ID: p.ID, Name: p.Name, Owner: p.Owner, Required: p.Required, State: string(p.State), Reason: p.Reason, Since: p.Since})
		}
		recorder.Changed(s.Round, string(s.Phase), s.Reason, standings)
		if s.Phase == update.Committing && saved != s.Round {
			saved = s.Round
			saving.Go(save)
		}
	}
	u.BeforeSwitch = func(context.Context) error {
		saving.Wait()
		return nil
	}
	u.Report = func(context.Context) (json.RawMessage, error) {
		report, err := recorder.Report()
		if errors.Is(err, timeline.ErrNoUpdate) {
			return nil, updated.ErrNoReport
		}
		if err != nil {
			return nil, err
		}
		return json.Marshal(report)
	}
	u.Outcomes = func(context.Context) ([]updated.Outcome, error) {
		var outcomes []updated.Outcome
		for _, o := range watch.Outcomes() {
			outcomes = append(outcomes, updated.Outcome{Owner: o.Owner, Name: o.Name, State: string(o.State), Reason: o.Reason})
		}
		return outcomes, nil
	}
	watched, stop := context.WithCancel(ctx)
	hold := &shutdown.Watch{Block: block, Log: log, Prepare: func(ctx context.Context) {
		if err := u.MakeReady(ctx); err != nil {
			log.Error("not everybody is ready for the kexec", "reason", err)
		}
	}}
	u.Serving = func() {
		watching.Go(func() { watch.Run(watched) })
		watching.Go(func() { hold.Run(watched) })
	}
	return func() {
		stop()
		watching.Wait()
		saving.Wait()
		recorder.Close()
		if client != nil {
			client.Close()
		}
	}, nil
}
