// SPDX-License-Identifier: MIT

package updated

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

const patience = 20 * time.Second

// host stands for the kernel, PID 1 and holdfastd.
type host struct {
	*Updated
	t       *testing.T
	address string
	stop    func() // and wait

	mu       sync.Mutex
	loaded   bool
	underWay bool
	deaf     bool       // holdfastd doesn't answer any more
	switches chan error // what Switch returns
	ended    chan struct{}
}

const rules = `
[[rule]]
name = "required"
cgroup = "any"
uid = "any"
owner = "test"
required = true
`

// on has a holdfast-updated answer. Who asks is the test itself, by this policy.
func on(t *testing.T, rules string, change func(h *host)) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it takes root: nobody else may start an update")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.toml"), []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, address: filepath.Join(dir, "socket"), loaded: true, switches: make(chan error), ended: make(chan struct{})}
	h.Updated = &Updated{
		Cgroups: cgroups, Log: slog.New(slog.DiscardHandler), Mark: filepath.Join(dir, "mark"),
		Loaded:   func() (bool, error) { return h.is(&h.loaded), nil },
		Unload:   func(context.Context) error { h.set(&h.loaded, false); return nil },
		UnderWay: func(context.Context) (bool, error) { return h.is(&h.underWay), nil },
		Orchestrator: func(context.Context) (Watched, error) {
			return Watched{h.ended, func() bool { return !h.is(&h.deaf) }}, nil
		},
		lookInterval: time.Millisecond,
		Switch: func(ctx context.Context) error {
			select {
			case err := <-h.switches:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
	h.SetPolicy(loaded)
	if change != nil {
		change(h)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, listener) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	t.Cleanup(h.stop)
	return h
}

func (h *host) is(what *bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return *what
}

func (h *host) set(what *bool, to bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*what = to
}

// peerOf is a connection.
type peerOf struct {
	t    *testing.T
	conn *varlink.Client
}

func (h *host) dial() *peerOf {
	h.t.Helper()
	conn, err := varlink.Dial(context.Background(), h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	return &peerOf{h.t, conn}
}

// call returns the reply, or the error's name and parameters.
func (h *host) call(method, in string) string {
	h.t.Helper()
	p := h.dial()
	defer p.conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out json.RawMessage
	if !strings.Contains(method, ".") {
		method = iface + "." + method
	}
	_, err := p.conn.Call(ctx, method, json.RawMessage(in), nil, &out)
	return said(h.t, out, err)
}

func said(t *testing.T, out json.RawMessage, err error) string {
	t.Helper()
	var refused *varlink.Error
	if errors.As(err, &refused) {
		return strings.TrimPrefix(strings.TrimPrefix(refused.Error(), iface+"."), "org.varlink.service.")
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// stream has the replies of a call, and at last what said makes of its end.
func (h *host) stream(method, in string) (<-chan string, func()) {
	h.t.Helper()
	p := h.dial()
	replies := make(chan string, 100)
	go func() {
		err := p.conn.CallMore(context.Background(), iface+"."+method, json.RawMessage(in), nil, func(out json.RawMessage, fds []*fd.FD) error {
			fd.CloseAll(fds)
			replies <- string(out)
			return nil
		})
		var refused *varlink.Error
		if errors.As(err, &refused) {
			replies <- said(h.t, nil, err)
		}
		close(replies)
	}()
	return replies, func() { p.conn.Close() }
}

// next waits for a reply with this in it.
func next(t *testing.T, replies <-chan string, part string) string {
	t.Helper()
	var last string
	for timeout := time.After(patience); ; {
		select {
		case r, open := <-replies:
			if !open {
				t.Fatalf("the replies ended without %s; the last is %s", part, last)
			}
			if last = r; strings.Contains(r, part) {
				return r
			}
		case <-timeout:
			t.Fatalf("there is no reply with %s; the last is %s", part, last)
		}
	}
}

// member is a participant.
type member struct {
	h     *host
	id    string
	said  <-chan string
	leave func()
}

func (h *host) joins(in string) *member {
	h.t.Helper()
	said, leave := h.stream("Join", in)
	var first struct{ ID string }
	text := next(h.t, said, "")
	if err := json.Unmarshal([]byte(text), &first); err != nil || first.ID == "" {
		h.t.Fatalf("Join is answered %s", text)
	}
	return &member{h, first.ID, said, leave}
}

func (m *member) vote(round int, phase, rest string) string {
	m.h.t.Helper()
	return m.h.call("Vote", fmt.Sprintf(`{"id":"%s","round":%d,"phase":"%s",%s}`, m.id, round, phase, rest))
}

// ready waits for the phase, and is ready for it.
func (m *member) ready(round int, phases ...string) {
	m.h.t.Helper()
	for _, phase := range phases {
		next(m.h.t, m.said, `"phase":"`+phase+`"`)
		if got := m.vote(round, phase, `"ready":true`); got != "{}" {
			m.h.t.Errorf("a vote for %s: %s", phase, got)
		}
	}
}

func TestGoodUpdate(t *testing.T) {
	var passed []update.Phase
	h := on(t, rules, func(h *host) {
		h.Changed = func(_ time.Time, s update.Snapshot) {
			if n := len(passed); n == 0 || passed[n-1] != s.Phase {
				passed = append(passed, s.Phase)
			}
		}
	})
	a := h.joins(`{"name":"a"}`)
	started, _ := h.stream("Start", `{"timeoutUSec":60000000}`)
	told := next(t, a.said, `"preparing"`)
	var deadline struct{ DeadlineUSec int64 }
	if err := json.Unmarshal([]byte(told), &deadline); err != nil || deadline.DeadlineUSec < 50e6 || deadline.DeadlineUSec > 60e6 {
		t.Errorf("told %s", told)
	}
	next(t, started, `"preparing"`)
	a.vote(1, "preparing", `"ready":true`)
	next(t, a.said, `"prepared"`)
	a.ready(1, "quiescing")
	next(t, a.said, `"committing"`)
	next(t, started, `"committing"`)
	select {
	case h.switches <- errors.New("frozen"):
	case <-time.After(patience):
		t.Fatal("nobody switches")
	}
	if got := next(t, a.said, `"aborted"`); !strings.Contains(got, "the switch failed: frozen") {
		t.Errorf("told %s", got)
	}
	a.vote(1, "aborted", `"ready":true`)
	next(t, a.said, `"resumed"`)
	if got := next(t, started, `"resumed"`); !strings.Contains(got, "the switch failed: frozen") {
		t.Errorf("Start: %s", got)
	}
	if h.is(&h.loaded) {
		t.Error("the kernel is still loaded")
	}
	if _, err := os.Stat(h.Mark); err == nil {
		t.Error("the mark is still there")
	}
	a.leave()
	h.stop()
	if want := []update.Phase{update.Idle, update.Preparing, update.Prepared, update.Quiescing, update.Committing, update.Aborted, update.Resumed}; !reflect.DeepEqual(passed, want) {
		t.Errorf("Changed was told %v", passed)
	}
}

// Start begins a round, and returns once it is there.
func (h *host) Start(t *testing.T) <-chan string {
	t.Helper()
	started, _ := h.stream("Start", `{}`)
	next(t, started, `"preparing"`)
	return started
}

func TestRequired(t *testing.T) {
	const optional = "[[rule]]\nname = 'plain'\ncgroup = 'any'\nuid = 'any'\nowner = 'test'\n"
	const denied = "[[rule]]\nname = 'no'\ncgroup = 'any'\nuid = 'any'\nallow = false\n"
	for _, c := range []struct{ name, rules, in, want string }{
		{"the rule says so", rules, `{"name":"a"}`, `"required":true`},
		{"it asks for it", rules, `{"name":"a","required":true}`, `"required":true`},
		{"it does not want to", rules, `{"name":"a","required":false}`, `"required":false`},
		{"the rule does not say so", optional, `{"name":"a"}`, `"required":false`},
		{"the rule does not let it", optional, `{"name":"a","required":true}`, `NotPermitted {"reason":"the rule does not let test be a required participant (required = true)","rule":"plain"}`},
		{"the rule denies", denied, `{"name":"a"}`, `NotPermitted {"reason":"sessions are denied`},
		{"a bad name", rules, `{"name":"../a"}`, `InvalidParameter {"parameter":"name"}`},
		{"no name", rules, `{}`, `InvalidParameter {"parameter":"name"}`},
		{"too much", rules, `{"name":"a","more":1}`, `InvalidParameter {"parameter":"more"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := on(t, c.rules, nil)
			said, leave := h.stream("Join", c.in)
			first := next(t, said, "")
			if strings.HasPrefix(c.want, `"`) {
				first = h.call("Status", `{}`)
			}
			if !strings.Contains(first, c.want) {
				t.Errorf("%s; want %s", first, c.want)
			}
			leave()
		})
	}
	h := on(t, rules, nil)
	if got := h.call("Join", `{"name":"a"}`); got != "ExpectedMore" {
		t.Errorf("Join without more: %s", got)
	}
}

func TestVotes(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	if got := a.vote(0, "preparing", `"ready":true`); got != `StaleVote {"round":0}` {
		t.Errorf("before a round: %s", got)
	}
	h.Start(t)
	for _, c := range []struct{ round, phase, rest, want string }{
		{"2", "preparing", `"ready":true`, `StaleVote {"round":1}`},
		{"1", "quiescing", `"ready":true`, `StaleVote {"round":1}`},
		{"1", "nonsense", `"ready":true`, `InvalidParameter {"parameter":"phase"}`},
		{"1", "preparing", `"ready":true,"extendUSec":5`, `InvalidParameter {"parameter":"extendUSec"}`},
		{"1", "preparing", `"ready":false,"extendUSec":0`, `InvalidParameter {"parameter":"extendUSec"}`},
		{"1", "preparing", `"ready":false,"extendUSec":9223372036854775807`, `InvalidParameter {"parameter":"extendUSec"}`},
		{"1", "preparing", `"ready":false,"extendUSec":100000000000`, `InvalidParameter {"parameter":"extendUSec"}`},
		{"1", "preparing", `"ready":1`, `InvalidParameter {"parameter":"ready"}`},
		{"1", "preparing", `"ready":false,"extendUSec":1000000,"reason":"a\nb\u001b[31m"`, `{}`},
		{"1", "preparing", `"ready":true`, `{}`},
	} {
		if got := h.call("Vote", fmt.Sprintf(`{"id":"%s","round":%s,"phase":"%s",%s}`, a.id, c.round, c.phase, c.rest)); got != c.want {
			t.Errorf("round %s, %s, %s: %s, want %s", c.round, c.phase, c.rest, got, c.want)
		}
	}
	// What it writes is shown on terminals.
	if got := h.call("Vote", `{"id":"`+a.id+`","round":1,"phase":"quiescing","ready":false,"reason":"a\nb\u001b[31m\u009b"}`); got != "{}" {
		t.Errorf("a veto: %s", got)
	}
	if got := h.call("Status", `{}`); !strings.Contains(got, `"reason":"a b [31m "`) {
		t.Errorf("status: %s", got)
	}
}

// Only who is of the same owner may vote for a participant.
func TestVoteOfAnother(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.toml"), []byte(strings.ReplaceAll(rules, `"test"`, `"other"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.SetPolicy(other)
	if got := a.vote(1, "preparing", `"ready":true`); got != `NotPermitted {"reason":"that participant belongs to somebody else"}` {
		t.Errorf("%s", got)
	}
	if got := h.call("Status", `{}`); !strings.Contains(got, `"state":"waiting"`) {
		t.Errorf("%s", got)
	}
}

func TestRefusedBeforeAnything(t *testing.T) {
	h := on(t, rules, func(h *host) {
		h.Check = func(context.Context, *Target) ([]Finding, error) {
			return []Finding{{ID: "fine", Severity: "ok", Text: "t"}, {ID: "twice", Severity: "error", Text: "in two stores", Hint: "take it out"}}, nil
		}
	})
	a := h.joins(`{"name":"a"}`)
	h.set(&h.loaded, false)
	if got := h.call("Start", `{}`); got != "NothingLoaded" {
		t.Errorf("with nothing loaded: %s", got)
	}
	h.set(&h.loaded, true)
	if got := h.call("Start", `{}`); got != `Blocked {"findings":[{"id":"twice","severity":"error","text":"in two stores","hint":"take it out"}]}` {
		t.Errorf("with findings: %s", got)
	}
	if !h.is(&h.loaded) {
		t.Error("the kernel was unloaded, and nothing had begun")
	}
	started, _ := h.stream("Start", `{"force":true}`)
	next(t, started, `"preparing"`)
	// a was told of this round and none before.
	if got := next(t, a.said, `"preparing"`); !strings.Contains(got, `"round":1`) {
		t.Errorf("%s", got)
	}
	for _, method := range []string{"Start", "Unload"} {
		if got := h.call(method, `{}`); got != `InProgress {"phase":"preparing"}` {
			t.Errorf("%s meanwhile: %s", method, got)
		}
	}
	if got := h.call("Start", `{"timeoutUSec":0}`); got != `InvalidParameter {"parameter":"timeoutUSec"}` {
		t.Errorf("no time: %s", got)
	}
}

func TestOrchestratorIsNotThere(t *testing.T) {
	h := on(t, rules, func(h *host) {
		h.Orchestrator = func(context.Context) (Watched, error) { return Watched{}, errors.New("connection refused") }
	})
	if got := h.call("Start", `{}`); !strings.HasPrefix(got, `Blocked {"findings":[{"id":"orchestrator","severity":"error"`) || !strings.Contains(got, "connection refused") {
		t.Errorf("%s", got)
	}
}

func TestOrchestratorEnds(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	close(h.ended)
	if got := next(t, a.said, `"aborted"`); !strings.Contains(got, "holdfastd ended") {
		t.Errorf("%s", got)
	}
}

// A participant may hear of holdfastd's end first, and veto for that: the cause is the same.
func TestOrchestratorEndsAndAParticipantIsFirst(t *testing.T) {
	for name, reacts := range map[string]func(a *member){
		"with a veto":    func(a *member) { a.vote(1, "preparing", `"ready":false,"reason":"connection refused"`) },
		"with its death": func(a *member) { a.leave() },
	} {
		t.Run(name, func(t *testing.T) {
			h := on(t, rules, nil)
			a, b := h.joins(`{"name":"a"}`), h.joins(`{"name":"b"}`)
			started := h.Start(t)
			h.set(&h.deaf, true)
			reacts(a)
			if got := next(t, b.said, `"aborted"`); !strings.Contains(got, "holdfastd ended") {
				t.Errorf("%s", got)
			}
			b.vote(1, "aborted", `"ready":true`)
			a.vote(1, "aborted", `"ready":true`)
			if got := next(t, started, `"resumed"`); !strings.Contains(got, "holdfastd ended") {
				t.Errorf("Start: %s", got)
			}
		})
	}
}

func TestWatchOrchestrator(t *testing.T) {
	h := on(t, rules, nil) // any varlink service does
	ctx, cancel := context.WithCancel(t.Context())
	w, err := WatchOrchestrator(ctx, h.address)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !w.Answers() {
			t.Fatal("it does not answer")
		}
	}
	select {
	case <-w.Ended:
		t.Fatal("it has ended")
	default:
	}
	h.stop()
	if w.Answers() {
		t.Error("it has ended, and answers")
	}
	<-w.Ended
	cancel()
	if _, err := WatchOrchestrator(t.Context(), h.address); err == nil {
		t.Error("nobody is there, and answers")
	}
}

func TestNotThereYet(t *testing.T) {
	h := on(t, rules, nil)
	for method, in := range map[string]string{"Check": `{}`, "Load": `{"target":{}}`, "Report": `{}`} {
		if got := h.call(method, in); got != `MethodNotImplemented {"method":"`+iface+`.`+method+`"}` {
			t.Errorf("%s: %s", method, got)
		}
	}
	if got := h.call("Cancel", `{}`); got != "{}" {
		t.Errorf("a cancel of nothing: %s", got)
	}
	if got := h.call("Status", `{}`); got != `{"round":0,"phase":"idle","participants":[],"loaded":true,"outcomes":[]}` {
		t.Errorf("%s", got)
	}
	if got := h.call("Unload", `{}`); got != "{}" || h.is(&h.loaded) {
		t.Errorf("%s", got)
	}
}

// A killed one's kernel is dropped by the next; and not if nobody had begun.
func TestLeftByAnother(t *testing.T) {
	h := on(t, rules, func(h *host) {
		if err := h.mark(markRound); err != nil {
			t.Fatal(err)
		}
	})
	if got := h.call("Status", `{}`); !strings.Contains(got, `"loaded":false`) {
		t.Errorf("%s", got)
	}
	if _, err := os.Stat(h.Mark); err == nil {
		t.Error("the mark is still there")
	}
	h = on(t, rules, nil)
	if got := h.call("Status", `{}`); !strings.Contains(got, `"loaded":true`) {
		t.Errorf("%s", got)
	}
}

// PID 1 is on its way already: the round can't be called off, and the switch is PID 1's.
func TestUnderWay(t *testing.T) {
	h := on(t, rules, nil)
	a, b := h.joins(`{"name":"a"}`), h.joins(`{"name":"b"}`)
	h.set(&h.underWay, true)
	if got := h.call("Start", `{"dryRun":true}`); got != `InProgress {"phase":"committing"}` {
		t.Errorf("a dry run: %s", got)
	}
	started := h.Start(t)
	b.vote(1, "preparing", `"ready":false`)
	if got := h.call("Cancel", `{}`); !strings.HasPrefix(got, "InProgress") {
		t.Errorf("cancel: %s", got)
	}
	a.ready(1, "preparing", "quiescing")
	next(t, a.said, `"committing"`)
	next(t, started, `"committing"`)
	for range started {
	}
	if !h.is(&h.loaded) {
		t.Error("the kernel was unloaded under PID 1's feet")
	}
}

// What PID 1 was on its way to is called off, or never comes. Everybody goes on.
func TestUnderWayNoMore(t *testing.T) {
	for _, c := range []struct {
		name    string
		appears bool
	}{{"the job goes away", true}, {"there never is a job", false}} {
		t.Run(c.name, func(t *testing.T) {
			h := on(t, rules, func(h *host) { h.appearTimeout = 50 * time.Millisecond })
			a := h.joins(`{"name":"a"}`)
			h.set(&h.underWay, c.appears)
			ready := make(chan error, 1)
			go func() { ready <- h.MakeReady(t.Context()) }()
			a.ready(1, "preparing", "quiescing")
			next(t, a.said, `"committing"`)
			if err := <-ready; err != nil { // which doesn't wait for what comes of it
				t.Error(err)
			}
			if got := h.call("Status", `{}`); c.appears && !strings.Contains(got, `"phase":"committing"`) {
				t.Errorf("%s", got)
			}
			h.set(&h.underWay, false)
			if got := next(t, a.said, `"aborted"`); !strings.Contains(got, "was called off") {
				t.Errorf("told %s", got)
			}
			a.vote(1, "aborted", `"ready":true`)
			next(t, a.said, `"resumed"`)
			if !h.is(&h.loaded) {
				t.Error("the kernel was unloaded, and is somebody else's")
			}
			h.Start(t)
			a.ready(2, "preparing", "quiescing")
			next(t, a.said, `"committing"`)
		})
	}
}

// Started while PID 1 is on its way, and all that was to be ready is, it doesn't say that the update is off.
func TestStartedUnderWay(t *testing.T) {
	for left, loaded := range map[mark]bool{markSwitch: false, markReady: true} {
		t.Run(string(left), func(t *testing.T) {
			var unknown atomic.Bool // PID 1 doesn't answer
			unknown.Store(left == markSwitch)
			h := on(t, rules, func(h *host) {
				h.underWay, h.appearTimeout = true, 10*time.Millisecond
				if err := h.mark(left); err != nil {
					t.Fatal(err)
				}
				underWay := h.UnderWay
				h.UnderWay = func(ctx context.Context) (bool, error) {
					if unknown.Load() {
						return false, errors.New("no answer")
					}
					return underWay(ctx)
				}
			})
			said, leave := h.stream("Join", `{"name":"a"}`)
			next(t, said, `"phase":"committing"`)
			unknown.Store(false)
			if got := h.call("Status", `{}`); !strings.Contains(got, `"phase":"committing"`) || !strings.Contains(got, `"loaded":true`) {
				t.Errorf("%s", got)
			}
			if got := h.call("Start", `{}`); got != `InProgress {"phase":"committing"}` {
				t.Errorf("%s", got)
			}
			if err := h.MakeReady(t.Context()); err != nil { // so it is
				t.Error(err)
			}
			h.set(&h.underWay, false) // it failed
			next(t, said, `"phase":"aborted"`)
			next(t, said, `"phase":"resumed"`)
			leave()
			if got := h.call("Status", `{}`); !strings.Contains(got, `"phase":"idle"`) || !strings.Contains(got, fmt.Sprintf(`"loaded":%t`, loaded)) {
				t.Errorf("%s", got)
			}
			if _, err := os.Stat(h.Mark); err == nil {
				t.Error("the mark is still there: a kernel that is loaded from now on would be dropped at the next start")
			}
		})
	}
}

// Nobody was made ready for what PID 1 is on its way to: that is made up for, and the kernel stays loaded, since it is PID 1's.
func TestStartedUnderWayAndNobodyIsReady(t *testing.T) {
	for _, left := range []mark{unmarked, markRound} {
		t.Run("after "+string(left), func(t *testing.T) {
			h := on(t, rules, func(h *host) {
				h.underWay = true
				seats, _ := json.Marshal([]seat{{Name: "a", Owner: "test", Required: true}})
				if err := errors.Join(h.mark(left), leave(h.seatsFile(), seats)); err != nil {
					t.Fatal(err)
				}
			})
			a := h.joins(`{"name":"a"}`)
			a.ready(1, "preparing", "quiescing")
			next(t, a.said, `"committing"`)
			h.eventually(func() bool { return h.marked() == markReady })
			if !h.is(&h.loaded) {
				t.Error("the kernel was unloaded")
			}
		})
	}
}

// Between logind's signal and PID 1's job a holdfast-updated may be restarted. The kernel isn't its own to drop.
func TestRestartedInLogindsDelay(t *testing.T) {
	h := on(t, rules, nil)
	h.joins(`{"name":"a"}`)
	go h.MakeReady(context.Background())
	h.eventually(func() bool { return strings.Contains(h.call("Status", `{}`), `"preparing"`) })
	h.stop()
	if got := h.marked(); got != unmarked || !h.is(&h.loaded) {
		t.Errorf("the mark is %q, loaded %t", got, h.is(&h.loaded))
	}
}

func (h *host) eventually(is func() bool) {
	h.t.Helper()
	for start := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			h.t.Fatal("it does not come to that")
		}
	}
}

