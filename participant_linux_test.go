// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const patience = 20 * time.Second

// conductor is a holdfast-updated that says what the test wants.
type conductor struct {
	t       *testing.T
	address string
	say     chan string // what the present connection is told; "hang up" ends it
	did     chan string // what came from the participant: joins, votes and callbacks, in order
	refuse  chan error  // the answers to Joins, if it has any

	refuseVote chan error // the answers to votes, likewise

	stop func()
}

// conduct starts one. The test fails if goroutines are left at its end.
func conduct(t *testing.T) *conductor {
	t.Helper()
	before := runtime.NumGoroutine()
	c := &conductor{t: t, address: filepath.Join(t.TempDir(), "io.holdfast.Update"), say: make(chan string), did: make(chan string, 100), refuse: make(chan error, 1), refuseVote: make(chan error, 1)}
	t.Setenv("HOLDFAST_UPDATE_ADDRESS", c.address)
	c.start()
	t.Cleanup(func() {
		c.stop()
		for start := time.Now(); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Since(start) > patience {
				stacks := make([]byte, 1<<20)
				t.Fatalf("goroutines are left:\n%s", stacks[:runtime.Stack(stacks, true)])
			}
		}
		select {
		case d := <-c.did:
			t.Errorf("not expected: %s", d)
		default:
		}
	})
	return c
}

func (c *conductor) start() {
	c.t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.address, Net: "unix"})
	if err != nil {
		c.t.Fatal(err)
	}
	server := &varlink.Server{Interfaces: []varlink.Interface{{Name: "io.holdfast.Update", Description: api.Update, Methods: map[string]varlink.Method{
		"Join": c.join, "Vote": c.vote,
	}}}, Grace: time.Nanosecond}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			c.t.Error(err)
		}
		listener.Close()
	})
}

// join is told things as "ID ROUND PHASE REASON".
func (c *conductor) join(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Name     string `json:"name"`
		Required *bool  `json:"required"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	required := "by its rule"
	if in.Required != nil {
		required = fmt.Sprint(*in.Required)
	}
	c.did <- "join " + in.Name + ", required " + required
	select {
	case err := <-c.refuse:
		return nil, err
	default:
	}
	for {
		select {
		case what := <-c.say:
			if what == "hang up" {
				return nil, errors.New("hung up")
			}
			var reply struct {
				ID           string `json:"id"`
				Round        int    `json:"round"`
				Phase        string `json:"phase"`
				DeadlineUSec int64  `json:"deadlineUSec"`
				Reason       string `json:"reason,omitempty"`
			}
			reply.DeadlineUSec = time.Hour.Microseconds()
			fmt.Sscan(what, &reply.ID, &reply.Round, &reply.Phase, &reply.Reason)
			if err := call.Continue(&varlink.Reply{Parameters: reply}); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *conductor) vote(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		ID         string `json:"id"`
		Round      int    `json:"round"`
		Phase      string `json:"phase"`
		Ready      bool   `json:"ready"`
		Reason     string `json:"reason,omitempty"`
		ExtendUSec int64  `json:"extendUSec,omitempty"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	select {
	case err := <-c.refuseVote:
		return nil, err
	default:
	}
	answer := "veto"
	switch {
	case in.Ready:
		answer = "ready"
	case in.ExtendUSec > 0:
		answer = "extend " + (time.Duration(in.ExtendUSec) * time.Microsecond).String()
	}
	c.did <- strings.TrimSpace(fmt.Sprintf("vote %s %d %s %s %s", in.ID, in.Round, in.Phase, answer, in.Reason))
	return nil, nil
}

// tells waits until the participant's connection takes it.
func (c *conductor) tells(what string) {
	c.t.Helper()
	select {
	case c.say <- what:
	case <-time.After(patience):
		c.t.Fatalf("nobody is there to be told %q", what)
	}
}

