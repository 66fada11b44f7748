// SPDX-License-Identifier: MIT

package timeline

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
)

// ErrNoUpdate says that no update was recorded.
var ErrNoUpdate = errors.New("no update was recorded since the host was booted")

// Report is an update, on one line of time: all times are microseconds since Began.
type Report struct {
	Version int `json:"version"` // 1
	// Round is the number of the round that led to it; 0 where the kernel was left without one.
	Round int `json:"round"`
	// Began is by the wall clock of the kernel that was left.
	Began time.Time `json:"began"`
	From  Kernel    `json:"from"`
	To    Kernel    `json:"to"`
	Clock Clock     `json:"clock"`
	// Spans are the parts of the update, in their order: prepare, quiesce, stop, kexec, kernel, initrd, userspace, reclaim.
	// Those that weren't recorded aren't there.
	Spans        []Span        `json:"spans"`
	Participants []Participant `json:"participants"`
	Owners       []Owner       `json:"owners"`
	// Dropped is how many events there was no room for.
	Dropped uint64 `json:"dropped"`
}

// Kernel is one of the two.
type Kernel struct {
	Release string `json:"release"`
	BootID  string `json:"bootID"`
	// Start is when its clocks began: it puts whatever it has stamped on the line of time.
	Start int64 `json:"startUSec"`
}

// Clock is what relates the times of both kernels.
type Clock struct {
	// Source is "counter", the processor's, or "wall", where there was none that went on.
	Source string `json:"source"`
	// AccuracyUSec is by how much the times of the new kernel may be off against those of the old one.
	AccuracyUSec int64 `json:"accuracyUSec"`
	// Hz is the counter's frequency, by the clocks of the new kernel.
	Hz float64 `json:"hz,omitempty"`
}

// Span is a part of the update.
type Span struct {
	Name  string `json:"name"`
	Begin int64  `json:"beginUSec"`
	End   int64  `json:"endUSec"`
}

// Participant is one, and its answers.
type Participant struct {
	Name     string     `json:"name"`
	Owner    string     `json:"owner"`
	Required bool       `json:"required"`
	Answers  []Answered `json:"answers"`
}