// Who took part before a restart is waited for, and a required one that doesn't come back is in the way.
func TestRestarted(t *testing.T) {
	h := on(t, rules, nil)
	h.joins(`{"name":"a"}`)
	h.joins(`{"name":"b","required":false}`)
	h.joins(`{"name":"c"}`).leave()
	h.eventually(func() bool { return !strings.Contains(h.call("Status", `{}`), `"c"`) })
	h.eventually(func() bool { text, _ := os.ReadFile(h.seatsFile()); return !strings.Contains(string(text), `"c"`) })
	h.stop()
	again := func() *host {
		return on(t, rules, func(next *host) { next.Mark = h.Mark })
	}
	next1 := again()
	waits := make(chan string, 1)
	go func() { waits <- next1.call("Start", `{}`) }()
	next1.eventually(func() bool { return strings.Contains(next1.call("Status", `{}`), `"preparing"`) })
	if got := <-waits; !strings.HasPrefix(got, `Blocked {"findings":[{"id":"participant","severity":"error","text":"required, and gone since holdfast-updated was restarted or the update was asked for: a (test)"`) {
		t.Errorf("%s", got)
	}
	if got := next1.call("Start", `{"without":["a"],"dryRun":true}`); !strings.Contains(got, "it was a dry run") {
		t.Errorf("%s", got)
	}
	next1.stop()

	next2 := again()
	next2.stream("Start", `{}`)
	a := next2.joins(`{"name":"a"}`)
	b := next2.joins(`{"name":"b"}`)
	a.ready(1, "preparing")
	b.ready(1, "preparing")
	next(t, a.said, `"prepared"`)
}