// sees waits for what the participant does, in this order.
func (c *conductor) sees(whats ...string) {
	c.t.Helper()
	for _, want := range whats {
		select {
		case got := <-c.did:
			if got != want {
				c.t.Fatalf("the participant did %q, want %q", got, want)
			}
		case <-time.After(patience):
			c.t.Fatalf("the participant did not %q", want)
		}
	}
}

// joins has a participant that tells of each callback.
func (c *conductor) joins(config ParticipantConfig) *Participant {
	c.t.Helper()
	config.Name = "p"
	prepare := config.Prepare
	config.Prepare = func(ctx context.Context, r *Round) error {
		c.did <- fmt.Sprintf("prepare %d", r.Number())
		if prepare != nil {
			return prepare(ctx, r)
		}
		return nil
	}
	if quiesce := config.Quiesce; quiesce == nil {
		config.Quiesce = func(context.Context, *Round) error { c.did <- "quiesce"; return nil }
	}
	config.Abort = func(reason string) { c.did <- "abort: " + reason }
	config.Resumed = func() { c.did <- "resumed" }
	type outcome struct {
		p   *Participant
		err error
	}
	joined := make(chan outcome, 1)
	go func() {
		p, err := Join(context.Background(), config)
		joined <- outcome{p, err}
	}()
	c.sees("join p, required " + map[[2]bool]string{{}: "by its rule", {true, false}: "true", {false, true}: "false"}[[2]bool{config.Required, config.Optional}])
	c.tells("id1 0 idle")
	o := <-joined
	if o.err != nil {
		c.t.Fatal(o.err)
	}
	c.t.Cleanup(func() { o.p.Close() })
	return o.p
}

func TestParticipantInAnUpdateThatIsCalledOff(t *testing.T) {
	c := conduct(t)
	c.joins(ParticipantConfig{Required: true})
	for round := 1; round < 3; round++ {
		c.tells(fmt.Sprintf("id1 %d preparing", round))
		c.sees(fmt.Sprintf("prepare %d", round), fmt.Sprintf("vote id1 %d preparing ready", round))
		c.tells(fmt.Sprintf("id1 %d prepared", round))
		c.tells(fmt.Sprintf("id1 %d quiescing", round))
		c.sees("quiesce", fmt.Sprintf("vote id1 %d quiescing ready", round))
		c.tells(fmt.Sprintf("id1 %d committing", round))
		c.tells(fmt.Sprintf("id1 %d aborted frozen", round))
		c.sees("abort: frozen", fmt.Sprintf("vote id1 %d aborted ready", round))
		c.tells(fmt.Sprintf("id1 %d resumed", round))
		c.sees("resumed")
	}
}

func TestParticipantVetoes(t *testing.T) {
	c := conduct(t)
	c.joins(ParticipantConfig{Optional: true, Prepare: func(context.Context, *Round) error { return errors.New("busy") }})
	c.tells("id1 1 preparing")
	c.sees("prepare 1", "vote id1 1 preparing veto busy")
	// It is an optional one, and the others go on: it still isn't ready, and isn't paused.
	c.tells("id1 1 quiescing")
	c.sees("vote id1 1 quiescing veto busy")
	c.tells("id1 1 aborted x")
	c.sees("abort: x", "vote id1 1 aborted ready")
	c.tells("id1 1 resumed")
	c.sees("resumed")
}

func TestParticipantIsToldWhilePreparing(t *testing.T) {
	c := conduct(t)
	c.joins(ParticipantConfig{Prepare: func(ctx context.Context, r *Round) error {
		if left := time.Until(r.Deadline()); left < 50*time.Minute || left > time.Hour {
			t.Errorf("the deadline is in %v", left)
		}
		if err := r.Extend(ctx, 2*time.Hour, "much"); err != nil {
			t.Error(err)
		}
		if left := time.Until(r.Deadline()); left < 110*time.Minute {
			t.Errorf("after an extension, the deadline is in %v", left)
		}
		c.did <- "extended"
		<-ctx.Done()
		c.did <- "prepare ends"
		return nil // is no vote any more
	}})
	c.tells("id1 1 preparing")
	c.sees("prepare 1", "vote id1 1 preparing extend 2h0m0s much", "extended")
	c.tells("id1 1 aborted x")
	c.sees("prepare ends", "abort: x", "vote id1 1 aborted ready")
	c.tells("id1 1 resumed")
	c.sees("resumed")
}

