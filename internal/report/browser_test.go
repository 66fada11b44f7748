// SPDX-License-Identifier: MIT

//go:build browser

package report

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
	"github.com/holdfast-project/holdfast/internal/timeline"
)

var (
	chromium = debian.Tool{Name: "chromium-headless-shell", Package: "chromium-headless-shell"}
	font     = debian.Tool{Name: "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", Package: "fonts-dejavu-core"}
)

// measured is what the browser made of the page.
type measured struct {
	Scroll, Inner        float64
	Text, Back, Bar      string // colours
	Headings             []string
	Tables               [][]row
	Small, Spilt, Joined []string // texts that are too small, that are wider than their cell, that run into the next one
}

type row struct {
	Label, Length, Note string
	Track, Bar          *struct{ X, Width, Height float64 }
}

const measure = `(() => {
	const box = e => { if (!e) return null; const r = e.getBoundingClientRect(); return {x: r.x, width: r.width, height: r.height} };
	const style = getComputedStyle(document.body);
	const texts = [...document.querySelectorAll('h1, h2, p, th, td, .scale span')].filter(e => e.textContent.trim() && e.getClientRects().length);
	const ticks = [...document.querySelectorAll('.scale span')].filter(e => e.getClientRects().length && getComputedStyle(e).visibility != 'hidden');
	const name = e => e.tagName + ' ' + e.textContent.trim();
	return {
		scroll: document.documentElement.scrollWidth, inner: innerWidth,
		text: style.color, back: getComputedStyle(document.documentElement).backgroundColor == 'rgba(0, 0, 0, 0)' ? style.backgroundColor : '',
		bar: getComputedStyle(document.querySelector('.bar')).fill,
		headings: [...document.querySelectorAll('h1, h2')].map(e => e.textContent),
		tables: [...document.querySelectorAll('table')].map(t => [...t.tBodies[0].rows].map(r => ({
			label: r.cells[0].textContent, length: r.querySelector('.number').textContent, note: r.cells[r.cells.length - 1].textContent,
			track: box(r.querySelector('.track')), bar: box(r.querySelector('.bar'))}))),
		small: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(name),
		spilt: texts.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline').map(name),
		joined: ticks.filter(e => { const n = e.nextElementSibling; return n && ticks.includes(n) && n.getBoundingClientRect().x < e.getBoundingClientRect().right + 2 }).map(name),
	}
})()`

// TestInABrowser shows the page in a real Chromium, on a telephone's screen and on a desk's, in the light and in the dark, and on paper.
func TestInABrowser(t *testing.T) {
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := debian.Need(t.Context(), c, chromium, font); err != nil {
		t.Fatalf("there is no browser: %v", err)
	}
	b := start(t)
	for _, document := range []string{"update", "plain"} {
		r := read(t, document+".json")
		file := filepath.Join(t.TempDir(), document+".html")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := HTML(f, r); err != nil {
			t.Fatal(err)
		}
		f.Close()
		for _, width := range []int{360, 1280} {
			schemes := map[string]string{} // backgrounds
			for _, scheme := range []string{"light", "dark"} {
				t.Run(fmt.Sprintf("%s/%d/%s", document, width, scheme), func(t *testing.T) {
					b.t = t
					b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
					b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
					b.open("file://" + file)
					var m measured
					b.evaluate(measure, &m)
					quiet(t, b.events, "file://"+file)
					readable(t, m, width)
					inPlace(t, m, r)
					schemes[scheme] = m.Back
					if dir := os.Getenv("SCREENSHOTS"); dir != "" {
						var shot struct{ Data []byte }
						b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
						os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", document, width, scheme)), shot.Data, 0o644)
					}
				})
			}
			if schemes["light"] == schemes["dark"] {
				t.Errorf("%s: light and dark have the background %s", document, schemes["light"])
			}
		}
		t.Run(document+"/paper", func(t *testing.T) {
			b.t = t
			b.call("Emulation.clearDeviceMetricsOverride", nil, nil)
			b.call("Emulation.setEmulatedMedia", map[string]any{"media": "print"}, nil)
			b.open("file://" + file)
			var exact []bool
			b.evaluate(`[...document.querySelectorAll('.bar, .track')].map(e => getComputedStyle(e).printColorAdjust == 'exact')`, &exact)
			for i, ok := range exact {
				if !ok {
					t.Errorf("shape %d may be left out by a printer that saves ink", i)
					break
				}
			}
			var printed struct{ Data string }
			b.call("Page.printToPDF", map[string]any{}, &printed)
			pdf, err := base64.StdEncoding.DecodeString(printed.Data)
			if err != nil || !strings.HasPrefix(string(pdf), "%PDF-") {
				t.Errorf("it can't be printed: %v, %.20q", err, pdf)
			}
		})
	}
}

