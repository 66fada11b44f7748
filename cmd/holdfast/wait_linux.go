// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const longWait = `Waits until the last update is settled: none is under way, and for every session that
came from the previous kernel it is known what became of it. holdfast status shows it.

Exit status: 0 settled, and nothing was lost; 1 something was lost or is overdue, which
standard error names, or it failed; 2 wrong usage; 4 not settled in the time that -t gives.`

func waitCommand() *cobra.Command {
	var settled bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait --settled", Short: "Wait until all is settled after an update",
		Long: longWait, Example: "  holdfast wait --settled -t 5m",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return fmt.Errorf("%q is too many", args[0])
			case !settled:
				return errors.New("what to wait for must be said: --settled")
			case timeout < 0:
				return fmt.Errorf("-t %v: it must be more than nothing", timeout)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			conn, err := dialUpdated(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			var last roundStatus
			err = follow(ctx, conn, "Status", nil, func(s roundStatus) error {
				if last = s; s.settled() {
					return errSeen
				}
				return nil
			})
			switch {
			case errors.Is(err, errSeen):
				return last.lost()
			case err != nil && ctx.Err() != nil && cmd.Context().Err() == nil:
				return &exitError{4, fmt.Errorf("not settled after %v: %s", timeout, last.unsettled())}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&settled, "settled", false, "until nothing of the last update is open any more")
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 0, "how long to wait at most (default: for ever)")
	return cmd
}

// open are the outcomes that aren't known yet.
func (s roundStatus) open() []outcome {
	return slices.DeleteFunc(slices.Clone(s.Outcomes), func(o outcome) bool { return o.State != "waiting" })
}

func (s roundStatus) settled() bool { return s.Phase.Over() && len(s.open()) == 0 }

func (s roundStatus) unsettled() string {
	if !s.Phase.Over() {
		return fmt.Sprintf("update %d is %s", s.Round, s.Phase)
	}
	return "waiting for " + names(s.open())
}

// lost is an error where something was.
func (s roundStatus) lost() error {
	bad := slices.DeleteFunc(slices.Clone(s.Outcomes), func(o outcome) bool { return o.State != "lost" && o.State != "overdue" })
	if len(bad) == 0 {
		return nil
	}
	return errors.New("not everything came back: " + names(bad))
}

func names(outcomes []outcome) string {
	var all []string
	for _, o := range outcomes {
		text := fmt.Sprintf("%s of %s is %s", o.Name, o.Owner, o.State)
		if o.Reason != "" {
			text += " (" + o.Reason + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}