// Rounds are counted from 1 again by each process; a vote for one of another process doesn't count all the same.
func TestVoteOfAnEarlierProcess(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	h.stop()
	again := on(t, rules, nil)
	b := again.joins(`{"name":"a"}`)
	again.Start(t)
	a.h = again
	for _, vote := range []string{`"ready":true`, `"ready":false`, `"ready":false,"extendUSec":1000000`} {
		if got := a.vote(1, "preparing", vote); got != `StaleVote {"round":1}` {
			t.Errorf("%s: %s", vote, got)
		}
	}
	if got := again.call("Status", `{}`); !strings.Contains(got, `"round":1,"phase":"preparing"`) || !strings.Contains(got, `"state":"waiting"`) {
		t.Errorf("%s", got)
	}
	b.ready(1, "preparing")
}

// A cancel while it is still being looked whether anything is in the way, and a caller that goes then.
func TestCancelledBeforeItBegins(t *testing.T) {
	checking, check := make(chan struct{}, 1), make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.Check = func(ctx context.Context, _ *Target) ([]Finding, error) {
			checking <- struct{}{}
			select {
			case <-check:
			case <-ctx.Done(): // and it finds nothing all the same
			}
			return nil, nil
		}
	})
	a := h.joins(`{"name":"a"}`)
	started, _ := h.stream("Start", `{}`)
	<-checking
	if got := h.call("Status", `{}`); !strings.Contains(got, `"round":1,"phase":"preparing"`) {
		t.Errorf("%s", got)
	}
	if got := h.call("Cancel", `{"reason":"why"}`); got != "{}" {
		t.Errorf("%s", got)
	}
	check <- struct{}{}
	if got := next(t, started, `"resumed"`); !strings.Contains(got, "it was cancelled: why") || h.is(&h.loaded) {
		t.Errorf("%s, loaded %t", got, h.is(&h.loaded))
	}

	h.set(&h.loaded, true)
	_, hangUp := h.stream("Start", `{}`)
	<-checking
	hangUp()
	h.eventually(func() bool { return strings.Contains(h.call("Status", `{}`), `"phase":"idle"`) })

	_, _ = h.stream("Start", `{}`)
	<-checking
	check <- struct{}{}
	if got := next(t, a.said, `"preparing"`); !strings.Contains(got, `"round":1`) {
		t.Errorf("%s", got)
	}
}