// quiet makes sure that the browser asked for nothing but the page, and found nothing wrong with it.
func quiet(t *testing.T, events []event, page string) {
	t.Helper()
	asked := 0
	for _, e := range events {
		switch e.Method {
		case "Network.requestWillBeSent":
			var p struct{ Request struct{ URL string } }
			if err := json.Unmarshal(e.Params, &p); err != nil {
				t.Fatal(err)
			}
			if asked++; p.Request.URL != page {
				t.Errorf("it asks for %s", p.Request.URL)
			}
		case "Network.webSocketCreated", "Network.webTransportCreated", "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown":
			t.Errorf("%s: %s", e.Method, e.Params)
		}
	}
	if asked != 1 {
		t.Errorf("%d requests", asked)
	}
}

func readable(t *testing.T, m measured, width int) {
	t.Helper()
	if m.Inner != float64(width) || m.Scroll > m.Inner {
		t.Errorf("the page is %.0f wide, the window %.0f", m.Scroll, m.Inner)
	}
	for what, texts := range map[string][]string{"too small": m.Small, "wider than there is room": m.Spilt, "run into the next": m.Joined} {
		if len(texts) > 0 {
			t.Errorf("%s: %q", what, texts)
		}
	}
	colour := func(s string) string {
		var r, g, b int
		if _, err := fmt.Sscanf(s, "rgb(%d, %d, %d)", &r, &g, &b); err != nil {
			t.Fatalf("colour %q: %v", s, err)
		}
		return fmt.Sprintf("#%02x%02x%02x", r, g, b)
	}
	if c := contrast(t, colour(m.Text), colour(m.Back)); c < 7 {
		t.Errorf("text %s on %s: %.1f", m.Text, m.Back, c)
	}
	if c := contrast(t, colour(m.Bar), colour(m.Back)); c < 3 {
		t.Errorf("bars %s on %s: %.1f", m.Bar, m.Back, c)
	}
}

// inPlace compares where the bars are with the numbers of the report, which it counts out by itself.
func inPlace(t *testing.T, m measured, r *timeline.Report) {
	t.Helper()
	var charts [][]timeline.Span
	charts = append(charts, r.Spans)
	var answers, blackouts []timeline.Span
	for _, p := range r.Participants {
		for _, a := range p.Answers {
			answers = append(answers, a.Span)
		}
	}
	var last int64
	for _, s := range r.Spans {
		last = max(last, s.End)
	}
	for _, o := range r.Owners {
		if o.Blackout == nil {
			blackouts = append(blackouts, timeline.Span{End: -1})
			continue
		}
		blackouts = append(blackouts, *o.Blackout)
		last = max(last, o.Blackout.End)
	}
	for _, spans := range [][]timeline.Span{answers, blackouts} {
		if len(spans) > 0 {
			charts = append(charts, spans)
		}
	}
	if len(m.Tables) != len(charts) || len(m.Headings) != 4 {
		t.Fatalf("%d charts, not %d; %q", len(m.Tables), len(charts), m.Headings)
	}
	for i, rows := range m.Tables {
		if len(rows) != len(charts[i]) {
			t.Errorf("chart %d has %d bars, not %d", i, len(rows), len(charts[i]))
			continue
		}
		for j, row := range rows {
			s := charts[i][j]
			if row.Label == "" {
				t.Errorf("chart %d: bar %d has no label", i, j)
			}
			if s.End < 0 {
				if row.Bar != nil {
					t.Errorf("%s has no end, and a bar", row.Label)
				}
				continue
			}
			if row.Track == nil || row.Bar == nil || row.Track.Width < 80 || row.Bar.Height < 8 {
				t.Errorf("%s: track %+v, bar %+v", row.Label, row.Track, row.Bar)
				continue
			}
			unit := row.Track.Width / float64(last)
			begin, width := row.Bar.X-row.Track.X, row.Bar.Width
			// Half a pixel, and one tenth of a unit of the drawing's own, which has 1,000.
			off := 0.5 + row.Track.Width/1e4
			if math.Abs(begin-float64(s.Begin)*unit) > off {
				t.Errorf("%s begins at %.2f of %.0f pixels, not %.2f", row.Label, begin, row.Track.Width, float64(s.Begin)*unit)
			}
			// What is shorter than can be seen is drawn 2 of 1,000 wide.
			if want := max(float64(s.End-s.Begin)*unit, row.Track.Width/500); math.Abs(width-want) > off {
				t.Errorf("%s is %.2f of %.0f pixels wide, not %.2f", row.Label, width, row.Track.Width, want)
			}
			if want := seconds(s.End - s.Begin); row.Length != want {
				t.Errorf("%s says %s, not %s", row.Label, row.Length, want)
			}
		}
	}
}
