// SPDX-License-Identifier: MIT

package timeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/orchestrator/orchestratortest"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/luosim"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestTheCounterCounts(t *testing.T) {
	if counter() == 0 {
		t.Skip("no counter is known on this architecture")
	}
	a := Read()
	var b Reading
	for b.Raw < a.Raw+int64(50*time.Millisecond) {
		b = Read()
	}
	axis := newAxis([]Line{{Event: Boot, Clock: &a}, {Event: ClockRead, Clock: &b}})
	if axis.hz < 1e6 || axis.hz > 1e11 || axis.loose > tight {
		t.Errorf("%f Hz, to %f", axis.hz, axis.loose)
	}
	axis.place(1, float64(b.BootTime), true)
	if d := math.Abs(axis.ofCounter(a.Counter) - float64(a.BootTime)); d > 1e6 {
		t.Errorf("the first reading is off by %f ns", d)
	}
}

// TestTheDocumentIsBounded has more of everything than there is room for. What the next kernel adds must get in all the same,
// and the report into a reply.
func TestTheDocumentIsBounded(t *testing.T) {
	f, err := newFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	before, after := machine{hz: 1e9}, machine{bootedAt: 207, hz: 1e9}
	lines := update(before, after)
	for _, l := range lines[:4] {
		f.add(l)
	}
	const many = 10000
	why := strings.Repeat("why? ", 1000)
	for i := range many {
		f.add(Line{Event: Answer, At: before.at(201), Phase: "preparing", Participant: fmt.Sprint("p", i), Owner: "/p.service", State: "vetoed", Reason: why[:i%200]})
	}
	for _, l := range lines[4:7] {
		l.Reason = why
		f.add(l)
	}
	for i := range many {
		f.add(Line{Event: Carried, At: before.at(203), KernelName: name.Kernel(fmt.Sprintf("/p%d.service", i), "ram"), Name: "ram", Owner: fmt.Sprintf("/p%d.service", i)})
	}
	for _, l := range lines[8:11] {
		f.add(l)
	}
	if f.end > fileSize-(64<<10) {
		t.Errorf("%d bytes are left", fileSize-f.end)
	}
	f.replace(compact(append(f.lines(), lines[11])))
	for _, l := range lines[12:] {
		f.add(l)
	}
	for i := range many {
		owner := fmt.Sprintf("/other%d.service", i)
		f.add(Line{Event: Back, At: after.at(213), KernelName: name.Kernel(owner, "ram"), Name: "ram", Owner: owner, State: "reclaimed", Clock: after.read(213.5)})
	}
	if f.dropped().Load() == 0 {
		t.Error("all of it got in")
	}
	report, err := Resolve(f.lines())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Spans) != 7 || report.Round != 3 || len(report.Participants) < 1000 || len(report.Owners) < 1000 {
		t.Errorf("%d spans, round %d, %d participants, %d owners", len(report.Spans), report.Round, len(report.Participants), len(report.Owners))
	}
	if reply, err := json.Marshal(report); err != nil || len(reply) > 1000000 {
		t.Errorf("the report has %d bytes, %v", len(reply), err)
	}
	used := f.used
	raw, err := os.OpenFile("/proc/self/fd/"+fdNumber(t, f), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	for e := range room {
		if again.used[e] != used[e] || used[e] > room[e] || used[e] == 0 {
			t.Errorf("%s: %d bytes, and %d when it was opened again", e, used[e], again.used[e])
		}
	}
	// A thousand participants and sessions are no trouble.
	f.replace([]Line{lines[0]})
	f.dropped().Store(0)
	for i := range 1000 {
		owner := fmt.Sprintf("/system-service%d.service", i)
		for _, phase := range []string{"preparing", "quiescing"} {
			f.add(Line{Event: Answer, At: before.at(201), Phase: phase, Participant: fmt.Sprint("participant", i), Owner: owner, Required: true, State: "ready"})
		}
		for _, e := range []Event{Carried, Back} {
			f.add(Line{Event: e, At: before.at(203), KernelName: name.Kernel(owner, "memory"), Name: "memory", Owner: owner, State: "reclaimed"})
		}
	}
	if n := f.dropped().Load(); n != 0 {
		t.Errorf("%d were dropped", n)
	}
}