// A required participant that ends while it is being looked whether anything is in the way is in the way.
func TestGoneBeforeItBegins(t *testing.T) {
	checking, check := make(chan struct{}, 1), make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.Check = func(context.Context, *Target) ([]Finding, error) {
			checking <- struct{}{}
			<-check
			return nil, nil
		}
	})
	for _, back := range []bool{false, true} {
		a, b := h.joins(`{"name":"a"}`), h.joins(`{"name":"b"}`)
		started, _ := h.stream("Start", `{}`)
		<-checking
		a.leave()
		h.eventually(func() bool { return !strings.Contains(h.call("Status", `{}`), `"a"`) })
		check <- struct{}{}
		if !back {
			if got := next(t, started, "Blocked"); !strings.Contains(got, "a (test)") {
				t.Errorf("%s", got)
			}
			b.leave()
			continue
		}
		h.joins(`{"name":"a"}`).ready(1, "preparing")
		b.ready(1, "preparing", "quiescing")
	}
}

// PID 1's answer may be lost where it has the job all the same.
func TestSwitchIsUnderWayAfterAnError(t *testing.T) {
	var asked atomic.Int64
	h := on(t, rules, func(h *host) {
		underWay := h.UnderWay
		h.UnderWay = func(ctx context.Context) (bool, error) {
			asked.Add(1)
			return underWay(ctx)
		}
	})
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	a.ready(1, "preparing", "quiescing")
	next(t, a.said, `"committing"`)
	h.set(&h.underWay, true)
	h.switches <- errors.New("EOF")
	before := asked.Load()
	h.eventually(func() bool { return asked.Load() > before+3 })
	if got := h.call("Status", `{}`); !strings.Contains(got, `"committing"`) || !h.is(&h.loaded) {
		t.Errorf("%s, loaded %t", got, h.is(&h.loaded))
	}
	h.set(&h.underWay, false)
	if got := next(t, a.said, `"aborted"`); !strings.Contains(got, "the switch failed: EOF") {
		t.Errorf("told %s", got)
	}
}

