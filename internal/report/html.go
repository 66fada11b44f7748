// SPDX-License-Identifier: MIT

package report

import (
	_ "embed"
	"html/template"
	"io"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report.html").Parse(page))

// scale is the width of the chart's own coordinates.
const scale = 1000

type shape struct {
	bar
	X, Width float64
}

// HTML writes a page of its own: it fetches nothing, and runs nothing.
func HTML(w io.Writer, r *timeline.Report) error {
	last := float64(max(end(r), 1))
	type chart struct {
		group
		Shapes []shape
	}
	in := struct {
		Headline string
		Caveats  []string
		Charts   []chart
		Ticks    []string
	}{Headline: headline(r), Caveats: caveats(r)}
	for i := range 5 {
		in.Ticks = append(in.Ticks, seconds(int64(last)*int64(i)/4))
	}
	for _, g := range groups(r) {
		c := chart{group: g}
		for _, b := range g.Bars {
			s := shape{bar: b, X: float64(b.span.Begin) / last * scale}
			if !b.Open {
				// One that is too short to be seen is drawn all the same.
				s.Width = max(float64(b.span.End-b.span.Begin)/last*scale, 2)
			}
			c.Shapes = append(c.Shapes, s)
		}
		in.Charts = append(in.Charts, c)
	}
	return pageTemplate.Execute(w, in)
}