// Answered is what a participant came to in a phase.
type Answered struct {
	Span          // of the phase, to the answer
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

// Owner is whose memory was carried.
type Owner struct {
	Owner string `json:"owner"` // empty where only the digest in the kernel names is known
	// Blackout is from its first answer "ready" in the quiesce phase (or, without one, from the stop) to its last session's coming back;
	// absent until all are.
	Blackout *Span      `json:"blackout,omitempty"`
	Sessions []Carriage `json:"sessions"`
}

// Carriage is a session and what came of it.
type Carriage struct {
	Name       string `json:"name"`
	KernelName string `json:"kernelName"`
	State      string `json:"state"` // reclaimed, released, waiting
	Back       *int64 `json:"backUSec,omitempty"`
}

// axis puts the times of one kernel on the line: nanoseconds, from the old kernel's start, as the kernel that is the time's
// own counts them.
//
// CLOCK_BOOTTIME is bent by NTP, by up to 8 % right after a boot (chronyd's maxslewrate). So every reading has its place on
// the line by the counter, and what is in between two of them by its part of the time between them.
type axis struct {
	lines    []Line
	readings []Reading
	places   []float64 // of the readings, on the line
	rate     float64   // of time on the line by CLOCK_BOOTTIME, after the last reading; it is 1 before the first

	hz     float64 // of the counter, by this kernel's CLOCK_MONOTONIC_RAW; 0: unknown
	loose  float64 // by how much of itself hz may be off
	steady bool    // the counter has always gone at that frequency
}

func newAxis(lines []Line) *axis {
	a := &axis{lines: lines, steady: true}
	for _, l := range lines {
		if n := len(a.readings); l.Clock != nil && (n == 0 || l.Clock.BootTime > a.readings[n-1].BootTime) {
			a.readings = append(a.readings, *l.Clock)
		}
	}
	var ticks, width, raw float64
	for i := range len(a.readings) - 1 {
		if x, y := a.readings[i], a.readings[i+1]; counted(x, y) {
			ticks, width, raw = ticks+between(x, y), width+float64(x.Width+y.Width), raw+float64(y.Raw-x.Raw)
		}
	}
	if ticks == 0 {
		return a
	}
	a.hz, a.loose = ticks/raw*1e9, width/ticks
	// Neither is NTP in these, nor the processor's frequency, unless its counter depends on it.
	for i := range len(a.readings) - 1 {
		x, y := a.readings[i], a.readings[i+1]
		went := float64(y.Raw-x.Raw) * a.hz / 1e9
		if counted(x, y) && math.Abs(between(x, y)-went) > same*went+float64(x.Width+y.Width) {
			a.steady = false
		}
	}
	return a
}

const (
	// tight is how exactly a frequency must be known: of a minute in between, it makes 60 ms.
	tight = 1e-3
	// same is by how much frequencies may differ that are one. Kernels measure it anew, a little differently.
	same = 0.02
	// asleep is more than what the reading of two clocks can be apart.
	asleep = int64(100 * time.Millisecond)
)

// counted tells whether the counter went on from one reading to the next: in a suspended machine it may stop.
func counted(x, y Reading) bool {
	slept := y.Suspended - x.Suspended
	return x.Counter > 0 && y.Counter > x.Counter && y.Raw > x.Raw && slept < asleep && slept > -asleep
}

func between(x, y Reading) float64 { return float64(y.Counter - x.Counter) }

func (a *axis) first() Reading { return a.readings[0] }
func (a *axis) last() Reading  { return a.readings[len(a.readings)-1] }

// place puts the readings on the line, from one on that is there.
func (a *axis) place(i int, there float64, byCounter bool) {
	a.places = make([]float64, len(a.readings))
	step := func(i int) float64 {
		x, y := a.readings[i], a.readings[i+1]
		if byCounter && counted(x, y) {
			return between(x, y) / a.hz * 1e9
		}
		return float64(y.BootTime - x.BootTime)
	}
	a.places[i] = there
	for j := i; j > 0; j-- {
		a.places[j-1] = a.places[j] - step(j-1)
	}
	for j := i; j < len(a.places)-1; j++ {
		a.places[j+1] = a.places[j] + step(j)
	}
	a.rate = 1
	// NTP goes on as it did, as far as can be told of readings that are near.
	end := len(a.readings) - 1
	for j := end - 1; byCounter && j >= 0 && counted(a.readings[j], a.readings[j+1]); j-- {
		x, y := a.readings[j], a.readings[end]
		if float64(x.Width+y.Width) < between(x, y)*1e-4 {
			a.rate = (a.places[end] - a.places[j]) / float64(y.BootTime-x.BootTime)
			break
		}
	}
}

func (a *axis) at(bootTime int64) float64 {
	i := a.next(bootTime)
	switch {
	case i == 0:
		return a.places[0] - float64(a.first().BootTime-bootTime)
	case i == len(a.readings):
		return a.places[i-1] + float64(bootTime-a.last().BootTime)*a.rate
	}
	x, y := a.readings[i-1].BootTime, a.readings[i].BootTime
	return a.places[i-1] + float64(bootTime-x)/float64(y-x)*(a.places[i]-a.places[i-1])
}

// next is the first reading that is not before then.
func (a *axis) next(bootTime int64) int {
	i, _ := slices.BinarySearchFunc(a.readings, bootTime, func(r Reading, t int64) int { return cmp.Compare(r.BootTime, t) })
	return i
}

// bent is by how much at most NTP has moved what happened then, between the readings around it.
func (a *axis) bent(bootTime int64) float64 {
	i := a.next(bootTime)
	if i == 0 || i == len(a.readings) || a.readings[i].BootTime == bootTime || !counted(a.readings[i-1], a.readings[i]) {
		return 0
	}
	x, y := a.readings[i-1], a.readings[i]
	return math.Abs(float64((y.BootTime - x.BootTime) - (y.Raw - x.Raw)))
}

// ofCounter is the moment in which the counter stood there.
func (a *axis) ofCounter(counter uint64) float64 {
	return a.places[len(a.places)-1] + float64(int64(counter-a.last().Counter))/a.hz*1e9
}

// relate places the axes of two kernels on one line, and says what that is good for. shown are the lines of both that will
// be on it.
func relate(a, b *axis, shownOfA, shownOfB []Line) Clock {
	for _, x := range [][2]*axis{{a, b}, {b, a}} {
		// A process that didn't run long enough to tell.
		if x[0].hz == 0 || x[0].loose > tight {
			x[0].hz, x[0].loose = x[1].hz, x[1].loose
		}
	}
	here, there, anchor := a.last(), b.first(), len(a.readings)-1
	if a.hz > 0 && a.loose <= tight && math.Abs(a.hz/b.hz-1) <= same && a.steady && b.steady && here.Counter > 0 && there.Counter > here.Counter {
		gap := between(here, there) / a.hz * 1e9 // in this kernel's time
		own := float64(there.BootTime) * (b.hz / a.hz)
		// A counter that was set back at the kexec would have the next kernel start before this one ended.
		if gap >= own {
			a.place(anchor, float64(here.BootTime), true)
			b.place(0, float64(here.BootTime)+gap, true)
			off := float64(here.Width+there.Width) / a.hz * 1e9
			var bentA, bentB float64
			for _, l := range shownOfA {
				bentA = max(bentA, a.bent(l.At))
			}
			for _, l := range shownOfB {
				gap = max(gap, b.at(l.At)-float64(here.BootTime))
				bentB = max(bentB, b.bent(l.At))
			}
			off += gap*(a.loose+math.Abs(a.hz/b.hz-1)) + bentA + bentB
			return Clock{Source: "counter", Hz: math.Round(b.hz), AccuracyUSec: microseconds(off)}
		}
	}
	// The last reading of the wall clock is the best: NTP may have corrected it.
	there = b.last()
	a.place(anchor, float64(here.BootTime), false)
	b.place(len(b.readings)-1, float64(here.BootTime)+float64(there.RealTime-here.RealTime), false)
	latest := float64(here.BootTime)
	for _, l := range shownOfA {
		latest = max(latest, float64(l.At))
	}
	off := float64(time.Second)
	if b.places[0] < latest {
		// The next kernel was not read before this one ended: the RTC is wrong, and nobody knows by how much.
		early := latest - b.at(0)
		b.place(0, b.places[0]+early, false)
		off += early
	}
	return Clock{Source: "wall", AccuracyUSec: microseconds(off)}
}

func microseconds(nsec float64) int64 { return int64(math.Ceil(nsec / 1e3)) }

// Resolve makes a report of a document's lines.
func Resolve(lines []Line) (*Report, error) {
	boots := kernels(lines)
	if len(boots) < 2 {
		return nil, ErrNoUpdate
	}
	before, after := newAxis(boots[len(boots)-2]), newAxis(boots[len(boots)-1])
	if before.lines[0].Clock == nil || after.lines[0].Clock == nil {
		return nil, ErrNoUpdate
	}
	r := &Report{Version: 1, From: kernelOf(before.lines[0]), To: kernelOf(after.lines[0]),
		Spans: []Span{}, Participants: []Participant{}, Owners: []Owner{}, Dropped: after.lines[0].Dropped}
	m := &merge{Report: r, before: before, after: after, ending: ending(before.lines)}
	r.Clock = relate(before, after, m.ending, slices.DeleteFunc(slices.Clone(after.lines), func(l Line) bool { return !ofBeginning(l.Event) }))
	m.moments()
	// What the old kernel has stamped shortly before its end, and what the next one has after its beginning.
	r.From.Start, r.To.Start = m.usec(0), m.usec(after.at(0))
	m.spans()
	m.participants()
	m.owners()
	return r, nil
}

func kernelOf(boot Line) Kernel { return Kernel{Release: boot.Release, BootID: boot.BootID} }

// merge is a report in the making. Moments are nanoseconds of the old kernel's CLOCK_BOOTTIME; NaN is unknown.
type merge struct {
	*Report
	before, after *axis
	ending        []Line // of the old kernel's: of its last round, unless that was called off, and after

	prepare, prepared, quiesce, quiesced, stop, left, kernel, initrd, userspace, daemon, back float64
	origin                                                                                    float64
}

func (m *merge) usec(t float64) int64 { return int64(math.Round((t - m.origin) / 1e3)) }

func (m *merge) moments() {
	unknown := math.NaN()
	for _, t := range []*float64{&m.prepare, &m.prepared, &m.quiesce, &m.quiesced, &m.stop, &m.left, &m.initrd, &m.userspace, &m.daemon, &m.back} {
		*t = unknown
	}
	// In each kernel CLOCK_BOOTTIME begins with its start.
	m.kernel = m.after.at(0)
	for _, l := range m.ending {
		t := m.before.at(l.At)
		switch {
		case l.Event == Round:
			m.Round = l.Round
		case l.Event == Shutdown:
			m.stop = t
		case l.Event == Switch:
			m.left = t
		case l.Event != Phase:
		case l.Phase == "preparing":
			m.prepare = t
		case l.Phase == "prepared":
			m.prepared = t
		case l.Phase == "quiescing":
			m.quiesce = t
		case l.Phase == "committing":
			m.quiesced = t
		}
	}
	if last := m.after.lines[0].Last; last != 0 && math.IsNaN(m.left) && m.Clock.Source == "counter" {
		m.left = m.before.ofCounter(last)
	}
	// One came after the other, though the clocks are not exact. Where somebody typed systemctl kexec, PID 1 has begun before
	// it waited for the round: then the stop is what came after.
	quiet := inOrder(math.Inf(-1), &m.prepare, &m.prepared, &m.quiesce, &m.quiesced, &m.stop)
	inOrder(quiet, &m.kernel)
	inOrder(quiet, &m.left)
	if m.left > m.kernel {
		m.left = m.kernel
	}
	for _, l := range m.after.lines {
		t := max(m.after.at(l.At), m.kernel)
		switch l.Event {
		case Initrd:
			m.initrd = t
		case Userspace:
			m.userspace = t
		case Daemon:
			m.daemon = t
		case Back:
			if math.IsNaN(m.back) || t > m.back {
				m.back = t
			}
		}
	}
	inOrder(m.kernel, &m.initrd, &m.userspace, &m.daemon)
	m.origin = first(m.prepare, m.prepared, m.quiesce, m.quiesced, m.stop, m.left, m.kernel)
	clock := m.before.last()
	m.Began = time.Unix(0, clock.RealTime-clock.BootTime+int64(m.origin)).UTC()
}

// inOrder has none of the moments be earlier than the one before it. Those that aren't known stay so. It returns the last.
func inOrder(last float64, moments ...*float64) float64 {
	for _, t := range moments {
		if *t < last {
			*t = last
		}
		if !math.IsNaN(*t) {
			last = *t
		}
	}
	return last
}

// first is the first of the moments that is known.
func first(moments ...float64) float64 {
	for _, t := range moments {
		if !math.IsNaN(t) {
			return t
		}
	}
	return math.NaN()
}

func (m *merge) spans() {
	stop := first(m.stop, m.quiesced)
	for _, s := range []struct {
		name       string
		begin, end float64
	}{
		{"prepare", m.prepare, first(m.prepared, m.quiesce, m.quiesced, stop)},
		{"quiesce", m.quiesce, first(m.quiesced, stop)},
		{"stop", stop, first(m.left, m.kernel)},
		{"kexec", m.left, m.kernel},
		{"kernel", m.kernel, first(m.initrd, m.userspace, m.daemon, m.back)},
		{"initrd", m.initrd, first(m.userspace, m.daemon, m.back)},
		{"userspace", m.userspace, first(m.daemon, m.back)},
		{"reclaim", first(m.daemon, m.userspace), m.back},
	} {
		if !math.IsNaN(s.begin) && !math.IsNaN(s.end) {
			m.Spans = append(m.Spans, Span{s.name, m.usec(s.begin), max(m.usec(s.begin), m.usec(s.end))})
		}
	}
}

func (m *merge) participants() {
	phases := map[string]struct {
		name  string
		begin float64
	}{"preparing": {"prepare", m.prepare}, "quiescing": {"quiesce", m.quiesce}}
	for _, l := range m.ending {
		phase, known := phases[l.Phase]
		if l.Event != Answer || !known || math.IsNaN(phase.begin) {
			continue
		}
		i := slices.IndexFunc(m.Participants, func(p Participant) bool { return p.Name == l.Participant && p.Owner == l.Owner })
		if i < 0 {
			i = len(m.Participants)
			m.Participants = append(m.Participants, Participant{Name: l.Participant, Owner: l.Owner, Required: l.Required})
		}
		p := &m.Participants[i]
		p.Answers = slices.DeleteFunc(p.Answers, func(a Answered) bool { return a.Name == phase.name })
		begin := m.usec(phase.begin)
		p.Answers = append(p.Answers, Answered{Span{phase.name, begin, max(begin, m.usec(m.before.at(l.At)))}, l.State, l.Reason})
	}
	slices.SortStableFunc(m.Participants, func(a, b Participant) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Name, b.Name))
	})
}