// Stopped when all are ready, and before anybody was asked to switch, it calls the round off.
func TestStoppedBeforeTheSwitch(t *testing.T) {
	saving, saved := make(chan struct{}), make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.BeforeSwitch = func(context.Context) error {
			close(saving)
			<-saved
			return nil
		}
	})
	a := h.joins(`{"name":"a"}`)
	started := h.Start(t)
	a.ready(1, "preparing", "quiescing")
	<-saving
	go h.stop()
	next(t, a.said, `"aborted"`)
	close(saved)
	next(t, started, "holdfast-updated was stopped")
	h.stop()
	if h.is(&h.loaded) {
		t.Error("the kernel is still loaded")
	}
}

func TestStopped(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	started := h.Start(t)
	go h.stop()
	if got := next(t, a.said, `"aborted"`); !strings.Contains(got, "holdfast-updated was stopped") {
		t.Errorf("%s", got)
	}
	next(t, started, "holdfast-updated was stopped")
	h.stop()
	if h.is(&h.loaded) {
		t.Error("the kernel is still loaded")
	}
}

// Start's caller may go; the update goes on.
func TestCallerGoes(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	started, hangUp := h.stream("Start", `{}`)
	next(t, started, `"preparing"`)
	hangUp()
	a.ready(1, "preparing", "quiescing")
	select {
	case h.switches <- errors.New("x"):
	case <-time.After(patience):
		t.Fatal("nobody switches")
	}
}