// TestADeathInTheMiddleOfALine opens what a process has left that was killed.
func TestADeathInTheMiddleOfALine(t *testing.T) {
	f, err := newFile()
	if err != nil {
		t.Fatal(err)
	}
	f.add(Line{Event: Boot, At: 1})
	whole := f.end
	f.add(Line{Event: Answer, At: 2, Reason: "why"})
	clear(f.data[f.end-5:])
	dup, err := os.OpenFile("/proc/self/fd/"+fdNumber(t, f), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.close()
	again, err := openFile(dup)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.end != whole {
		t.Errorf("it goes on at %d, not %d", again.end, whole)
	}
	again.add(Line{Event: Phase, At: 3})
	if lines := again.lines(); len(lines) != 2 || lines[1].Event != Phase {
		t.Errorf("%+v", lines)
	}
}

func fdNumber(t *testing.T, f *file) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	want, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil && os.SameFile(info, want) {
			return e.Name()
		}
	}
	t.Fatal("its descriptor isn't there")
	return ""
}

func TestWhatIsNoTimelineIsRefused(t *testing.T) {
	for what, size := range map[string]int64{"short": 10, "long": fileSize + 1, "of another version": fileSize} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := openFile(f); err == nil {
			t.Errorf("%s: it passed", what)
		}
	}
}

// dial starts an orchestrator without a keeper, as each boot of an emulated machine does, and connects to it.
func dial(t *testing.T) *holdfast.Client {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", "")
	return orchestratortest.Dial(t, nil, nil)
}