func TestParticipantJoinsWhileOthersQuiesce(t *testing.T) {
	c := conduct(t)
	c.joins(ParticipantConfig{})
	c.tells("id1 1 quiescing")
	c.sees("prepare 1", "quiesce", "vote id1 1 quiescing ready")
	c.tells("id1 1 resumed x") // an aborted that it missed
	c.sees("abort: x", "resumed")
}

func TestParticipantLosesItsConnection(t *testing.T) {
	c := conduct(t)
	c.joins(ParticipantConfig{})
	c.tells("id1 1 preparing")
	c.sees("prepare 1", "vote id1 1 preparing ready")
	c.stop()
	c.sees("abort: the connection to holdfast-updated broke", "resumed")
	c.start()
	c.sees("join p, required by its rule")
	c.tells("id2 1 preparing")
	c.sees("prepare 1", "vote id2 1 preparing ready")
	c.tells("id2 1 quiescing")
	c.sees("quiesce", "vote id2 1 quiescing ready")
	c.tells("hang up")
	c.sees("abort: the connection to holdfast-updated broke", "resumed", "join p, required by its rule")
	c.tells("id3 0 idle")
}

// Once the switch has begun a broken connection means nothing: what was committed may be about to cross.
func TestParticipantLosesItsConnectionInTheSwitch(t *testing.T) {
	commit := func(c *conductor) {
		c.joins(ParticipantConfig{})
		c.tells("id1 7 preparing")
		c.sees("prepare 7", "vote id1 7 preparing ready")
		c.tells("id1 7 quiescing")
		c.sees("quiesce", "vote id1 7 quiescing ready")
		c.tells("id1 7 committing")
		c.tells("hang up")
		c.sees("join p, required by its rule")
	}
	t.Run("it goes on", func(t *testing.T) {
		c := conduct(t)
		commit(c)
		c.tells("id2 0 committing")
		c.tells("hang up")
		c.sees("join p, required by its rule")
		c.tells("id3 0 committing")
		c.tells("id3 0 aborted failed")
		c.sees("abort: failed", "vote id3 0 aborted ready")
		c.tells("id3 0 resumed")
		c.sees("resumed")
	})
	t.Run("it was off", func(t *testing.T) {
		c := conduct(t)
		commit(c)
		c.tells("id2 0 idle")
		c.sees("abort: holdfast-updated was restarted before the switch", "resumed")
	})
	t.Run("another round has begun", func(t *testing.T) {
		c := conduct(t)
		commit(c)
		c.tells("id2 1 preparing")
		c.sees("abort: holdfast-updated was restarted before the switch", "resumed", "prepare 1", "vote id2 1 preparing ready")
		c.tells("id2 1 aborted x")
		c.sees("abort: x", "vote id2 1 aborted ready")
	})
}

func TestParticipantIsClosed(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		c := conduct(t)
		p := c.joins(ParticipantConfig{})
		p.Close()
		p.Close()
	})
	t.Run("preparing", func(t *testing.T) {
		c := conduct(t)
		var round *Round
		p := c.joins(ParticipantConfig{Prepare: func(ctx context.Context, r *Round) error {
			round = r
			<-ctx.Done()
			return ctx.Err()
		}})
		c.tells("id1 1 preparing")
		c.sees("prepare 1")
		p.Close()
		c.sees("abort: the participant was closed")
		if err := round.Hold(nil, nil); err == nil {
			t.Error("a round that is over takes a session")
		}
	})
	t.Run("in the switch", func(t *testing.T) {
		c := conduct(t)
		p := c.joins(ParticipantConfig{})
		c.tells("id1 1 preparing")
		c.sees("prepare 1", "vote id1 1 preparing ready")
		c.tells("id1 1 committing")
		c.tells("hang up")
		c.sees("join p, required by its rule") // so it has heard of the switch
		p.Close()
	})
}

