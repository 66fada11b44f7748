// SPDX-License-Identifier: MIT

package reconcile

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/timeline"
)

const cache = "/cache.service"

var (
	ram   = name.Kernel(cache, "ram")
	yes   = true
	no    = false
	given = []timeline.Session{{Name: "ram", KernelName: ram}} // List doesn't say whose it is
)

func always(is bool) func(string) bool { return func(string) bool { return is } }

func TestOutcomes(t *testing.T) {
	incoming := func(claimed *bool) Listing {
		return Listing{Sessions: []Session{{Name: "ram", KernelName: ram, Direction: "incoming", Parked: claimed != nil, Claimed: claimed, Holders: []Holder{{Unit: "cache.service"}}}}}
	}
	for what, c := range map[string]struct {
		carried, back []timeline.Session
		now           Listing
		soon, late    State
		owner         string
		reason        string // when it is late
	}{
		"its owner has got it": {given, nil, Listing{Returns: []Return{{Owner: cache, KernelName: ram}}}, Reclaimed, Reclaimed, cache, ""},
		"holdfastd was started again since": {given, []timeline.Session{{Owner: cache, KernelName: ram, State: "reclaimed"}}, Listing{},
			Reclaimed, Reclaimed, cache, ""},
		"nobody has seen it, and its owner begun anew": {given, nil, Listing{Sessions: []Session{{KernelName: ram, Direction: "outgoing"}}}, Waiting, Lost, "", "has made another one of that name"},
		"claimed, and holdfastd was started again":     {given, nil, incoming(&yes), Reclaimed, Reclaimed, "", ""},
		"parked":             {given, nil, incoming(&no), Waiting, Overdue, "", "parked with holdfastd; its owner hasn't asked for it"},
		"in a unit's store":  {given, nil, incoming(nil), Waiting, Overdue, "", "in the fd store of cache.service; its owner"},
		"nobody noted it":    {nil, nil, incoming(&no), Waiting, Overdue, "", "parked"},
		"released":           {given, nil, Listing{Returns: []Return{{KernelName: ram, Released: true}}}, Released, Released, "", ""},
		"released by policy": {given, nil, Listing{Returns: []Return{{Owner: cache, KernelName: ram, Released: true, Rule: "caches"}}}, Released, Released, cache, "(caches)"},
		"not there":          {given, nil, Listing{}, Waiting, Lost, "", "it was committed, and is in no store now"},
		"it was somewhere":   {[]timeline.Session{{Owner: cache, Name: "ram", KernelName: ram, Where: "in the fd store of cache.service"}}, nil, Listing{}, Waiting, Lost, cache, "it was committed (in the fd store of cache.service), and is in no store now"},
		"whose it can't be":  {given, nil, Listing{Returns: []Return{{Owner: "/thief.service", KernelName: ram}}}, Reclaimed, Reclaimed, "", ""},
	} {
		for late, want := range map[bool]State{false: c.soon, true: c.late} {
			got := Outcomes(Before{Carried: c.carried, Back: c.back}, c.now, always(late))
			if len(got) != 1 || got[0].State != want || got[0].Name != "ram" || got[0].Owner != c.owner {
				t.Errorf("%s, late %v: %+v, want %s", what, late, got, want)
			}
			if len(got) == 1 && late && (!strings.Contains(got[0].Reason, c.reason) || (c.reason == "") != (got[0].Reason == "")) {
				t.Errorf("%s: %s for the reason %q, want %q", what, want, got[0].Reason, c.reason)
			}
		}
	}
	for what, now := range map[string]Listing{
		"a session of this kernel": {Sessions: []Session{{KernelName: ram, Direction: "outgoing"}}},
		"somebody else's":          {Sessions: []Session{{KernelName: "systemd", Direction: "incoming", Foreign: true}}},
	} {
		if got := Outcomes(Before{}, now, always(true)); len(got) > 0 {
			t.Errorf("%s came back: %+v", what, got)
		}
	}
}

// TestRenewed has a session be there at one look, and one of this kernel in its place at the next.
func TestRenewed(t *testing.T) {
	got := Outcomes(Before{Carried: given, Seen: map[string]bool{ram: true}}, Listing{Sessions: []Session{{KernelName: ram, Direction: "outgoing"}}}, always(true))
	if len(got) != 1 || got[0].State != Reclaimed {
		t.Errorf("%+v", got)
	}
}

// TestWhoWasntReady has the kernel be left without three optional participants: one had committed something before, one
// had nothing, and one holds its session itself up to the kexec.
func TestWhoWasntReady(t *testing.T) {
	answers := func(states ...string) (all []timeline.Answered) {
		for _, s := range states {
			all = append(all, timeline.Answered{State: s, Reason: "why"})
		}
		return all
	}
	own := name.Kernel("/own.service", "ram")
	before := Before{Carried: given, Participants: []timeline.Participant{
		{Name: "cache", Owner: cache, Answers: answers("ready", "late")},
		{Name: "stats", Owner: "/stats.service", Answers: answers("vetoed")},
		{Name: "own", Owner: "/own.service", Answers: answers("gone")},
		{Name: "good", Owner: "/good.service", Answers: answers("late", "ready")},
	}}
	now := Listing{Returns: []Return{{Owner: "/own.service", KernelName: own, Name: "ram"}}}
	got := Outcomes(before, now, always(true))
	want := []Outcome{
		{Owner: cache, Name: "ram", State: Lost, Reason: "the kernel was switched without its participant cache, which was late: why; it was committed, and is in no store now"},
		{Owner: "/own.service", Name: "ram", State: Reclaimed},
		{Owner: "/stats.service", Name: "stats", State: Lost, Reason: "the kernel was switched without its participant stats, which vetoed: why, and had nothing committed"},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, o := range want {
		if g := got[i]; g.Owner != o.Owner || g.Name != o.Name || g.State != o.State || !strings.HasPrefix(g.Reason, o.Reason) {
			t.Errorf("%+v, want %+v", g, o)
		}
	}
	for _, o := range Outcomes(before, now, always(false)) {
		if o.State == Lost {
			t.Errorf("lost, before its time is over: %+v", o)
		}
	}
}

// TestEachHasItsOwnTime has one owner be late, and the other not yet.
func TestEachHasItsOwnTime(t *testing.T) {
	slow := name.Kernel("/slow.service", "ram")
	got := Outcomes(Before{Carried: append(given, timeline.Session{Owner: "/slow.service", KernelName: slow})}, Listing{}, func(kernelName string) bool { return kernelName == ram })
	if len(got) != 2 || got[0].State != Lost || got[1].State != Waiting || got[1].Owner != "/slow.service" {
		t.Errorf("%+v", got)
	}
}

func TestIn(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1900 * time.Millisecond: "1s", 90 * time.Second: "1m", 7*time.Hour + 5*time.Minute + time.Second: "7h5m", 7*24*time.Hour - time.Second: "6d23h",
	} {
		if got := In(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestWhatIsCarried(t *testing.T) {
	l := Listing{Sessions: []Session{
		{KernelName: ram, Name: "ram", Owner: cache, Direction: "outgoing", Parked: true}, {KernelName: ram, Name: "ram", Direction: "incoming"}, {KernelName: "x", Direction: "outgoing", Foreign: true},
	}}
	if got := l.Carried(); len(got) != 1 || got[0] != (timeline.Session{Owner: cache, Name: "ram", KernelName: ram, Where: "parked with holdfastd"}) {
		t.Errorf("%+v", got)
	}
}
