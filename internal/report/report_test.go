// SPDX-License-Identifier: MIT

package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func read(t *testing.T, file string) *timeline.Report {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var r timeline.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func TestGolden(t *testing.T) {
	for _, document := range []string{"update", "plain"} {
		r := read(t, document+".json")
		for ending, write := range map[string]func(io.Writer) error{
			".txt":        func(w io.Writer) error { return Text(w, r, Terminal{Width: 120}) },
			".narrow.txt": func(w io.Writer) error { return Text(w, r, Terminal{Width: 60, ASCII: true}) },
			".html":       func(w io.Writer) error { return HTML(w, r) },
			".trace.json": func(w io.Writer) error { return Trace(w, r) },
		} {
			t.Run(document+ending, func(t *testing.T) {
				var got bytes.Buffer
				if err := write(&got); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join("testdata", document+ending)
				if *rewrite {
					if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("not as in %s (go test ./internal/report -rewrite makes it anew, to be looked at):\n%s", file, got.String())
				}
			})
		}
	}
}

func TestTextFitsTheTerminal(t *testing.T) {
	r := read(t, "update.json")
	for width := narrowest; width < 200; width += 7 {
		var out bytes.Buffer
		if err := Text(&out, r, Terminal{Width: width}); err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(out.String(), "\n") {
			// Sentences are the terminal's to wrap.
			if strings.ContainsAny(line, "█·") && utf8.RuneCountInString(line) > width {
				t.Errorf("%d columns: line %d has %d: %s", width, i+1, utf8.RuneCountInString(line), line)
			}
		}
	}
}

func TestColourOnlyWhereItMayBe(t *testing.T) {
	r := read(t, "update.json")
	for _, colour := range []bool{false, true} {
		var out bytes.Buffer
		if err := Text(&out, r, Terminal{Width: 80, Colour: colour}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "\x1b") != colour {
			t.Errorf("colour %v:\n%q", colour, out.String())
		}
	}
	var out bytes.Buffer
	if err := Text(&out, r, Terminal{Width: 80, ASCII: true}); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(out.String(), func(c rune) bool { return c > 126 }); i >= 0 {
		t.Errorf("not ASCII: %q", out.String()[i:])
	}
}

// TestAnybodysFile shows what a report may have in it that a program made up, or that is damaged.
func TestAnybodysFile(t *testing.T) {
	bad := "\x1b[2J\u202e\n\x00x"
	span := func(begin, end int64) timeline.Span { return timeline.Span{Name: bad, Begin: begin, End: end} }
	for what, r := range map[string]*timeline.Report{
		"empty":                      {},
		"words":                      {From: timeline.Kernel{Release: bad}, Participants: []timeline.Participant{{Name: bad, Owner: bad, Answers: []timeline.Answered{{Span: span(0, 1), State: bad, Reason: bad}}}}, Owners: []timeline.Owner{{Owner: bad, Sessions: []timeline.Carriage{{KernelName: bad}}}}},
		"before the origin":          {Spans: []timeline.Span{span(0, 3e6), span(-3600e6, 5e6)}},
		"all before the origin":      {Spans: []timeline.Span{span(-2e6, -1e6)}, Owners: []timeline.Owner{{Blackout: new(span(-9, -8)), Sessions: []timeline.Carriage{{}}}}},
		"ends before it begins":      {Spans: []timeline.Span{span(5e6, 1e6)}},
		"after the last end":         {Spans: []timeline.Span{span(0, 1)}, Participants: []timeline.Participant{{Answers: []timeline.Answered{{Span: span(1e12, 2e12)}}}}},
		"as far as numbers go":       {Spans: []timeline.Span{span(math.MinInt64, math.MaxInt64), span(math.MaxInt64, math.MinInt64)}},
		"of an owner that is nobody": {Owners: []timeline.Owner{{Sessions: []timeline.Carriage{{}}}}},
	} {
		for _, terminal := range []Terminal{{}, {Width: 200, ASCII: true}} {
			var text, html bytes.Buffer
			if err := errors.Join(Text(&text, r, terminal), HTML(&html, r), Trace(io.Discard, r)); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			for _, out := range []string{text.String(), html.String()} {
				if i := strings.IndexFunc(out, func(c rune) bool { return c != '\n' && !unicode.IsGraphic(c) }); i >= 0 {
					t.Errorf("%s: %q", what, out[i:min(i+20, len(out))])
				}
			}
			if found := regexp.MustCompile(`(?:x|width)="-`).FindString(html.String()); found != "" {
				t.Errorf("%s: %s", what, html.String())
			}
		}
	}
}

// TestHTMLIsOneFile looks for all that would fetch or run something, for what isn't well-formed, and for what somebody who
// names a participant could slip in.
func TestHTMLIsOneFile(t *testing.T) {
	r := read(t, "update.json")
	r.Participants[0].Name = `<script>alert(1)</script>"onload="x`
	var out bytes.Buffer
	if err := HTML(&out, r); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, bad := range []string{"<script", "http://", "https://", "src=", "href=", "@import", "url(", ` onload="`} {
		if strings.Contains(page, bad) {
			t.Errorf("%q is in it", bad)
		}
	}
	decoder := xml.NewDecoder(strings.NewReader(page))
	var open []string
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %v: %v", open, err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			open = append(open, e.Name.Local)
			attr := func(name string) string {
				for _, a := range e.Attr {
					if a.Name.Local == name {
						return a.Value
					}
				}
				return ""
			}
			if e.Name.Local == "svg" && (attr("role") != "img" || attr("aria-label") == "") {
				t.Errorf("a drawing has no words: %v", e.Attr)
			}
			if e.Name.Local == "html" && attr("lang") == "" {
				t.Error("the page has no language")
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("left open: %v", open)
	}
	for _, want := range []string{"<title>", "prefers-color-scheme: dark", "Content-Security-Policy", "/cache.service"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q isn't in it", want)
		}
	}
}

