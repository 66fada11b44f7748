// SPDX-License-Identifier: MIT

package timeline

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
)

// machine makes readings as a machine's clocks would give them, with a counter of 2.5 GHz.
type machine struct {
	bootedAt float64 // seconds on the outside clock
	hz       float64 // of the counter
	skew     float64 // the kernel's clocks go that much faster than they should
	offset   uint64  // the counter at second 0
}

func (m machine) at(outside float64) int64 {
	return int64((outside - m.bootedAt) * 1e9 * (1 + m.skew))
}

func (m machine) read(outside float64) *Reading {
	return &Reading{Counter: m.counter(outside), Width: 500, BootTime: m.at(outside), Raw: m.at(outside), RealTime: int64(1.7e18) + int64(outside*1e9)}
}

func (m machine) counter(outside float64) uint64 { return m.offset + uint64(outside*m.hz) }

const cache = "/cache.service"

func update(before, after machine) []Line {
	clock := func(m machine, t float64) Line { return Line{Event: ClockRead, At: m.at(t), Clock: m.read(t)} }
	return []Line{
		{Event: Boot, At: before.at(100), Clock: before.read(100), Release: "7.2.13", BootID: "a"},
		{Event: Round, At: before.at(200), Round: 3, Clock: before.read(200)},
		{Event: Phase, At: before.at(200), Phase: "preparing"},
		{Event: Answer, At: before.at(201), Phase: "preparing", Participant: "cache", Owner: cache, Required: true, State: "ready"},
		{Event: Phase, At: before.at(202), Phase: "quiescing"},
		{Event: Answer, At: before.at(202.5), Phase: "quiescing", Participant: "cache", Owner: cache, Required: true, State: "ready"},
		{Event: Phase, At: before.at(203), Phase: "committing"},
		{Event: Carried, At: before.at(203), KernelName: name.Kernel(cache, "ram"), Name: "ram"},
		{Event: Carried, At: before.at(203), KernelName: name.Kernel("/other.service", "x"), Name: "x"},
		clock(before, 203),
		{Event: Shutdown, At: before.at(204)},
		{Event: Boot, At: after.at(213), Clock: after.read(213), Last: before.counter(206), Release: "7.3.4", BootID: "b"},
		{Event: Userspace, At: after.at(209)},
		{Event: Daemon, At: after.at(211)},
		clock(after, 214),
		{Event: Back, At: after.at(212), Owner: cache, Name: "ram", KernelName: name.Kernel(cache, "ram"), State: "reclaimed"},
	}
}