func TestJoinIsRefused(t *testing.T) {
	c := conduct(t)
	c.refuse <- &varlink.Error{Name: "io.holdfast.Update.NotPermitted", Parameters: map[string]string{"reason": "no", "rule": "r"}}
	prepare := func(context.Context, *Round) error { return nil }
	_, err := Join(context.Background(), ParticipantConfig{Name: "p", Required: true, Prepare: prepare})
	c.sees("join p, required true")
	if want := `holdfast: join "p": not permitted: no (rule: r)`; !errors.Is(err, ErrNotPermitted) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	for _, config := range []ParticipantConfig{{Name: "p"}, {Name: "p", Prepare: prepare, Required: true, Optional: true}} {
		if _, err := Join(context.Background(), config); err == nil {
			t.Errorf("%+v was taken", config)
		}
	}
	c.stop()
	if _, err := Join(context.Background(), ParticipantConfig{Name: "p", Prepare: prepare}); err == nil || !strings.Contains(err.Error(), "systemctl enable --now holdfast-updated.socket") {
		t.Errorf("with nobody there: %v", err)
	}
}

func TestJoinIsGivenUp(t *testing.T) {
	c := conduct(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c.sees("join p, required by its rule")
		cancel()
	}()
	_, err := Join(ctx, ParticipantConfig{Name: "p", Prepare: func(context.Context, *Round) error { return nil }})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// told has what is logged sent to a channel, if it is there to take it.
type told chan string

func (c told) Write(line []byte) (int, error) {
	select {
	case c <- string(line):
	default:
	}
	return len(line), nil
}

// A vote that doesn't come through is tried again, as long as the round needs it.
func TestVotesAreTriedAgain(t *testing.T) {
	c := conduct(t)
	away := func() {
		if err := os.Rename(c.address, c.address+".away"); err != nil {
			t.Error(err)
		}
	}
	logged := make(told, 100)
	failed := func() {
		t.Helper()
		for timeout := time.After(patience); ; {
			select {
			case line := <-logged:
				if strings.Contains(line, "a vote did not come through; trying again") {
					return
				}
			case <-timeout:
				t.Fatal("no vote is tried again")
			}
		}
	}
	back := func() {
		t.Helper()
		failed()
		if err := os.Rename(c.address+".away", c.address); err != nil {
			t.Fatal(err)
		}
	}
	c.joins(ParticipantConfig{
		Log:     slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Prepare: func(context.Context, *Round) error { away(); return nil },
		Quiesce: func(context.Context, *Round) error {
			c.refuseVote <- &varlink.Error{Name: "io.holdfast.Update.NotPermitted", Parameters: map[string]string{"reason": "there are too many connections"}}
			return nil
		},
	})
	c.tells("id1 1 preparing")
	c.sees("prepare 1")
	back()
	c.sees("vote id1 1 preparing ready")
	c.tells("id1 1 quiescing")
	c.sees("vote id1 1 quiescing ready")
	away()
	c.tells("id1 1 aborted x")
	c.sees("abort: x")
	back()
	c.sees("vote id1 1 aborted ready")
	c.tells("id1 1 resumed")
	c.sees("resumed")

	// What comes next needn't wait for a vote that nobody needs any more.
	c.tells("id1 2 preparing")
	c.sees("prepare 2")
	failed()
	c.tells("id1 2 aborted x")
	c.sees("abort: x")
	failed()
	c.tells("id1 2 resumed")
	c.sees("resumed")
	if err := os.Rename(c.address+".away", c.address); err != nil {
		t.Fatal(err)
	}
}

// A participant that has lost its connection is soon back: a round that begins before knows nothing of it.
func TestPausesAreShort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if longest := wait(ctx, time.Hour); longest > time.Second {
		t.Errorf("%v", longest)
	}
}
