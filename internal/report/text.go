// SPDX-License-Identifier: MIT

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// Terminal is what text is made for.
type Terminal struct {
	Width  int  // columns
	Colour bool // escape sequences may be used
	ASCII  bool // nothing else may
}

const (
	narrowest = 60
	labelMax  = 32
	barMin    = 10
)

// Text writes a bar chart.
func Text(w io.Writer, r *timeline.Report, t Terminal) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, headline(r))
	for _, caveat := range caveats(r) {
		fmt.Fprintln(out, caveat)
	}
	last := end(r)
	for _, g := range groups(r) {
		fmt.Fprintf(out, "\n%s\n", t.bold(g.Title))
		if len(g.Bars) == 0 {
			fmt.Fprintf(out, "  %s\n", g.Empty)
			continue
		}
		label, note := 0, 0
		for _, b := range g.Bars {
			label, note = max(label, utf8.RuneCountInString(b.Label)), max(note, utf8.RuneCountInString(b.Note))
		}
		label = min(label, labelMax)
		// indent, label, length and note, each with two columns in between
		const length = len("9999.999 s")
		width := max(t.Width, narrowest) - 2 - label - 2 - 2 - length
		noted := width-2-note >= barMin*2
		if noted {
			width -= 2 + note
		}
		for _, b := range g.Bars {
			line := fmt.Sprintf("  %-*s  %s  %*s", label, t.cut(b.Label, label), t.bar(b, last, max(width, barMin)), length, b.Length())
			if noted {
				line += "  " + b.Note
			}
			fmt.Fprintln(out, strings.TrimRight(line, " "))
			if !noted && b.Note != "" && g.ID != "phases" {
				fmt.Fprintf(out, "      %s\n", b.Note)
			}
		}
	}
	return out.Flush()
}

func (t Terminal) bar(b bar, last int64, width int) string {
	if b.Open {
		return fmt.Sprintf("%-*s", width, "not back yet")
	}
	at := func(usec int64) int { return int(float64(usec) / float64(max(last, 1)) * float64(width)) }
	from := max(min(at(b.span.Begin), width-1), 0)
	to := min(max(at(b.span.End), from+1), width)
	full, empty := "█", "·"
	if t.ASCII {
		full, empty = "#", "."
	}
	filled := strings.Repeat(full, to-from)
	if t.Colour {
		filled = "\x1b[36m" + filled + "\x1b[0m"
	}
	return strings.Repeat(empty, from) + filled + strings.Repeat(empty, width-to)
}

func (t Terminal) bold(s string) string {
	if t.Colour {
		return "\x1b[1m" + s + "\x1b[0m"
	}
	return s
}

// cut leaves the end, where names differ.
func (t Terminal) cut(s string, width int) string {
	runes := []rune(s)
	if len(runes) <= width {
		return s
	}
	if t.ASCII {
		return "<" + string(runes[len(runes)-width+1:])
	}
	return "…" + string(runes[len(runes)-width+1:])
}