func TestOneLineOfTime(t *testing.T) {
	const hz = 2.5e9
	for what, c := range map[string]struct {
		before, after machine
		source        string
		within        float64 // seconds
	}{
		"the same rate": {machine{0, hz, 0, 12345}, machine{207, hz, 0, 12345}, "counter", 1e-5},
		// A kernel that has measured its counter wrongly stretches its own time.
		"1 % apart": {machine{0, hz, 0, 0}, machine{207, hz, 0.01, 0}, "counter", 0.08},
		// The wall clock of these machines is right.
		"no counter":       {machine{0, 0, 0, 0}, machine{207, 0, 0, 0}, "wall", 1e-5},
		"set back":         {machine{0, hz, 0, 1 << 60}, machine{207, hz, 0, 0}, "wall", 1e-5},
		"begun at 0 again": {machine{0, hz, 0, 0}, machine{207, hz, 0, func() uint64 { back := 207 * hz; return -uint64(back) }()}, "wall", 1e-5},
		"another rate":     {machine{0, hz, 0, 0}, machine{207, hz * 1.5, 0, 0}, "wall", 1e-5},
	} {
		r, err := Resolve(update(c.before, c.after))
		if err != nil {
			t.Fatal(what, err)
		}
		if r.Clock.Source != c.source {
			t.Errorf("%s: clock %+v", what, r.Clock)
		}
		want := map[string][2]float64{"prepare": {200, 202}, "quiesce": {202, 203}, "stop": {204, 206}, "kexec": {206, 207}, "kernel": {207, 209}, "userspace": {209, 211}, "reclaim": {211, 212}}
		if c.source == "wall" {
			delete(want, "kexec")
			want["stop"] = [2]float64{204, 207}
		}
		for _, s := range r.Spans {
			w, ok := want[s.Name]
			if begin, end := float64(s.Begin)/1e6+200, float64(s.End)/1e6+200; !ok || math.Abs(begin-w[0]) > c.within || math.Abs(end-w[1]) > c.within {
				t.Errorf("%s: %s from %f to %f, not %v", what, s.Name, begin, end, w)
			}
			delete(want, s.Name)
		}
		if len(want) > 0 {
			t.Errorf("%s: not there: %v", what, want)
		}
		if began := time.Unix(0, int64(1.7e18)+200e9); r.Began.Sub(began).Abs() > time.Millisecond {
			t.Errorf("%s: began %v, not %v", what, r.Began, began)
		}
		for of, k := range map[float64]Kernel{0: r.From, 207: r.To} {
			if got := float64(k.Start)/1e6 + 200; math.Abs(got-of) > c.within {
				t.Errorf("%s: %s started at %f, not %f", what, k.Release, got, of)
			}
		}
		if r.Round != 3 || r.From.Release != "7.2.13" || r.To.Release != "7.3.4" {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

func TestWhatCameBackAndWhatDidNot(t *testing.T) {
	r, err := Resolve(update(machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9}))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Participants) != 1 || len(r.Participants[0].Answers) != 2 || r.Participants[0].Answers[0].End != 1e6 {
		t.Errorf("%+v", r.Participants)
	}
	if len(r.Owners) != 2 {
		t.Fatalf("%+v", r.Owners)
	}
	// Nobody in the new kernel has said whose that is.
	if o := r.Owners[0]; o.Owner != "" || o.Blackout != nil || o.Sessions[0].State != "waiting" || o.Sessions[0].Name != "x" {
		t.Errorf("%+v", o)
	}
	if o := r.Owners[1]; o.Owner != cache || o.Blackout == nil || o.Blackout.Begin != 2.5e6 || o.Blackout.End != 12e6 || o.Sessions[0].State != "reclaimed" {
		t.Errorf("%+v", o)
	}
}

// TestTheSwitchCountsMoreThanASignOfLife is for a systemd that says when it switched.
func TestTheSwitchCountsMoreThanASignOfLife(t *testing.T) {
	before, after := machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9}
	lines := update(before, after)
	lines = slices.Insert(lines, 11, Line{Event: Switch, At: before.at(206.5)})
	r, err := Resolve(lines)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Spans {
		if s.Name == "stop" && s.End != 6.5e6 || s.Name == "kexec" && (s.Begin != 6.5e6 || s.End != 7e6) {
			t.Errorf("%+v", s)
		}
	}
}

// TestHeldUpByTheQuiesceUnit is a kexec.target whose first job to stop something gets everybody ready.
func TestHeldUpByTheQuiesceUnit(t *testing.T) {
	before, after := machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9}
	lines := update(before, after)
	lines[10].At = before.at(199)
	r, err := Resolve(lines)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Spans {
		if s.Begin < 0 || s.Name == "stop" && s.Begin != 3e6 {
			t.Errorf("%+v", s)
		}
	}
}

func TestNoUpdate(t *testing.T) {
	lines := update(machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9})
	for _, n := range []int{0, 1, 11} {
		if _, err := Resolve(lines[:n]); !errors.Is(err, ErrNoUpdate) {
			t.Errorf("%d lines: %v", n, err)
		}
	}
}

// TestLeftWithoutARound is a kexec after a round that was aborted, or with none at all.
func TestLeftWithoutARound(t *testing.T) {
	lines := update(machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9})
	lines[6].Phase = "aborted"
	for what, lines := range map[string][]Line{"aborted": lines, "none": append(lines[:1:1], lines[9:]...)} {
		r, err := Resolve(lines)
		if err != nil {
			t.Fatal(what, err)
		}
		if r.Round != 0 || len(r.Participants) != 0 || r.Spans[0].Name != "stop" || r.Spans[0].Begin != 0 {
			t.Errorf("%s: %+v", what, r)
		}
		if len(r.Owners) != 1 || r.Owners[0].Blackout == nil || r.Owners[0].Blackout.Begin != 0 {
			t.Errorf("%s: %+v", what, r.Owners)
		}
	}
}

