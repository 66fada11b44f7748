// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-project/holdfast"
)

const longIdentify = `Asks holdfastd what a session is that this process was started with as a file
descriptor, and whether it belongs to the unit that the process runs in.

Exit status: 0 if the session is this unit's; 1 if it is somebody else's, or if the
descriptor is no session, which standard error tells apart.

With --json it prints what io.holdfast.Sessions.Identify answers: session, with
name, owner, kernelName, direction and foreign, and yours.`

const exampleIdentify = `  holdfast identify                   # what LISTEN_FDS or holdfast acquire gave
  holdfast identify --fd 5 --json     # in a service: is descriptor 5 mine?`

// identified is what holdfast identify --json prints.
type identified struct {
	Session struct {
		Name       string `json:"name,omitempty"`
		Owner      string `json:"owner,omitempty"`
		KernelName string `json:"kernelName"`
		Direction  string `json:"direction"`
		Foreign    bool   `json:"foreign"`
	} `json:"session"`
	Yours bool `json:"yours"`
}

func identifyCommand() *cobra.Command {
	var asJSON bool
	var number uint16
	cmd := &cobra.Command{
		Use: "identify", Short: "Say what a session is, and whose", Long: longIdentify, Example: exampleIdentify,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkInherited(int(number)); err != nil {
				return explain(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			id, err := identify(ctx, int(number))
			if errors.Is(err, holdfast.ErrNotASession) {
				err = fmt.Errorf("file descriptor %d is not a live update session", number)
			}
			if err != nil {
				return err
			}
			out := identified{Yours: id.Yours}
			out.Session.Name, out.Session.Owner, out.Session.KernelName = id.Name, id.Owner, id.KernelName
			out.Session.Direction, out.Session.Foreign = id.Direction.String(), id.Foreign
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), out)
			} else {
				err = out.print(cmd.OutOrStdout())
			}
			switch {
			case err != nil:
				return err
			case id.Foreign:
				return fmt.Errorf("the session %q is not yours: it was not handed out by holdfastd, and belongs to no unit", id.KernelName)
			case !id.Yours:
				return fmt.Errorf("the session %s is not yours: it was handed out to another unit than the one this runs in", id.KernelName)
			}
			return nil
		},
	}
	cmd.Flags().Uint16Var(&number, "fd", 3, "the session's file descriptor, a `NUMBER`")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func identify(ctx context.Context, number int) (holdfast.Identity, error) {
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return holdfast.Identity{}, explain(err)
	}
	defer client.Close()
	id, err := client.Identify(ctx, os.NewFile(uintptr(number), "session"))
	return id, explain(err)
}

func (i *identified) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	owner, yours := i.Session.Owner, "no"
	if i.Yours {
		yours = "yes"
	}
	if i.Session.Foreign {
		owner = "none: not handed out by holdfastd"
	}
	fmt.Fprintf(table, "name\t%s\nowner\t%s\nkernel name\t%s\ndirection\t%s\nyours\t%s\n", cmp.Or(i.Session.Name, "none"),
		cmp.Or(owner, "another unit, which the kernel name doesn't tell"), i.Session.KernelName, i.Session.Direction, yours)
	return table.Flush()
}