// owners puts together what was carried and what came back. Who owns a session may be known on one side of the kexec only.
func (m *merge) owners() {
	sessions := map[string]*Carriage{} // by kernel name
	digests := map[string]string{}     // owners
	know := func(owner string) {
		if owner != "" {
			digests[name.Digest(owner)] = owner
		}
	}
	for _, p := range m.Participants {
		know(p.Owner)
	}
	for _, l := range slices.Concat(m.ending, m.after.lines) {
		if l.Event != Carried && l.Event != Back {
			continue
		}
		know(l.Owner)
		s := sessions[l.KernelName]
		if s == nil {
			s = &Carriage{Name: l.Name, KernelName: l.KernelName, State: "waiting"}
			sessions[l.KernelName] = s
		}
		if l.Event == Back {
			back := m.usec(max(m.after.at(l.At), m.kernel))
			s.State, s.Back = l.State, &back
		}
	}
	byOwner := map[string][]Carriage{} // by digest
	for kernelName, s := range sessions {
		digest, portion, _ := name.Parse(kernelName)
		s.Name = cmp.Or(s.Name, portion)
		byOwner[digest] = append(byOwner[digest], *s)
	}
	for digest, list := range byOwner {
		slices.SortFunc(list, func(a, b Carriage) int { return cmp.Compare(a.KernelName, b.KernelName) })
		o := Owner{Owner: digests[digest], Sessions: list}
		o.Blackout = m.blackout(o)
		m.Owners = append(m.Owners, o)
	}
	slices.SortFunc(m.Owners, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Sessions[0].KernelName, b.Sessions[0].KernelName))
	})
}

func (m *merge) blackout(o Owner) *Span {
	var end int64
	waited := false
	for _, s := range o.Sessions {
		switch {
		case s.State == "waiting":
			return nil
		case s.State == "reclaimed":
			end, waited = max(end, *s.Back), true
		}
	}
	if !waited {
		return nil // all were released: nobody waited
	}
	stop := first(m.stop, m.quiesced, m.left, m.kernel)
	begin := m.usec(stop)
	for _, p := range m.Participants {
		if p.Owner != o.Owner || o.Owner == "" {
			continue
		}
		for _, a := range p.Answers {
			if a.Name == "quiesce" && a.State == "ready" {
				begin = min(begin, a.End)
			}
		}
	}
	return &Span{"blackout", begin, max(begin, end)}
}