// TestTextCanBeReadOnItsBackground computes the contrast of both colour schemes (WCAG 2.2, 1.4.3 and 1.4.11).
func TestTextCanBeReadOnItsBackground(t *testing.T) {
	schemes := regexp.MustCompile(`--text: (#\w{6}); --back: (#\w{6}); --line: #\w{6}; --track: (#\w{6}); --bar: (#\w{6})`).FindAllStringSubmatch(page, -1)
	if len(schemes) != 2 {
		t.Fatalf("%d colour schemes", len(schemes))
	}
	for _, s := range schemes {
		if c := contrast(t, s[1], s[2]); c < 7 {
			t.Errorf("text %s on %s: %.1f", s[1], s[2], c)
		}
		for _, behind := range s[2:4] {
			if c := contrast(t, s[4], behind); c < 3 {
				t.Errorf("bar %s on %s: %.1f", s[4], behind, c)
			}
		}
	}
}

// TestTraceIsWhatPerfettoTakes holds the trace to the document "Trace Event Format": JSON Object Format, complete, instant and
// metadata events. Times are microseconds there, and what Perfetto finds no field for it leaves out without a word.
func TestTraceIsWhatPerfettoTakes(t *testing.T) {
	for _, document := range []string{"update", "plain"} {
		r := read(t, document+".json")
		var out bytes.Buffer
		if err := Trace(&out, r); err != nil {
			t.Fatal(err)
		}
		type event struct {
			Name     string            `json:"name"`
			Type     string            `json:"ph"`
			Time     *int64            `json:"ts"`
			Duration *int64            `json:"dur"`
			Process  *int64            `json:"pid"`
			Thread   *int64            `json:"tid"`
			Scope    string            `json:"s"`
			Args     map[string]string `json:"args"`
		}
		var trace struct {
			Unit   string  `json:"displayTimeUnit"`
			Events []event `json:"traceEvents"`
		}
		strict := json.NewDecoder(&out)
		strict.DisallowUnknownFields()
		if err := strict.Decode(&trace); err != nil {
			t.Fatal(err)
		}
		if trace.Unit != "ms" && trace.Unit != "ns" {
			t.Errorf("unit %q", trace.Unit)
		}
		type thread [2]int64
		names, ends := map[thread]string{}, map[thread]int64{}
		spans, instants := 0, 0
		for _, e := range trace.Events {
			if e.Name == "" || e.Time == nil || *e.Time < 0 || e.Process == nil || e.Thread == nil {
				t.Errorf("%+v lacks something", e)
				continue
			}
			on := thread{*e.Process, *e.Thread}
			switch e.Type {
			case "M":
				if e.Name != "process_name" && e.Name != "thread_name" || e.Args["name"] == "" || e.Duration != nil {
					t.Errorf("%+v", e)
				}
				if e.Name == "process_name" {
					on[1] = 0
				}
				if names[on] != "" {
					t.Errorf("%s has the name %q too", e.Args["name"], names[on])
				}
				names[on] = e.Args["name"]
			case "X":
				// Spans of one thread must not overlap, unless one is inside the other.
				if e.Duration == nil || *e.Duration < 0 || *e.Time < ends[on] {
					t.Errorf("%+v, after one that ends at %d", e, ends[on])
					continue
				}
				ends[on] = *e.Time + *e.Duration
				spans++
			case "i":
				if e.Scope != "t" || e.Duration != nil {
					t.Errorf("%+v", e)
				}
				instants++
			default:
				t.Errorf("%+v is of no kind that is expected", e)
			}
			if names[on] == "" || names[thread{*e.Process, 0}] == "" {
				t.Errorf("%+v is of a thread or process without a name", e)
			}
		}
		wantSpans, wantInstants := len(r.Spans), 0
		for _, p := range r.Participants {
			wantSpans += len(p.Answers)
		}
		for _, o := range r.Owners {
			if o.Blackout != nil {
				wantSpans++
			}
			for _, s := range o.Sessions {
				if s.Back != nil {
					wantInstants++
				}
			}
		}
		if spans != wantSpans || instants != wantInstants {
			t.Errorf("%s: %d spans, not %d; %d instants, not %d", document, spans, wantSpans, instants, wantInstants)
		}
	}
}
