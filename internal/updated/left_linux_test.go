// SPDX-License-Identifier: MIT

package updated

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// What lies in a directory that crossed a kexec is of another boot's process, and says nothing.
func TestLeftInAnotherBoot(t *testing.T) {
	h := on(t, rules, func(h *host) {
		if err := errors.Join(os.WriteFile(h.Mark, []byte("01234567\nround"), 0o600),
			os.WriteFile(h.seatsFile(), []byte("01234567\n"+`[{"name":"b","owner":"test","required":true}]`), 0o600)); err != nil {
			t.Fatal(err)
		}
	})
	if h.joins(`{"name":"a"}`); !h.is(&h.loaded) {
		t.Error("the kernel was dropped")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.expected) > 0 {
		t.Errorf("expected back: %+v", h.expected)
	}
}

// PID 1 doesn't answer a process that finds a round broken off; and then says this.
func TestStartedAndUnderWayIsUnknown(t *testing.T) {
	for name, underWay := range map[string]bool{"nothing is under way": false, "a kexec is under way": true} {
		t.Run(name, func(t *testing.T) {
			answers := false
			h := on(t, rules, func(h *host) {
				if err := h.mark(markRound); err != nil {
					t.Fatal(err)
				}
				h.UnderWay = func(context.Context) (bool, error) {
					if !h.is(&answers) {
						return false, errors.New("no answer")
					}
					return underWay, nil
				}
			})
			a := h.joins(`{"name":"a"}`)
			if !h.is(&h.loaded) {
				t.Error("the kernel is unloaded, and nobody knows whether PID 1 is on its way to it")
			}
			h.set(&answers, true)
			if underWay {
				a.ready(1, "preparing", "quiescing")
				next(t, a.said, `"committing"`)
				if !h.is(&h.loaded) {
					t.Error("the kernel was unloaded under PID 1's feet")
				}
				return
			}
			h.eventually(func() bool { return !h.is(&h.loaded) })
			h.eventually(func() bool { _, err := os.Stat(h.Mark); return err != nil })
		})
	}
}

// A round in the way of somebody's kexec is called off: then there is one for the kexec, whose kernel stays, whoever waits for that.
func TestUnderWayBehindAnother(t *testing.T) {
	h := on(t, rules, nil)
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	next(t, a.said, `"preparing"`)
	h.set(&h.underWay, true)
	a.vote(1, "preparing", `"ready":false,"reason":"busy"`)
	next(t, a.said, `"aborted"`)
	a.vote(1, "aborted", `"ready":true`)
	a.ready(2, "preparing", "quiescing")
	next(t, a.said, `"committing"`)
	if !h.is(&h.loaded) {
		t.Error("the kernel was unloaded under PID 1's feet")
	}
}

// What may be under way is left to it, and said.
func TestUnderWayIsUnknownAtTheEnd(t *testing.T) {
	deaf := false
	h := on(t, rules, func(h *host) {
		h.UnderWay = func(context.Context) (bool, error) {
			if h.is(&deaf) {
				return false, errors.New("no answer")
			}
			return false, nil
		}
	})
	a := h.joins(`{"name":"a"}`)
	started := h.Start(t)
	next(t, a.said, `"preparing"`)
	h.set(&deaf, true)
	a.vote(1, "preparing", `"ready":false,"reason":"busy"`)
	next(t, a.said, `"aborted"`)
	a.vote(1, "aborted", `"ready":true`)
	if got := next(t, started, "Vetoed"); !strings.Contains(got, "the next kernel is still loaded") || !strings.Contains(got, "no answer") {
		t.Errorf("%s", got)
	}
	if _, err := os.Stat(h.Mark); err != nil || !h.is(&h.loaded) {
		t.Errorf("the kernel is unloaded, or the next process isn't to look: %v", err)
	}
}

// A process that is stopped when it has asked for the switch, and PID 1 has nothing of it.
func TestStoppedInTheSwitch(t *testing.T) {
	asked := make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.Switch = func(ctx context.Context) error { close(asked); <-ctx.Done(); return ctx.Err() }
	})
	a := h.joins(`{"name":"a"}`)
	h.Start(t)
	a.ready(1, "preparing", "quiescing")
	<-asked
	h.stop()
	if _, err := os.Stat(h.Mark); err == nil || h.is(&h.loaded) {
		t.Error("the kernel is still loaded, or the mark is there")
	}
}

// A required participant that ends when it is almost certain that an update may begin is in the way as well.
func TestGoneRightBeforeItBegins(t *testing.T) {
	asking, answer := make(chan struct{}), make(chan struct{})
	h := on(t, rules, func(h *host) {
		orchestrator := h.Orchestrator
		h.Orchestrator = func(ctx context.Context) (Watched, error) {
			asking <- struct{}{}
			<-answer
			return orchestrator(ctx)
		}
	})
	a := h.joins(`{"name":"a"}`)
	started, _ := h.stream("Start", `{}`)
	<-asking
	a.leave()
	h.eventually(func() bool { return !strings.Contains(h.call("Status", `{}`), `"a"`) })
	answer <- struct{}{}
	if got := next(t, started, ""); !strings.Contains(got, "Blocked") || !strings.Contains(got, "a (test)") {
		t.Errorf("%s", got)
	}
}

// Who has left while an update was refused for something else is not counted on the next time.
func TestGoneWhileItIsRefused(t *testing.T) {
	checking, check := make(chan struct{}), make(chan []Finding)
	h := on(t, rules, func(h *host) {
		h.Check = func(context.Context, *Target) ([]Finding, error) {
			checking <- struct{}{}
			return <-check, nil
		}
	})
	a, b := h.joins(`{"name":"a"}`), h.joins(`{"name":"b"}`)
	started, _ := h.stream("Start", `{}`)
	<-checking
	a.leave()
	h.eventually(func() bool { return !strings.Contains(h.call("Status", `{}`), `"a"`) })
	check <- []Finding{{ID: "x", Severity: "error", Text: "x"}}
	next(t, started, "Blocked")
	started, _ = h.stream("Start", `{}`)
	<-checking
	check <- nil
	if got := next(t, started, ""); !strings.Contains(got, `"phase":"preparing"`) {
		t.Errorf("%s", got)
	}
	b.leave()
}

// A switch that another process has asked for can't be called off, and that is said.
func TestCancelInLimbo(t *testing.T) {
	h := on(t, rules, func(h *host) {
		h.underWay = true
		if err := h.mark(markSwitch); err != nil {
			t.Fatal(err)
		}
	})
	if got := h.call("Cancel", `{}`); got != `InProgress {"phase":"committing"}` {
		t.Errorf("%s", got)
	}
}

// Cancelling an update that hasn't begun doesn't take the kernel from somebody else's kexec.
func TestCancelledBeforeItBeginsAndUnderWay(t *testing.T) {
	checking, check := make(chan struct{}), make(chan struct{})
	h := on(t, rules, func(h *host) {
		h.Check = func(context.Context, *Target) ([]Finding, error) {
			checking <- struct{}{}
			<-check
			return nil, nil
		}
	})
	a := h.joins(`{"name":"a"}`)
	started, _ := h.stream("Start", `{}`)
	<-checking
	h.set(&h.underWay, true)
	h.call("Cancel", `{}`)
	check <- struct{}{}
	next(t, started, `"resumed"`)
	if !h.is(&h.loaded) {
		t.Error("the kernel was unloaded under PID 1's feet")
	}
	a.ready(1, "preparing", "quiescing")
	next(t, a.said, `"committing"`)
}
