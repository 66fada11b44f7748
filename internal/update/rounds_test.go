// SPDX-License-Identifier: MIT

package update

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// story is Rounds with a clock that stands still between the steps.
type story struct {
	*testing.T
	Rounds
	now time.Time
}

// on has participants joined: "a" is required, "b?" is not.
func on(t *testing.T, names ...string) *story {
	s := &story{T: t, now: time.Unix(1000, 0)}
	for _, n := range names {
		s.joins(n)
	}
	return s
}

func (s *story) joins(name string) {
	name, optional := strings.CutSuffix(name, "?")
	s.Join(s.now, name, name, "/"+name+".service", !optional)
}

func (s *story) starts(o Options) {
	s.Helper()
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if _, err := s.Start(s.now, o); err != nil {
		s.Fatal(err)
	}
}

// after lets time pass; what falls due on the way happens when it does.
func (s *story) after(d time.Duration) {
	end := s.now.Add(d)
	for {
		next, ok := s.Next()
		if !ok || next.After(end) {
			break
		}
		s.now = next
		s.Tick(s.now)
	}
	s.now = end
	s.Tick(s.now)
}

func (s *story) ready(phase Phase, names ...string) {
	s.Helper()
	for _, n := range names {
		if err := s.Vote(s.now, Vote{ID: n, Round: s.round, Phase: phase, Ready: true}); err != nil {
			s.Errorf("%s is ready for %s: %v", n, phase, err)
		}
	}
}

func (s *story) vetoes(name string, phase Phase) error {
	return s.Vote(s.now, Vote{ID: name, Round: s.round, Phase: phase, Reason: "no"})
}

func (s *story) extends(name string, phase Phase, d time.Duration) error {
	return s.Vote(s.now, Vote{ID: name, Round: s.round, Phase: phase, Extend: d, Reason: "much"})
}

// is checks the phase, and with "name=state" participants.
func (s *story) is(phase Phase, states ...string) {
	s.Helper()
	got := s.Snapshot()
	var all []string
	for _, p := range got.Participants {
		all = append(all, p.Name+"="+string(p.State))
	}
	if got.Phase != phase || len(states) > 0 && !slices.Equal(all, states) {
		s.Errorf("%s %v (%s), want %s %v", got.Phase, all, got.Reason, phase, states)
	}
}

// resumes takes an aborted round to its end.
func (s *story) resumes(cause Cause, reason string, names ...string) {
	s.Helper()
	s.is(Aborted)
	if got := s.Snapshot(); got.Cause != cause || got.Reason != reason {
		s.Errorf("cause %d, %q; want %d, %q", got.Cause, got.Reason, cause, reason)
	}
	s.ready(Aborted, names...)
	s.is(Aborted) // as long as the kernel is loaded
	s.Dropped(s.now, nil)
	s.is(Resumed)
}

func (s *story) succeeds(names ...string) {
	s.Helper()
	s.ready(Preparing, names...)
	s.is(Prepared)
	s.Quiesce(s.now)
	s.ready(Quiescing, names...)
	s.is(Committing)
}

func isStale(err error) bool {
	var stale *StaleError
	return errors.As(err, &stale)
}

func TestGoodRound(t *testing.T) {
	s := on(t, "a", "b?")
	s.is(Idle, "a=waiting", "b=waiting")
	s.starts(Options{})
	s.is(Preparing, "a=waiting", "b=waiting")
	s.ready(Preparing, "a")
	s.is(Preparing, "a=ready", "b=waiting")
	s.ready(Preparing, "a", "b") // once more does no harm
	s.is(Prepared, "a=ready", "b=ready")
	s.Quiesce(s.now)
	s.is(Quiescing, "a=waiting", "b=waiting")
	s.ready(Quiescing, "b", "a")
	s.is(Committing, "a=ready", "b=ready")
	if got := s.Passed(); !slices.Equal(got, []Phase{Preparing, Prepared, Quiescing, Committing}) {
		t.Errorf("passed %v", got)
	}
	if _, due := s.Next(); due {
		t.Error("a deadline is left")
	}
}

func TestNobodyIsThere(t *testing.T) {
	s := on(t)
	s.starts(Options{})
	s.is(Prepared)
	s.Quiesce(s.now)
	s.is(Committing)
}