func open(t *testing.T, client *holdfast.Client) *Recorder {
	t.Helper()
	r, err := Open(t.Context(), client, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestOverTwoUpdates carries the timeline over the kexecs of an emulated machine.
func TestOverTwoUpdates(t *testing.T) {
	kernelName := name.Kernel("/cache.service", "ram")
	round := func(t *testing.T, r *Recorder, number int) {
		t.Helper()
		late, since := time.Now(), time.Now()
		said := func(phase, state string) {
			r.Changed(number, phase, "", []Standing{{ID: "1", Name: "cache", Owner: "/cache.service", Required: true, State: state, Since: since},
				{ID: "2", Name: "slow", Owner: "/slow.service", State: "late", Since: late}})
		}
		said("preparing", "waiting")
		late = time.Now()
		said("preparing", "waiting")
		since = time.Now()
		said("prepared", "ready")
		said("quiescing", "waiting")
		since = time.Now()
		said("committing", "ready")
		// It is stopped with all the others.
		since = time.Now()
		said("committing", "gone")
		r.Carried([]Session{{Name: "ram", KernelName: kernelName}})
	}
	check := func(t *testing.T, r *Recorder, number int) {
		t.Helper()
		if got := r.CarriedOver(); len(got) != 1 || got[0].KernelName != kernelName {
			t.Errorf("carried: %+v", got)
		}
		r.Back([]Session{{Owner: "/cache.service", Name: "ram", KernelName: kernelName, State: "reclaimed", At: Now()}})
		r.Back([]Session{{Owner: "/cache.service", Name: "ram", KernelName: kernelName, State: "reclaimed", At: Now()}})
		report, err := r.Report()
		if err != nil {
			t.Fatal(err)
		}
		if report.Round != number || len(report.Participants) != 2 || len(report.Owners) != 1 || report.Owners[0].Blackout == nil || report.Dropped != 0 {
			t.Errorf("%+v", report)
		}
		// Who is late in one phase isn't asked in the next.
		for _, p := range report.Participants {
			var answers []string
			for _, a := range p.Answers {
				answers = append(answers, a.Name+" "+a.State)
			}
			if got, want := strings.Join(answers, ", "), map[string]string{"cache": "prepare ready, quiesce ready", "slow": "prepare late"}[p.Name]; got != want {
				t.Errorf("%s: %s, want %s", p.Name, got, want)
			}
		}
		// The emulated machine's kernel doesn't begin anew, so its counter seems to have been set back, and it is the wall
		// clock that says how long the update took.
		if b := report.Owners[0].Blackout; b != nil && (b.End < b.Begin || b.End-b.Begin > int64(time.Minute/time.Microsecond)) {
			t.Errorf("blackout: %+v", b)
		}
		// What was there is told of once only.
		boots, n := kernels(r.file.lines()), 0
		for _, l := range boots[len(boots)-1] {
			if l.Event == Back {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d times back", n)
		}
	}
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			r := open(t, dial(t))
			if _, err := r.Report(); !errors.Is(err, ErrNoUpdate) {
				t.Error(err)
			}
			// One that doesn't come to anything.
			r.Changed(1, "preparing", "", nil)
			r.Changed(1, "committing", "", nil)
			r.Changed(1, "aborted", "the switch failed", nil)
			if r.file.beat().Load() != 0 {
				t.Error("the kernel wasn't left, and there is a last sign of life")
			}
			round(t, r, 2)
		},
		func(t *testing.T) {
			r := open(t, dial(t))
			check(t, r, 2)
			round(t, r, 3)
		},
		func(t *testing.T) {
			r := open(t, dial(t))
			defer r.Close()
			check(t, r, 3)
		})
}

func TestWithoutAnOrchestrator(t *testing.T) {
	r := open(t, nil)
	defer r.Close()
	r.Changed(1, "preparing", "", nil)
	if got := r.file.lines(); len(got) < 3 || got[0].Event != Boot || got[0].BootID == "" {
		t.Errorf("%+v", got)
	}
}

// TestTheShutdownIsNoted has PID 1 say first when it began a shutdown that came to nothing.
func TestTheShutdownIsNoted(t *testing.T) {
	r := open(t, nil)
	defer r.Close()
	stale := time.Duration(nanoseconds(unix.CLOCK_MONOTONIC))
	asked := 0
	r.times = func(context.Context, string) (systemd.Times, error) {
		switch asked++; asked {
		case 1:
			return systemd.Times{Shutdown: stale}, nil
		case 2:
			return systemd.Times{}, nil
		}
		return systemd.Times{Shutdown: stale + time.Hour}, nil
	}
	noted := func() (at []int64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, l := range r.file.lines() {
			if l.Event == Shutdown {
				at = append(at, l.At)
			}
		}
		return at
	}
	r.Leave()
	for limit := time.Now().Add(10 * time.Second); len(noted()) == 0 && time.Now().Before(limit); {
		time.Sleep(time.Millisecond) // between looks
	}
	r.Stay()
	at := noted()
	if len(at) != 1 || time.Duration(at[0]) < stale+time.Hour {
		t.Errorf("%v, not from %v on", at, stale+time.Hour)
	}
	if r.file.beat().Load() != 0 {
		t.Error("the kernel wasn't left, and there is a last sign of life")
	}
}

// TestTheNextKernelKnowsTheEnd begins a kernel's part in which PID 1 says how the one before was left.
func TestTheNextKernelKnowsTheEnd(t *testing.T) {
	const stop, left = 100 * time.Second, 103 * time.Second // on CLOCK_MONOTONIC
	for what, c := range map[string]struct {
		noted     time.Duration // on CLOCK_BOOTTIME
		suspended time.Duration
		systemd   time.Duration // when it says that it was left
		want      map[Event]time.Duration
	}{
		"noted":                     {stop, 0, left, map[Event]time.Duration{Shutdown: stop, Switch: left}},
		"noted, after a suspension": {stop + time.Hour, time.Hour, left, map[Event]time.Duration{Shutdown: stop + time.Hour, Switch: left + time.Hour}},
		"not noted":                 {0, 0, left, map[Event]time.Duration{Shutdown: stop, Switch: left}},
		"not noted, suspended":      {0, time.Hour, left, map[Event]time.Duration{Shutdown: stop + time.Hour, Switch: left + time.Hour}},
		"only one that was off":     {stop / 2, 0, left, map[Event]time.Duration{Shutdown: stop, Switch: left}},
		"an older systemd":          {stop, 0, 0, map[Event]time.Duration{Shutdown: stop}},
	} {
		r := open(t, nil)
		clock := Read()
		clock.Suspended = int64(c.suspended)
		r.add(Line{Event: ClockRead, Clock: &clock})
		if c.noted > 0 {
			r.add(Line{Event: Shutdown, At: int64(c.noted)})
		}
		r.times = func(context.Context, string) (systemd.Times, error) {
			return systemd.Times{Userspace: time.Second, PreviousShutdown: stop, PreviousSwitch: c.systemd}, nil
		}
		r.begin(t.Context(), 0)
		boots := kernels(r.file.lines())
		if len(boots) != 2 {
			t.Fatalf("%s: %d kernels", what, len(boots))
		}
		got := map[Event]time.Duration{}
		for _, l := range boots[0] {
			if l.Event == Shutdown || l.Event == Switch {
				got[l.Event] = time.Duration(l.At)
			}
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, not %v", what, got, c.want)
		}
		r.Close()
	}
}

// TestTheEndOfTheProcessIsASignOfLife has it stopped before the kernel is left, as PID 1 does.
func TestTheEndOfTheProcessIsASignOfLife(t *testing.T) {
	for _, leaving := range []bool{false, true} {
		r := open(t, nil)
		f, err := os.OpenFile("/proc/self/fd/"+fdNumber(t, r.file), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if leaving {
			r.Leave()
		}
		before := counter()
		r.Close()
		left, err := openFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := left.beat().Load(); leaving && counter() != 0 && got < before || !leaving && got != 0 {
			t.Errorf("leaving %v: it ended at %d, not after %d", leaving, got, before)
		}
		left.close()
	}
}

// TestOneWhoCannotStopTalking answers again and again: the same, and then something else each time.
func TestOneWhoCannotStopTalking(t *testing.T) {
	r := open(t, nil)
	defer r.Close()
	answers := func() (n int) {
		for _, l := range r.file.lines() {
			if l.Event == Answer {
				n++
			}
		}
		return n
	}
	said := func(state, reason string) {
		r.Changed(1, "preparing", "", []Standing{{ID: "1", Name: "p", Owner: "/p.service", State: state, Reason: reason, Since: time.Now()}})
	}
	for range 1000 {
		said("ready", "")
	}
	if n := answers(); n != 1 {
		t.Errorf("%d answers", n)
	}
	for range 2000 {
		said("vetoed", "")
		said("ready", "")
	}
	if n := answers(); n != answersMost || r.file.dropped().Load() == 0 {
		t.Errorf("%d answers, %d dropped", n, r.file.dropped().Load())
	}
	// Others are heard.
	r.Changed(1, "preparing", "", []Standing{{ID: "2", Name: "q", Owner: "/q.service", State: "ready", Since: time.Now()}})
	if n := answers(); n != answersMost+1 {
		t.Errorf("%d answers", n)
	}
}

// TestAnotherProcessOfThisKernel takes up what an earlier one has left, at whatever point that ended.
func TestAnotherProcessOfThisKernel(t *testing.T) {
	kernelName := name.Kernel(cache, "ram")
	for ended, phases := range map[string][]string{"": nil, "aborted": {"preparing", "quiescing"}, "committing": {"preparing", "quiescing", "committing"}, "resumed": {"preparing", "aborted", "resumed"}} {
		r := open(t, nil)
		for _, phase := range phases {
			r.Changed(7, phase, "", nil)
		}
		r.Back([]Session{{KernelName: kernelName, State: "reclaimed"}})
		r.Stay()
		r.file.beat().Store(1) // its last sign of life, which this process outlives
		again := &Recorder{log: r.log, times: r.times, back: map[string]bool{}, file: r.file}
		again.takeUp(t.Context())
		lines := r.file.lines()
		if n := len(kernels(lines)); n != 1 {
			t.Errorf("after %v: it is the part of kernel %d", phases, n)
		}
		phase := ""
		for _, l := range lines {
			if l.Event == Phase {
				phase = l.Phase
			}
		}
		if phase != ended || !again.back[kernelName] || r.file.beat().Load() != 0 {
			t.Errorf("after %v: %+v", phases, lines)
		}
		r.Close()
	}
	// The same file in another kernel.
	r := open(t, nil)
	defer r.Close()
	lines := r.file.lines()
	lines[0].BootID = "another"
	r.file.replace(lines)
	r.file.beat().Store(5)
	for range 2 {
		r.takeUp(t.Context())
	}
	if boots := kernels(r.file.lines()); len(boots) != 2 || boots[1][0].Last != 5 {
		t.Errorf("%+v", boots)
	}
}

// TestATimelineOfAnotherVersion crosses an update by which Holdfast was updated too: there is no report, but that there was an
// update is known, also to the process after the one that found it out.
func TestATimelineOfAnotherVersion(t *testing.T) {
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			client := dial(t)
			session, err := client.Acquire(t.Context(), sessionName)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := unix.MemfdCreate("timeline", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			memory := os.NewFile(uintptr(raw), "timeline")
			if _, err := memory.WriteString("of another version"); err != nil {
				t.Fatal(err)
			}
			if err := session.Preserve(fileName, memory); err != nil {
				t.Fatal(err)
			}
			// Without a keeper it is committed, and held here.
			if err := session.Park(t.Context(), client); !noKeeper(err) {
				t.Fatal(err)
			}
		},
		func(t *testing.T) {
			r, err := Open(t.Context(), dial(t), slog.New(slog.DiscardHandler))
			if err == nil || r == nil {
				t.Fatalf("%v, %v", r, err)
			}
			defer r.Close()
			again := &Recorder{log: r.log, times: r.times, back: map[string]bool{}, file: r.file}
			again.takeUp(t.Context())
			for _, r := range []*Recorder{r, again} {
				if _, err := r.Report(); !errors.Is(err, ErrNoUpdate) || !r.Crossed() || len(r.CarriedOver()) != 0 {
					t.Errorf("crossed %v, %+v, %v", r.Crossed(), r.CarriedOver(), err)
				}
			}
		})
	r := open(t, nil)
	defer r.Close()
	if r.Crossed() {
		t.Error("there was an update where none was")
	}
}