func TestTheLastUpdateIsKept(t *testing.T) {
	one := update(machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9})
	want, err := Resolve(one)
	if err != nil {
		t.Fatal(err)
	}
	// A round of the new kernel's, which is aborted, and another one.
	after := machine{bootedAt: 207, hz: 1e9}
	lines := one
	for n := range 3 {
		lines = compact(lines)
		lines = append(lines,
			Line{Event: Round, At: after.at(300 + float64(n)), Round: 4 + n, Clock: after.read(300 + float64(n))},
			Line{Event: Phase, At: after.at(300 + float64(n)), Phase: "preparing"},
			Line{Event: Answer, Phase: "preparing", Participant: "cache", Owner: cache, State: "vetoed"},
			Line{Event: Phase, Phase: "aborted"})
		if len(lines) > len(one)+4 {
			t.Fatalf("%d lines become %d", len(one), len(lines))
		}
		got, err := Resolve(lines)
		if err != nil {
			t.Fatal(err)
		}
		if got.Round != 3 || len(got.Spans) != len(want.Spans) || len(got.Owners) != 2 || len(got.Participants) != 1 {
			t.Errorf("%+v", got)
		}
		for i := range got.Spans {
			if d := got.Spans[i].Begin - want.Spans[i].Begin; d > 10 || d < -10 {
				t.Errorf("%+v, not %+v", got.Spans[i], want.Spans[i])
			}
		}
	}
}

// seconds is when a span was, on the outside clock of update, whose round begins at 200.
func seconds(t *testing.T, r *Report, name string) (begin, end float64) {
	t.Helper()
	for _, s := range r.Spans {
		if s.Name == name {
			return float64(s.Begin)/1e6 + 200, float64(s.End)/1e6 + 200
		}
	}
	t.Errorf("there is no %s: %+v", name, r.Spans)
	return 0, 0
}

// TestNTPBendsTheClock has a kernel's clock go faster than its counter after 20 s, as after a boot where the RTC was behind.
func TestNTPBendsTheClock(t *testing.T) {
	const hz, slew = 2.5e9, 0.083
	before, after := machine{hz: hz}, machine{bootedAt: 207, hz: hz}
	read := func(outside float64) *Reading {
		r := after.read(outside)
		r.BootTime += int64(max(0, outside-227) * slew * 1e9)
		return r
	}
	lines := update(before, after)
	for n, back := range []float64{225, 230, 260, 400} {
		// holdfastd has stamped it half a second before it is written down.
		lines = append(lines, Line{Event: Back, At: read(back).BootTime, Owner: cache, KernelName: name.Kernel(cache, "ram"), State: "reclaimed", Clock: read(back + 0.5)})
		r, err := Resolve(lines)
		if err != nil {
			t.Fatal(err)
		}
		_, end := seconds(t, r, "reclaim")
		off := math.Abs(end - back)
		if off > slew || int64(off*1e6) > r.Clock.AccuracyUSec+1 {
			t.Errorf("%d: it came back at %.3f, not at %.3f; to %d µs", n, end, back, r.Clock.AccuracyUSec)
		}
		if begin, _ := seconds(t, r, "kernel"); math.Abs(begin-207) > 1e-4 {
			t.Errorf("%d: the kernel began at %.6f", n, begin)
		}
	}
	// The same in the kernel that is left, which is bent since 190.
	bend := func(outside float64) int64 { return before.at(outside) + int64(max(0, outside-190)*slew*1e9) }
	lines = update(before, after)
	for i, l := range lines[:11] {
		outside := float64(l.At) / 1e9
		lines[i].At = bend(outside)
		if l.Clock != nil {
			l.Clock.BootTime = bend(outside)
		}
	}
	lines = slices.Insert(lines, 11, Line{Event: Switch, At: bend(206.5)})
	r, err := Resolve(lines)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]float64{"prepare": {200, 202}, "stop": {204, 206.5}, "kexec": {206.5, 207}, "userspace": {209, 211}} {
		if begin, end := seconds(t, r, name); math.Abs(begin-want[0]) > 1e-4 || math.Abs(end-want[1]) > 1e-4 {
			t.Errorf("%s from %f to %f, not %v", name, begin, end, want)
		}
	}
}