func TestSecondStart(t *testing.T) {
	s := on(t, "a")
	s.starts(Options{})
	for _, step := range []struct {
		phase Phase
		do    func()
	}{
		{Preparing, func() { s.ready(Preparing, "a") }},
		{Prepared, func() { s.Quiesce(s.now) }},
		{Quiescing, func() { s.ready(Quiescing, "a") }},
		{Committing, func() { s.Fail(s.now, "frozen") }},
		{Aborted, func() { s.resumes(Failure, "frozen", "a") }},
	} {
		var inProgress *InProgressError
		if _, err := s.Start(s.now, Options{}); !errors.As(err, &inProgress) || inProgress.Phase != step.phase {
			t.Errorf("a start while %s: %v", step.phase, err)
		}
		step.do()
	}
	s.starts(Options{})
	if got := s.Snapshot(); got.Round != 2 || got.Reason != "" || got.Cause != None || got.Guilty != nil {
		t.Errorf("the second round has something of the first: %+v", got)
	}
	s.succeeds("a")
}

func TestVeto(t *testing.T) {
	for _, phase := range []Phase{Preparing, Prepared, Quiescing} {
		t.Run(string(phase), func(t *testing.T) {
			s := on(t, "a", "b")
			s.starts(Options{})
			if phase != Preparing {
				s.ready(Preparing, "a", "b")
			}
			if phase == Quiescing {
				s.Quiesce(s.now)
			}
			// A veto for an earlier phase of the same round counts.
			if err := s.vetoes("b", Preparing); err != nil {
				t.Fatal(err)
			}
			s.is(Aborted, "a=waiting", "b=vetoed")
			if g := s.Snapshot().Guilty; len(g) != 1 || g[0].Name != "b" || g[0].State != Vetoed || g[0].Reason != "no" {
				t.Errorf("guilty: %+v", g)
			}
			s.resumes(Veto, "b (/b.service) vetoes: no", "a", "b")
			s.is(Resumed, "a=ready", "b=vetoed")
			s.starts(Options{})
			s.succeeds("a", "b")
			if err := s.vetoes("b", Quiescing); !isStale(err) {
				t.Errorf("a veto once the switch has begun: %v", err)
			}
			s.is(Committing)
		})
	}
}

func TestOptionalCallsNothingOff(t *testing.T) {
	s := on(t, "a", "veto?", "gone?", "late?")
	s.starts(Options{})
	s.ready(Preparing, "a")
	if err := s.vetoes("veto", Preparing); err != nil {
		t.Error(err)
	}
	s.Leave(s.now, "gone")
	s.is(Preparing, "a=ready", "veto=vetoed", "gone=gone", "late=waiting")
	s.after(time.Minute)
	s.is(Prepared, "a=ready", "veto=vetoed", "gone=gone", "late=late")
	s.Quiesce(s.now)
	s.is(Quiescing, "a=waiting", "veto=vetoed", "gone=gone", "late=late") // of these only a is waited for
	s.ready(Quiescing, "late")                                            // but who comes in time is counted
	s.ready(Quiescing, "a")
	s.is(Committing, "a=ready", "veto=vetoed", "gone=gone", "late=ready")
}

func TestDeadline(t *testing.T) {
	s := on(t, "a", "b", "c?")
	s.starts(Options{})
	s.ready(Preparing, "a")
	s.after(time.Minute - 1)
	s.is(Preparing)
	s.after(1)
	s.is(Aborted, "a=waiting", "b=late", "c=late")
	if g := s.Snapshot().Guilty; len(g) != 1 || g[0].Name != "b" {
		t.Errorf("guilty: %+v", g)
	}
	s.resumes(Timeout, "b (/b.service) did not answer to preparing in time", "a", "b", "c")

	s.starts(Options{})
	s.ready(Preparing, "a", "b", "c")
	s.Quiesce(s.now)
	s.ready(Quiescing, "b", "c")
	s.after(time.Minute)
	s.resumes(Timeout, "a (/a.service) did not answer to quiescing in time", "a", "b", "c")
}

