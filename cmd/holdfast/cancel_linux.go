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

	"github.com/holdfast-project/holdfast/internal/update"
)

const longCancel = `Calls off the update that is under way, and returns when every participant has said that
it runs on and the loaded kernel is dropped. Once the switch has begun it is too late.

Exit status: 0 if no update is under way any more, and if none was; 1 if it is too
late, or failed, or the kernel could not be dropped, or somebody has not said that it runs on.`

// resumeTimeout is more than holdfast-updated waits for participants.
const resumeTimeout = update.ResumeTimeout + 15*time.Second

// errSeen ends the following of something that has come so far.
var errSeen = errors.New("seen")

func cancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "cancel", Short: "Call off the update that is under way",
		Long: longCancel, Example: "  holdfast cancel --reason 'the backup is still running'",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), resumeTimeout)
			defer cancel()
			conn, err := dialUpdated(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			// Whatever the status is, and even if it can't be had, what is under way is called off.
			var before roundStatus
			statusErr := callUpdated(ctx, conn, "Status", nil, nil, &before)
			if statusErr == nil && before.Phase.Over() {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "no update is under way")
				return err
			}
			if statusErr != nil { // a reply that is too long is the end of its connection
				conn.Close()
				if conn, err = dialUpdated(ctx); err != nil {
					return err
				}
				defer conn.Close()
			}
			in := struct {
				Reason string `json:"reason,omitempty"`
			}{reason}
			if err := callUpdated(ctx, conn, "Cancel", in, nil, nil); err != nil {
				var refused *refusedUpdate
				if errors.As(err, &refused) && refused.kind == "InProgress" {
					return fmt.Errorf("it is too late: the update is %s", refused.Phase)
				}
				return err
			}
			if statusErr != nil {
				return fmt.Errorf("called off, but whether everything runs on can't be told: %w", statusErr)
			}
			var first, last roundStatus
			err = follow(ctx, conn, "Status", nil, func(s roundStatus) error {
				if first.Round == 0 {
					first = s
				}
				if last = s; s.Phase.Over() || s.Round != before.Round {
					return errSeen
				}
				return nil
			})
			if !errors.Is(err, errSeen) {
				return err
			}
			if strings.Contains(last.Reason, kernelStays) {
				return errors.New("the update is off: " + last.Reason)
			}
			if late := last.lateSince(first); len(late) > 0 && last.Round == before.Round {
				return errors.New("the update is off, but not everybody has said that it runs on: " + texts(late))
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "the update is off, and everything runs on")
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the participants and the log")
	return cmd
}

// lateSince are those who are late, and weren't then.
func (s roundStatus) lateSince(then roundStatus) []participant {
	return slices.DeleteFunc(slices.Clone(s.Participants), func(p participant) bool {
		return p.State != update.Late || slices.ContainsFunc(then.Participants, func(f participant) bool {
			return f.Name == p.Name && f.Owner == p.Owner && f.State == update.Late
		})
	})
}