// Who isn't waited for is named so that it is clear who is meant.
func TestWithout(t *testing.T) {
	two := func() *host {
		h := on(t, rules, nil)
		h.joins(`{"name":"cache"}`)
		h.joins(`{"name":"cache"}`) // of the same owner: that is one
		h.join(t, "cache", "/b.service")
		return h
	}
	h := two()
	for _, c := range []struct{ without, want string }{
		{"cahce", `Blocked {"findings":[{"id":"without","severity":"error","text":"no participant is called \"cahce\"","hint":"holdfast status shows who there is"}]}`},
		{"/c.service/cache", `Blocked {"findings":[{"id":"without","severity":"error","text":"no participant is called \"/c.service/cache\""`},
		{"cache", `Blocked {"findings":[{"id":"without","severity":"error","text":"2 owners have a participant called \"cache\"","hint":"name one with its owner: test/cache, /b.service/cache"}]}`},
	} {
		if got := h.call("Start", `{"without":["`+c.without+`"]}`); !strings.HasPrefix(got, c.want) {
			t.Errorf("without %s: %s", c.without, got)
		}
	}
	started, _ := h.stream("Start", `{"without":["/b.service/cache","test/cache"]}`)
	next(t, started, `"committing"`)
	started, _ = two().stream("Start", `{"without":["cache","nobody"],"force":true}`)
	next(t, started, `"committing"`)
}