func TestExtension(t *testing.T) {
	s := on(t, "a", "b")
	s.starts(Options{})
	s.ready(Preparing, "b")
	s.after(50 * time.Second)
	if err := s.extends("a", Preparing, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	s.after(29 * time.Second)
	s.is(Preparing, "a=waiting", "b=ready")
	if err := s.extends("a", Preparing, time.Second/2); err != nil { // doesn't take time away
		t.Fatal(err)
	}
	s.after(time.Second - 1)
	s.is(Preparing)
	// Up to ten times the time of the phase, of which 80 s have passed.
	if err := s.extends("a", Preparing, 520*time.Second+2); !errors.Is(err, ErrExtension) {
		t.Errorf("too much: %v", err)
	}
	if err := s.extends("a", Preparing, 520*time.Second); err != nil {
		t.Fatal(err)
	}
	// Who was ready may find that it isn't.
	if err := s.extends("b", Preparing, time.Minute); err != nil {
		t.Fatal(err)
	}
	s.is(Preparing, "a=waiting", "b=waiting")
	s.ready(Preparing, "a", "b")
	s.Quiesce(s.now)
	// The next phase has its own time.
	s.ready(Quiescing, "b")
	if err := s.extends("a", Preparing, time.Hour); !isStale(err) {
		t.Errorf("an extension of the phase before: %v", err)
	}
	s.after(time.Minute)
	s.is(Aborted, "a=late", "b=waiting")
}

func TestStaleVotes(t *testing.T) {
	s := on(t, "a", "b")
	vote := func(id string, round int, phase Phase) error {
		return s.Vote(s.now, Vote{ID: id, Round: round, Phase: phase, Ready: true})
	}
	if err := vote("a", 0, Preparing); !isStale(err) {
		t.Errorf("before any round: %v", err)
	}
	s.starts(Options{})
	if err := s.Cancel(s.now, "why"); err != nil {
		t.Fatal(err)
	}
	if err := vote("a", 1, Preparing); !isStale(err) {
		t.Errorf("in an aborted round: %v", err)
	}
	if err := s.vetoes("a", Preparing); !isStale(err) {
		t.Errorf("a veto in an aborted round: %v", err)
	}
	s.resumes(Cancelled, "it was cancelled: why", "a", "b")
	if err := vote("a", 1, Aborted); !isStale(err) {
		t.Errorf("after the end: %v", err)
	}
	s.starts(Options{})
	for _, phase := range []Phase{Preparing, Quiescing, Aborted} {
		if err := vote("a", 1, phase); !isStale(err) {
			t.Errorf("of the round before, for %s: %v", phase, err)
		}
	}
	for _, c := range []struct {
		id    string
		phase Phase
	}{{"a", Quiescing}, {"a", Aborted}, {"nobody", Preparing}} {
		if err := vote(c.id, 2, c.phase); !isStale(err) {
			t.Errorf("%s for %s: %v", c.id, c.phase, err)
		}
	}
	for _, phase := range []Phase{"", Idle, Committing, Resumed, "nonsense"} {
		if err := vote("a", 2, phase); !errors.Is(err, ErrPhase) {
			t.Errorf("for %q: %v", phase, err)
		}
	}
	s.is(Preparing, "a=waiting", "b=waiting")
	s.ready(Preparing, "a", "b")
	if err := vote("a", 2, Prepared); !errors.Is(err, ErrPhase) {
		t.Errorf("for prepared: %v", err)
	}
	s.Quiesce(s.now)
	if err := vote("a", 2, Preparing); !isStale(err) {
		t.Errorf("for the phase before: %v", err)
	}
	s.is(Quiescing, "a=waiting", "b=waiting")
}

func TestConnectionBreaks(t *testing.T) {
	for _, phase := range []Phase{Preparing, Prepared, Quiescing, Committing} {
		t.Run(string(phase), func(t *testing.T) {
			s := on(t, "a", "b")
			s.starts(Options{})
			if phase != Preparing {
				s.ready(Preparing, "a", "b")
			}
			if phase == Quiescing || phase == Committing {
				s.Quiesce(s.now)
			}
			if phase == Committing {
				s.ready(Quiescing, "a", "b")
				s.Leave(s.now, "b") // it is being stopped
				s.is(Committing, "a=ready", "b=gone")
				return
			}
			s.Leave(s.now, "b")
			s.is(Aborted, "a=waiting", "b=gone")
			if err := s.vetoes("b", phase); !isStale(err) {
				t.Errorf("a vote of who is gone: %v", err)
			}
			s.joins("b2") // it is back, and knows of nothing
			s.resumes(Departure, "the connection of b (/b.service) ended", "a")
			s.starts(Options{})
			s.is(Preparing, "a=waiting", "b2=waiting")
			s.succeeds("a", "b2")
		})
	}
	s := on(t, "a", "b")
	s.Leave(s.now, "b")
	s.Leave(s.now, "nobody")
	s.is(Idle, "a=waiting")
}

func TestJoiningLate(t *testing.T) {
	s := on(t, "a")
	s.starts(Options{})
	s.after(50 * time.Second)
	s.joins("b")
	s.ready(Preparing, "a")
	s.is(Preparing, "a=ready", "b=waiting")
	s.after(59 * time.Second) // it is a required one, and has all the time that others had
	s.is(Preparing)
	s.ready(Preparing, "b")
	s.joins("c") // while prepared
	s.Quiesce(s.now)
	s.joins("d")
	s.ready(Quiescing, "a", "b", "c")
	s.is(Quiescing, "a=ready", "b=ready", "c=ready", "d=waiting")
	s.ready(Quiescing, "d")
	s.is(Committing)
	s.joins("e")
	s.is(Committing)
	s.Fail(s.now, "it did not freeze")
	s.resumes(Failure, "it did not freeze", "a", "b", "c", "d")
}

// Who joins again and again holds nobody up for longer than who asks for more time.
func TestJoiningAgainAndAgain(t *testing.T) {
	for _, c := range []struct {
		who   string
		o     Options
		until time.Duration
	}{
		{"x%d?", Options{}, time.Minute},
		{"x%d?", Options{UnderWay: true}, time.Minute},
		{"x%d", Options{UnderWay: true}, ExtensionMax * time.Minute},
	} {
		s := on(t, "a")
		s.starts(c.o)
		s.ready(Preparing, "a")
		s.Quiesce(s.now)
		began := s.now
		s.joins(fmt.Sprintf(c.who, 0))
		s.ready(Quiescing, "a")
		for i := 1; s.Phase() == Quiescing && i < 1000; i++ {
			s.joins(fmt.Sprintf(c.who, i))
			s.Leave(s.now, fmt.Sprintf("x%d", i-1))
			s.after(10 * time.Second)
		}
		s.is(Committing)
		if took := s.now.Sub(began); took != c.until {
			t.Errorf("%+v: it took %v", c, took)
		}
	}
}

// The number of those who are shown though they have left is bounded, and they are the last ones.
func TestManyLeave(t *testing.T) {
	s := on(t, "a", "b?")
	s.starts(Options{})
	s.Leave(s.now, "b")
	for i := range 1000 {
		s.joins(fmt.Sprintf("x%d?", i))
		s.after(time.Millisecond)
		s.Leave(s.now, fmt.Sprintf("x%d", i))
	}
	if n := len(s.Snapshot().Participants); n != 1+goneMax {
		t.Errorf("there are %d", n)
	}
	if _, there := s.Of("b"); there {
		t.Error("the first that left is still there")
	}
	if last, _ := s.Of("x999"); last.State != Gone {
		t.Errorf("the last that left: %+v", last)
	}
	s.succeeds("a")
}

// Who says the same again is in that state since the first time.
func TestSaysTheSameAgain(t *testing.T) {
	s := on(t, "a", "b?")
	s.starts(Options{})
	began := s.now
	for range 3 {
		s.ready(Preparing, "b")
		if err := s.extends("a", Preparing, time.Second); err != nil {
			t.Error(err)
		}
		s.after(time.Second)
	}
	for _, p := range s.Snapshot().Participants {
		if !p.Since.Equal(began) {
			t.Errorf("%s is %s since %v", p.Name, p.State, p.Since.Sub(began))
		}
	}
	s.vetoes("b", Preparing)
	vetoed := s.now
	s.after(time.Second)
	s.vetoes("b", Preparing)
	if b, _ := s.Of("b"); !b.Since.Equal(vetoed) {
		t.Errorf("b is %s since %v", b.State, b.Since.Sub(vetoed))
	}
}

// A reason stays readable, however many are late.
func TestManyAreLate(t *testing.T) {
	s := on(t)
	for i := range 1000 {
		s.joins(fmt.Sprintf("p%d", i))
	}
	s.starts(Options{})
	s.after(time.Minute)
	s.is(Aborted)
	if got := s.Reason(); !strings.HasSuffix(got, ", p7 (/p7.service), 992 others did not answer to preparing in time") {
		t.Error(got)
	}
	if n := len(s.Snapshot().Guilty); n != 1000 {
		t.Errorf("%d are guilty", n)
	}
}

func TestWithoutAnOwners(t *testing.T) {
	s := on(t)
	s.Join(s.now, "1", "cache", "/a.service", true)
	s.Join(s.now, "2", "cache", "/b.service", true)
	s.starts(Options{Without: []string{"/a.service/cache"}})
	s.ready(Preparing, "2")
	s.is(Prepared, "cache=waiting", "cache=ready")
	s.Join(s.now, "3", "cache", "/a.service", true)
	s.Quiesce(s.now)
	s.ready(Quiescing, "2")
	s.is(Committing)
}

func TestWithout(t *testing.T) {
	s := on(t, "a", "b", "c", "d")
	s.starts(Options{Without: []string{"b", "c", "d", "unknown"}})
	s.is(Preparing, "a=waiting", "b=waiting", "c=waiting", "d=waiting")
	if err := s.vetoes("b", Preparing); err != nil {
		t.Error(err)
	}
	s.Leave(s.now, "c")
	s.is(Preparing)
	s.ready(Preparing, "a")
	s.is(Prepared, "a=ready", "b=vetoed", "c=gone", "d=waiting")
	s.Quiesce(s.now)
	s.ready(Quiescing, "a")
	s.is(Committing)
	s.Fail(s.now, "x")
	s.resumes(Failure, "x", "a", "b", "d")
	s.joins("c")
	s.starts(Options{})
	s.ready(Preparing, "a", "c", "d")
	s.is(Preparing) // b is waited for again
}

func TestCancel(t *testing.T) {
	s := on(t, "a")
	if err := s.Cancel(s.now, ""); !errors.Is(err, ErrNoRound) {
		t.Errorf("with no round: %v", err)
	}
	s.starts(Options{})
	if err := s.Cancel(s.now, ""); err != nil {
		t.Error(err)
	}
	if err := s.Cancel(s.now, "again"); err != nil {
		t.Error(err)
	}
	s.resumes(Cancelled, "it was cancelled", "a")
	s.starts(Options{})
	s.succeeds("a")
	var tooLate *InProgressError
	if err := s.Cancel(s.now, ""); !errors.As(err, &tooLate) || tooLate.Phase != Committing {
		t.Errorf("once the switch has begun: %v", err)
	}
}

func TestWhoDoesNotSayThatItRunsOn(t *testing.T) {
	s := on(t, "a", "b", "c?")
	s.starts(Options{})
	s.Cancel(s.now, "")
	s.Dropped(s.now, nil)
	s.ready(Aborted, "a")
	s.Leave(s.now, "c")
	s.after(ResumeTimeout - 1)
	s.is(Aborted, "a=ready", "b=waiting", "c=gone")
	s.after(1)
	s.is(Resumed, "a=ready", "b=late", "c=gone")
}

func TestKernelStaysLoaded(t *testing.T) {
	s := on(t, "a")
	s.starts(Options{})
	s.Cancel(s.now, "x")
	s.ready(Aborted, "a")
	s.Dropped(s.now, errors.New("busy"))
	s.is(Resumed)
	if got := s.Snapshot().Reason; !strings.Contains(got, "still loaded") || !strings.Contains(got, "busy") {
		t.Errorf("reason %q", got)
	}
}

func TestDryRun(t *testing.T) {
	s := on(t, "a", "b?")
	s.starts(Options{DryRun: true})
	s.ready(Preparing, "a", "b")
	s.resumes(Rehearsed, RehearsedReason, "a", "b")
	s.starts(Options{DryRun: true})
	s.vetoes("a", Preparing)
	s.resumes(Veto, "a (/a.service) vetoes: no", "a", "b")
	s.starts(Options{})
	s.succeeds("a", "b")
}

// Once PID 1 is on its way nothing helps who isn't ready, and nothing may harm who is.
func TestUnderWay(t *testing.T) {
	s := on(t, "a", "veto", "gone", "late")
	s.starts(Options{UnderWay: true})
	s.ready(Preparing, "a")
	s.vetoes("veto", Preparing)
	s.Leave(s.now, "gone")
	s.Fail(s.now, "x")
	var inProgress *InProgressError
	if err := s.Cancel(s.now, ""); !errors.As(err, &inProgress) {
		t.Errorf("cancel: %v", err)
	}
	s.is(Preparing, "a=ready", "veto=vetoed", "gone=gone", "late=waiting")
	s.after(time.Minute)
	s.is(Prepared, "a=ready", "veto=vetoed", "gone=gone", "late=late")
	s.Quiesce(s.now)
	s.ready(Quiescing, "a")
	s.is(Committing)
}

// What PID 1 was on its way to is called off, and so is the round, however far it is.
func TestUnderWayNoMore(t *testing.T) {
	for _, phase := range []Phase{Preparing, Quiescing, Committing} {
		t.Run(string(phase), func(t *testing.T) {
			s := on(t, "a", "b?")
			s.starts(Options{UnderWay: true})
			if phase != Preparing {
				s.ready(Preparing, "a", "b")
				s.Quiesce(s.now)
			}
			if phase == Committing {
				s.ready(Quiescing, "a", "b")
			}
			s.is(phase)
			s.Stay(s.now, "the shutdown was called off")
			s.resumes(Cancelled, "the shutdown was called off", "a", "b")
			s.starts(Options{})
			s.Stay(s.now, "x") // says nothing of a round that does its own switch
			s.succeeds("a", "b")
			s.Stay(s.now, "x")
			s.is(Committing)
		})
	}
}

func TestDefaultTimeout(t *testing.T) {
	s := on(t, "a")
	if _, err := s.Start(s.now, Options{}); err != nil {
		t.Fatal(err)
	}
	if next, due := s.Next(); !due || next.Sub(s.now) != DefaultTimeout {
		t.Errorf("%v, %v", next.Sub(s.now), due)
	}
}

// Whatever happens in whatever order, a round comes to an end, and a good one can follow.
func FuzzRounds(f *testing.F) {
	f.Add([]byte("aSvqvA"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Fuzz(func(t *testing.T, steps []byte) {
		s := on(t, "a", "b?", "c")
		joined := 3
		phases := []Phase{Preparing, Quiescing, Aborted, Prepared}
		for _, b := range steps {
			who := string('a' + rune(b>>4)%rune(joined))
			before := s.Phase()
			switch b % 16 {
			case 0, 1, 2, 3:
				s.Vote(s.now, Vote{ID: who, Round: s.round, Phase: phases[b%4], Ready: true})
			case 4, 5:
				s.Vote(s.now, Vote{ID: who, Round: s.round, Phase: phases[b%4]})
			case 6, 7:
				s.Vote(s.now, Vote{ID: who, Round: s.round, Phase: phases[b%4], Extend: time.Duration(b) * time.Second})
			case 8:
				s.Start(s.now, Options{Timeout: time.Minute, DryRun: b>>4 == 1, UnderWay: b>>4 == 2, Without: []string{who}})
			case 9:
				s.Cancel(s.now, "")
			case 10:
				s.Fail(s.now, "x")
				if b>>4 == 2 {
					s.Stay(s.now, "x")
				}
			case 11:
				s.Quiesce(s.now)
			case 12:
				if before == Aborted {
					s.Dropped(s.now, nil)
				}
			case 13:
				s.Leave(s.now, who)
			case 14:
				if joined < 20 {
					s.joins(fmt.Sprintf("%c", 'a'+joined))
					joined++
				}
			case 15:
				s.after(time.Duration(b) * time.Second)
			}
			if after := s.Phase(); before == Committing && after != Committing && after != Aborted {
				t.Fatalf("from %s to %s", before, after)
			}
			for _, p := range s.Snapshot().Participants {
				if s.Phase() == Committing && p.Required && !slices.Contains(s.options.Without, p.Name) && !s.options.UnderWay && p.State != Ready && p.State != Gone && p.Since.Before(s.began) {
					t.Fatalf("the switch begins, and %s is %s", p.Name, p.State)
				}
			}
		}
		for range 20 {
			switch s.Phase() {
			case Prepared:
				s.Quiesce(s.now)
			case Committing:
				s.options.UnderWay = false
				s.Fail(s.now, "x")
			case Aborted:
				s.Dropped(s.now, nil)
			}
			s.after(time.Hour)
		}
		if !s.Phase().Over() {
			t.Fatalf("it does not end: %+v", s.Snapshot())
		}
		s.starts(Options{})
		for _, p := range s.Snapshot().Participants {
			s.Vote(s.now, Vote{ID: p.ID, Round: s.round, Phase: Preparing, Ready: true})
		}
		s.Quiesce(s.now)
		for _, p := range s.Snapshot().Participants {
			s.Vote(s.now, Vote{ID: p.ID, Round: s.round, Phase: Quiescing, Ready: true})
		}
		s.is(Committing)
	})
}
