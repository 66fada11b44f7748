// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/update"
)

// quiesceCommand is the ExecStop= of holdfast-quiesce.service.
func quiesceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "quiesce", Short: "Get everybody ready if PID 1 is on its way to a kexec", Hidden: true,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return quiesce(cmd.Context(), systemd.KexecUnderWay)
		},
	}
}

// Between attempts to reach a holdfast-updated that ended: systemd starts it anew after 100 ms. The last error counts, of so many in
// a row that none got anywhere in.
const quiesceRetry, quiesceTries = 200 * time.Millisecond, 50

// quiesce returns once everybody is ready, if a kexec is under way. Nothing else holds that up. While PID 1 doesn't say, it may be.
func quiesce(ctx context.Context, underWay func(context.Context) (bool, error)) error {
	for failed := 0; ; {
		is, err := underWay(ctx)
		if err == nil && !is {
			return nil
		}
		began := time.Now()
		if err == nil {
			var ready bool
			if ready, err = makeReady(ctx); ready {
				return nil
			}
			if err == nil || time.Since(began) > time.Second {
				failed = 0 // somebody was there: what was in the way, as a round or a kernel that is loaded, may be over now
			}
		}
		if err != nil && (final(err) || ctx.Err() != nil || failed == quiesceTries) {
			return err
		}
		failed++
		select {
		case <-time.After(quiesceRetry):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// final tells whether there will be no other answer. What holdfast-updated could not do, as asking PID 1, it may yet.
func final(err error) bool {
	var refused *refusedUpdate
	return errors.As(err, &refused) && refused.kind != "io.systemd.System"
}

// makeReady begins a round, or follows the one that is under way, and tells whether everybody was ready at its end.
func makeReady(ctx context.Context) (ready bool, err error) {
	conn, err := dialUpdated(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var last roundStatus
	err = follow(ctx, conn, "Start", struct{}{}, func(s roundStatus) error {
		last = s
		return nil
	})
	var refused *refusedUpdate
	if errors.As(err, &refused) && refused.kind == "InProgress" {
		// holdfast update is what switches, or logind has told of the kexec before.
		err = follow(ctx, conn, "Status", nil, func(s roundStatus) error {
			if last = s; s.Phase == update.Committing || s.Phase.Over() {
				return errSeen
			}
			return nil
		})
		if errors.Is(err, errSeen) {
			err = nil
		}
	} else if errors.As(err, &refused) && (refused.kind == "Vetoed" || refused.kind == "TimedOut") {
		err = nil // it had begun before the kexec, and was called off
	}
	return err == nil && last.Phase == update.Committing, err
}