// join is a participant of another owner's, that says nothing.
func (h *host) join(t *testing.T, name, owner string) *subscription {
	t.Helper()
	h.call("Status", `{}`) // it serves
	h.look()               // and this one sees all that it has set
	from := places.Place{Name: owner, Root: true}
	s, err := h.subscribe(from, name, owner, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.unsubscribe(from, s) })
	return s
}

// heard takes what it is told.
func (h *host) heard(s *subscription) {
	for {
		next, last := h.Updated.next(s)
		if next == nil || last {
			return
		}
		h.wasTold(s)
	}
}

// Who loses its connection before it was told that the switch begins would give up what it has committed. So all are told first.
func TestAllAreToldBeforeTheSwitch(t *testing.T) {
	heard := make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.BeforeSwitch = func(context.Context) error {
			select {
			case <-heard:
			default:
				t.Error("it switches, and one has yet to hear of it")
			}
			return nil
		}
	})
	slow := h.join(t, "slow", "/slow.service")
	if _, err := h.begin(t.Context(), update.Options{Timeout: patience}, false); err != nil {
		t.Fatal(err)
	}
	for _, p := range []update.Phase{update.Preparing, update.Quiescing} {
		h.eventually(func() bool { return h.look().Phase == p })
		h.do(func(r *update.Rounds, now time.Time) {
			if err := r.Vote(now, update.Vote{ID: slow.id, Round: 1, Phase: p, Ready: true}); err != nil {
				t.Error(err)
			}
		})
	}
	// The round's goroutine is woken by each change, and looks at the end of each phase; this has it look once more.
	h.eventually(func() bool { return h.look().Phase == update.Committing })
	for range 100 {
		h.Announce()
		h.call("Status", `{}`)
	}
	close(heard)
	h.heard(slow)
	select {
	case h.switches <- errors.New("frozen"):
	case <-time.After(patience):
		t.Fatal("nobody switches")
	}
}

