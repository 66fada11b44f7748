// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/report"
	"github.com/holdfast-project/holdfast/internal/timeline"
)

const longReport = `Shows the timeline of the last update: from the first participant that was asked to
the last session that was back, and for how long each owner was without its memory.
It is carried over the kexec, on a clock that goes on counting there, and is there
until the next update.

With --html or --trace it is written into a file; - is standard output. The HTML is
one file that fetches nothing. The trace opens in Perfetto, https://ui.perfetto.dev,
and in chrome://tracing.

Exit status: 0 shown; 1 if there is none to show, or it failed; 2 for wrong usage.

With --json: round, began, from, to, clock, spans, participants, owners, dropped; all
times are microseconds since began.`

// reportCommand shows what fetch gets: the report as JSON.
func reportCommand(fetch func(context.Context) (json.RawMessage, error)) *cobra.Command {
	var asJSON bool
	var html, trace, input string
	cmd := &cobra.Command{
		Use: "report", Short: "Show the timeline of the last update",
		Long: longReport, Example: "  holdfast report\n  holdfast report --html update.html\n  holdfast report --json | jq '.owners[] | {owner, blackout}'",
		Args: func(cmd *cobra.Command, args []string) error {
			forms := 0
			for _, form := range []string{"json", "html", "trace"} {
				if cmd.Flags().Changed(form) {
					forms++
				}
			}
			if forms > 1 {
				return errors.New("one of --json, --html and --trace, not several; holdfast report --json >FILE, and --input FILE later, makes the others of the same report")
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := readReport(cmd.Context(), input, fetch)
			if err != nil {
				return err
			}
			r, err := parseReport(raw)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				return printJSON(out, r)
			case html != "":
				return writeReport(out, html, func(w io.Writer) error { return report.HTML(w, r) })
			case trace != "":
				return writeReport(out, trace, func(w io.Writer) error { return report.Trace(w, r) })
			}
			return report.Text(out, r, screenOf(out))
		},
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&html, "html", "", "write one HTML `FILE`")
	cmd.Flags().StringVar(&trace, "trace", "", "write a trace for Perfetto into `FILE`")
	cmd.Flags().StringVar(&input, "input", "", "take the report from `FILE`, as --json printed it, - is standard input")
	return cmd
}

func readReport(ctx context.Context, input string, fetch func(context.Context) (json.RawMessage, error)) ([]byte, error) {
	switch input {
	case "":
		return fetch(ctx)
	case "-":
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(input)
}

func parseReport(raw []byte) (*timeline.Report, error) {
	var r timeline.Report
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("the report can't be read, as holdfast report --json prints one: %w", err)
	}
	if r.Version != 1 {
		return nil, fmt.Errorf("the report is of version %d, and this program knows version 1 only: use the holdfast that comes with holdfast-updated", r.Version)
	}
	for _, o := range r.Owners {
		if len(o.Sessions) == 0 {
			return nil, fmt.Errorf("the report can't be read: owner %q has no sessions", o.Owner)
		}
	}
	return &r, nil
}

// writeReport touches the file only once all of the report is there.
func writeReport(out io.Writer, path string, write func(io.Writer) error) error {
	var data bytes.Buffer
	if err := write(&data); err != nil {
		return err
	}
	if path == "-" {
		_, err := data.WriteTo(out)
		return err
	}
	return os.WriteFile(path, data.Bytes(), 0o644)
}

// screenOf is what out can show. Where it isn't one, lines are as long as those of a letter.
func screenOf(out io.Writer) report.Terminal {
	t := report.Terminal{Width: 100}
	for _, variable := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := os.Getenv(variable); value != "" {
			upper := strings.ToUpper(value)
			t.ASCII = !strings.Contains(upper, "UTF-8") && !strings.Contains(upper, "UTF8")
			break
		}
	}
	f, ok := out.(*os.File)
	if !ok {
		return t
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return t
	}
	conn.Control(func(raw uintptr) {
		size, err := unix.IoctlGetWinsize(int(raw), unix.TIOCGWINSZ)
		if err != nil {
			return
		}
		t.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if size.Col > 0 {
			t.Width = int(size.Col)
		}
	})
	return t
}