// TestACounterThatIsNoClock has readings by which it can't relate two kernels, or only in part.
func TestACounterThatIsNoClock(t *testing.T) {
	before, after := machine{hz: 2.5e9}, machine{bootedAt: 207, hz: 2.5e9}
	clocks := func(lines []Line, change func(i int, r *Reading)) []Line {
		i := 0
		for _, l := range lines {
			if l.Clock != nil {
				change(i, l.Clock)
				i++
			}
		}
		return lines
	}
	for what, c := range map[string]struct {
		lines    []Line
		source   string
		accuracy int64 // at least
	}{
		// Its frequency is the processor's, which slows down when there is nothing to do.
		"not invariant": {clocks(update(before, after), func(i int, r *Reading) {
			if i == 1 {
				r.Counter -= 50e9
			}
		}), "wall", 1e6},
		"suspended, and the counter stopped": {clocks(update(before, after), func(i int, r *Reading) {
			if i == 0 {
				r.BootTime, r.Counter = r.BootTime-3600e9, r.Counter+1e12
			} else if i < 3 {
				r.Suspended = 3600e9
			}
		}), "counter", 0},
		"suspended, and the counter went on": {clocks(update(before, after), func(i int, r *Reading) {
			if i == 0 {
				r.BootTime, r.Counter = r.BootTime-50e9, 1
			} else if i < 3 {
				r.Suspended = 50e9
			}
		}), "counter", 0},
		"none, and the RTC is in local time": {clocks(update(machine{}, machine{bootedAt: 207}), func(i int, r *Reading) {
			if i > 2 {
				r.RealTime -= 7200e9
			}
		}), "wall", 7190e6},
		"none, and the RTC is 3 s behind": {clocks(update(machine{}, machine{bootedAt: 207}), func(i int, r *Reading) {
			if i > 2 {
				r.RealTime -= 4e9
			}
		}), "wall", 1e6},
		"none, and NTP has set the clock": {clocks(update(machine{}, machine{bootedAt: 207}), func(i int, r *Reading) {
			if i == 3 {
				r.RealTime += 1800e9
			}
		}), "wall", 1e6},
	} {
		r, err := Resolve(c.lines)
		if err != nil {
			t.Fatal(what, err)
		}
		if r.Clock.Source != c.source || r.Clock.AccuracyUSec < c.accuracy || c.source == "counter" && r.Clock.AccuracyUSec > 1000 {
			t.Errorf("%s: %+v", what, r.Clock)
		}
		sound(t, what, r)
		// Of one kernel all is right, whatever the other's clock said; and the accuracy is no lie.
		begin, end := seconds(t, r, "prepare")
		if begin != 200 || end != 202 {
			t.Errorf("%s: prepare from %f to %f", what, begin, end)
		}
		if begin, end := seconds(t, r, "userspace"); math.Abs(end-begin-2) > 1e-3 && what != "none, and the RTC is 3 s behind" {
			t.Errorf("%s: userspace from %f to %f", what, begin, end)
		}
		if what == "none, and NTP has set the clock" || c.source == "counter" {
			if begin, _ := seconds(t, r, "kernel"); math.Abs(begin-207) > 1e-3 {
				t.Errorf("%s: the kernel began at %f", what, begin)
			}
		}
	}
}