// A change that says nothing to a participant doesn't wake it: with many of them, all would be busy with nothing else.
func TestOnlyWhoIsToldIsWoken(t *testing.T) {
	h := on(t, rules, nil)
	a, b := h.join(t, "a", "/a.service"), h.join(t, "b", "/b.service")
	woken := func(s *subscription) bool {
		select {
		case <-s.news:
			return true
		default:
			return false
		}
	}
	for _, s := range []*subscription{a, b} {
		if !woken(s) {
			t.Error("it isn't told that it has joined")
		}
		h.heard(s)
	}
	c := h.joins(`{"name":"c"}`)
	h.Announce()
	if woken(a) || woken(b) {
		t.Error("another one's joining wakes the others")
	}
	h.Start(t)
	if !woken(a) || !woken(b) {
		t.Error("they are not told of the round")
	}
	h.heard(a)
	c.vote(1, "preparing", `"ready":true`)
	if woken(a) || woken(b) {
		t.Error("a vote wakes the others")
	}
}

// A unit has as many participants as there is room for their votes.
func TestParticipantsAreBounded(t *testing.T) {
	h := on(t, rules, func(h *host) { h.perUnit = 8 })
	var all []*member
	for i := range 4 {
		all = append(all, h.joins(fmt.Sprintf(`{"name":"p%d"}`, i)))
	}
	said, _ := h.stream("Join", `{"name":"more"}`)
	if got := next(t, said, ""); !strings.Contains(got, "NotPermitted") || !strings.Contains(got, "too many participants of") {
		t.Errorf("one more: %s", got)
	}
	h.Start(t)
	votes := h.dial() // one connection, since those that have ended are counted for a moment longer
	for _, phase := range []string{"preparing", "quiescing"} {
		for _, m := range all {
			next(t, m.said, `"phase":"`+phase+`"`)
		}
		for _, m := range all {
			if _, err := votes.conn.Call(t.Context(), iface+".Vote", map[string]any{"id": m.id, "round": 1, "phase": phase, "ready": true}, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	next(t, all[0].said, `"committing"`)

	h = on(t, rules, nil)
	for i := range participantsMax {
		h.join(t, "p", fmt.Sprintf("/p%d.service", i))
	}
	from := places.Place{Name: "more", Root: true}
	if _, err := h.subscribe(from, "p", "/more.service", true); err == nil || !strings.Contains(err.Error(), "too many participants") {
		t.Errorf("one more than there can be: %v", err)
	}
	if _, err := h.subscribe(from, "p", "/"+strings.Repeat("x", ownerMax), true); err == nil || !strings.Contains(err.Error(), "the owner's name has 301 bytes") {
		t.Errorf("a long owner: %v", err)
	}
}

// However many there are and whatever they say, clients take the reply.
func TestStatusFits(t *testing.T) {
	var all []update.Participant
	for range participantsMax {
		owner := strings.Repeat("x2d\\", ownerMax/4)
		all = append(all, update.Participant{Name: strings.Repeat("n", name.Max), Owner: owner, State: update.Waiting, Reason: line(strings.Repeat(`"`, 1000))})
	}
	text, err := json.Marshal(progressOf(update.Snapshot{Participants: all}))
	if err != nil || len(text) > 1<<20 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\x1b[31m":                 "a b [31m",
		strings.Repeat("ä", 200):       strings.Repeat("ä", reasonMax/2),
		strings.Repeat("a", 199) + "ä": strings.Repeat("a", 199),
	} {
		if got := line(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