// sound tells what no report may have, however wrong the clocks are.
func sound(t *testing.T, what string, r *Report) {
	t.Helper()
	spans := slices.Clone(r.Spans)
	for _, p := range r.Participants {
		for _, a := range p.Answers {
			spans = append(spans, a.Span)
		}
	}
	for _, o := range r.Owners {
		if len(o.Sessions) == 0 {
			t.Errorf("%s: an owner of nothing", what)
		}
		if o.Blackout != nil {
			spans = append(spans, *o.Blackout)
		}
	}
	for _, s := range spans {
		if s.Begin < 0 || s.End < s.Begin {
			t.Errorf("%s: %+v", what, s)
		}
	}
	for i, s := range r.Spans {
		if i > 0 && s.Name != "reclaim" && s.Begin < r.Spans[i-1].End {
			t.Errorf("%s: %+v begins before the end of %+v", what, s, r.Spans[i-1])
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestStops has what PID 1 said of its shutdown at times that have nothing to do with the update.
func TestStops(t *testing.T) {
	before, after := machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9}
	with := func(change func([]Line) []Line) []Line { return change(update(before, after)) }
	for what, c := range map[string]struct {
		lines []Line
		want  float64 // begin of the stop
	}{
		"after the round": {with(func(l []Line) []Line { return l }), 204},
		// A systemctl kexec that waits for the round.
		"before it was quiet": {with(func(l []Line) []Line { l[10].At = before.at(201); return l }), 203},
		"in an earlier round that was called off": {with(func(l []Line) []Line {
			l = slices.Delete(l, 10, 11)
			return slices.Insert(l, 1, Line{Event: Round, Round: 1, At: before.at(110)}, Line{Event: Phase, Phase: "committing", At: before.at(111)},
				Line{Event: Shutdown, At: before.at(112)}, Line{Event: Phase, Phase: "aborted", At: before.at(113)})
		}), 203},
		"before the one that counts": {with(func(l []Line) []Line {
			return slices.Insert(l, 7, Line{Event: Shutdown, At: before.at(50)})
		}), 204},
	} {
		r, err := Resolve(c.lines)
		if err != nil {
			t.Fatal(what, err)
		}
		sound(t, what, r)
		if begin, _ := seconds(t, r, "stop"); begin != c.want || r.Round != 3 {
			t.Errorf("%s: the stop began at %f, not %f; round %d", what, begin, c.want, r.Round)
		}
	}
}

// TestAHistory goes on from kernel to kernel as the recorder does.
func TestAHistory(t *testing.T) {
	const hz = 2e9
	first := machine{hz: hz}
	clock := func(m machine, t float64) Line { return Line{Event: ClockRead, At: m.at(t), Clock: m.read(t)} }
	round := func(lines []Line, m machine, t float64, number int, end string) []Line {
		lines = append(compact(lines), Line{Event: Round, At: m.at(t), Round: number, Clock: m.read(t)},
			Line{Event: Phase, At: m.at(t), Phase: "preparing"},
			Line{Event: Answer, At: m.at(t + 1), Phase: "preparing", Participant: "cache", Owner: cache, State: "ready"},
			Line{Event: Phase, At: m.at(t + 2), Phase: "quiescing"},
			Line{Event: Phase, At: m.at(t + 3), Phase: "committing"}, clock(m, t+3),
			Line{Event: Carried, At: m.at(t + 3), KernelName: name.Kernel(cache, "ram")})
		if end != "" {
			lines = append(lines, Line{Event: Shutdown, At: m.at(t + 4)}, Line{Event: Phase, At: m.at(t + 5), Phase: "aborted"}, Line{Event: Phase, At: m.at(t + 6), Phase: "resumed"})
		}
		return lines
	}
	boot := func(lines []Line, m machine, id string) []Line {
		t := m.bootedAt
		return append(compact(append(lines, Line{Event: Boot, At: m.at(t + 5), Clock: m.read(t + 5), BootID: id})),
			Line{Event: Userspace, At: m.at(t + 1)}, Line{Event: Daemon, At: m.at(t + 4)}, clock(m, t+6),
			Line{Event: Back, At: m.at(t + 7), Owner: cache, KernelName: name.Kernel(cache, "ram"), State: "reclaimed", Clock: m.read(t + 8)})
	}
	resolve := func(what string, lines []Line, number int, kexec, back float64, owners int) {
		t.Helper()
		r, err := Resolve(lines)
		if err != nil {
			t.Fatal(what, err)
		}
		sound(t, what, r)
		if got := float64(r.To.Start-r.From.Start) / 1e6; r.Round != number || math.Abs(got-kexec) > kexec*2e-5+1e-3 || len(r.Owners) != owners || r.Clock.Source != "counter" {
			t.Errorf("%s: round %d, the kernels %f s apart, %d owners, %+v", what, r.Round, got, len(r.Owners), r.Clock)
		}
		if s := r.Spans[len(r.Spans)-1]; s.Name != "reclaim" || math.Abs(float64(s.End-r.To.Start)/1e6-back) > 1e-3 {
			t.Errorf("%s: %+v", what, s)
		}
	}
	lines := boot(nil, first, "a")
	if _, err := Resolve(lines); !errors.Is(err, ErrNoUpdate) {
		t.Error(err)
	}
	lines = round(lines, first, 100, 1, "aborted")
	lines = round(lines, first, 200, 2, "")
	second := machine{bootedAt: 210, hz: hz, skew: 1e-5}
	lines = boot(lines, second, "b")
	resolve("an update", lines, 2, 210, 7, 1)
	// Rounds that are called off change nothing of the report, and don't pile up.
	for n := range 50 {
		lines = round(lines, second, 300+float64(n)*10, 3+n, "aborted")
		resolve("called off", lines, 2, 210, 7, 1)
	}
	if len(lines) > 40 {
		t.Errorf("%d lines", len(lines))
	}
	// systemctl kexec, with nobody asked: what was to be carried in the rounds before doesn't count.
	third := machine{bootedAt: 1000, hz: hz}
	lines = boot(lines, third, "c")
	if got := sessions(ending(kernels(lines)[0]), Carried); len(got) != 0 {
		t.Errorf("carried: %+v", got)
	}
	resolve("without a round", lines, 0, 790, 7, 1)
	if s := mustResolve(t, lines).Spans[0]; s.Name != "kernel" {
		t.Errorf("it begins with %+v", s)
	}
	// Years later, and one right after the other.
	late := 1000 + 3*365*86400.0
	lines = round(lines, third, late, 1, "")
	fourth := machine{bootedAt: late + 10, hz: hz}
	lines = boot(lines, fourth, "d")
	resolve("after years", lines, 1, late+10-1000, 7, 1)
	lines = round(lines, fourth, late+20, 1, "")
	lines = boot(lines, machine{bootedAt: late + 30, hz: hz}, "e")
	resolve("the next", lines, 1, 20, 7, 1)
	if len(kernels(lines)) != 2 || len(lines) > 25 {
		t.Errorf("%d kernels, %d lines", len(kernels(lines)), len(lines))
	}
}

func mustResolve(t *testing.T, lines []Line) *Report {
	t.Helper()
	r, err := Resolve(lines)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestADamagedDocument changes what is there at random, and takes lines away, and adds them twice.
func TestADamagedDocument(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		lines := update(machine{hz: 1e9, offset: random.Uint64()}, machine{bootedAt: 207, hz: 1e9})
		for range 1 + random.IntN(4) {
			i := random.IntN(len(lines))
			l := &lines[i]
			wild := []int64{0, -1, 1, math.MaxInt64, math.MinInt64, random.Int64()}[random.IntN(6)]
			switch random.IntN(10) {
			case 0:
				l.At = wild
			case 1:
				l.Clock = nil
			case 2:
				l.Clock = &Reading{Counter: uint64(wild), Width: random.Uint64(), BootTime: wild, Raw: random.Int64(), RealTime: wild, Suspended: wild}
			case 3:
				l.Phase, l.State, l.KernelName = "aborted", "", "x"
			case 4:
				l.Event = []Event{Boot, Round, Phase, Back, Carried, Switch, "?"}[random.IntN(7)]
			case 5:
				l.Last = random.Uint64()
			case 6:
				lines = slices.Delete(lines, i, i+1)
			case 7:
				lines = slices.Insert(lines, random.IntN(len(lines)), *l)
			case 8:
				lines = compact(lines)
			case 9:
				if l.Clock != nil {
					l.Clock = new(*l.Clock)
					l.Clock.Width, l.Clock.Raw = uint64(wild), wild
				}
			}
			if len(lines) == 0 {
				break
			}
		}
		if r, err := Resolve(lines); err == nil {
			sound(t, "damaged", r)
		}
		if t.Failed() {
			text, _ := json.Marshal(lines)
			t.Fatal(string(text))
		}
	}
}
