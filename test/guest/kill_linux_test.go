// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/test/trace"
)

// killed kills the daemon at the n-th system call since the trace began to count.
type killed struct {
	*trace.Trace
	counting atomic.Bool
	calls    atomic.Int64
	done     chan struct{} // closed when the daemon was killed
}

func killAt(t *testing.T, d *daemon, n int) *killed {
	t.Helper()
	k := &killed{done: make(chan struct{})}
	k.Trace = traced(t, d.pid(), func(stop *trace.Stop) trace.Verdict {
		if !k.counting.Load() || !stop.Entry() || k.calls.Add(1) < int64(n) {
			return trace.GoOn
		}
		unix.Kill(d.pid(), unix.SIGKILL)
		close(k.done)
		return trace.LetGo
	})
	return k
}

// eachKill runs the same once for each system call of the daemon that call causes, and kills the daemon at that
// one, until a run ends before there were as many. Whenever the daemon was killed another one is started at once, as
// systemd does, and after each run a session of the name "ram" can be had. after is given what call returned.
func eachKill(t *testing.T, call func() (*liveupdate.Session, error), after func(n int, s *liveupdate.Session, err error)) {
	t.Helper()
	type outcome struct {
		session *liveupdate.Session
		err     error
	}
	start := time.Now()
	socket := listen(t)
	d := socket.start(t)
	harmed := true
	n := 0
	for harmed {
		n++
		probe := dial(t)
		probe.call(t, "org.varlink.service.GetInfo", `{}`)
		k := killAt(t, d, n)
		// Each thread that the tracing has disturbed waits again before the counting begins.
		probe.call(t, "org.varlink.service.GetInfo", `{}`)
		k.counting.Store(true)
		result := make(chan outcome, 1)
		go func() {
			s, err := call()
			result <- outcome{s, err}
		}()
		var got outcome
		select {
		case <-k.done:
			d.wait(t)
			d = socket.start(t)
			got = <-result
		case got = <-result:
			ended(t, k.Trace)
			select {
			case <-k.done:
				d.wait(t)
				d = socket.start(t)
			default:
				harmed = false
			}
		}
		over(t, k.Trace)
		probe.close()

		next := dial(t)
		if got.session != nil {
			if got.session.Name() != name.Kernel(here.me.owner, "ram") {
				t.Fatalf("killed at system call %d: got session %q", n, got.session.Name())
			}
			next.sessions(t, "Acquire", `{"name":"ram"}`).is(t, taken("ram"))
			got.session.Close()
		}
		after(n, got.session, got.err)
		next.acquire(t, here.me.owner, "ram").Close()
		next.close()
		if t.Failed() {
			t.Fatalf("killed at system call %d", n)
		}
	}
	t.Logf("killed at each of %d system calls; the run after them ended unharmed; %.1f s", n-1, time.Since(start).Seconds())
	// Reading the call, asking who it is from, opening, creating, closing, answering: far more than these would be
	// suspicious, less can't be.
	if n-1 < 10 {
		t.Errorf("an Acquire made only %d system calls", n-1)
	}
}

// A client that tries nothing twice gets a whole session or sees the connection end.
func TestKilledAtEachSystemCall(t *testing.T) {
	outcomes := map[string]int{}
	var c *connection
	call := func() (*liveupdate.Session, error) {
		if err := c.send(`{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"ram"}}`); err != nil {
			if errors.Is(err, unix.EPIPE) {
				err = io.EOF
			}
			return nil, err
		}
		r, err := c.receive()
		if err != nil {
			return nil, err
		}
		return r.session(here.me.owner, "ram")
	}
	eachKill(t,
		func() (*liveupdate.Session, error) {
			c = dial(t)
			return call()
		},
		func(n int, s *liveupdate.Session, err error) {
			c.close()
			switch err {
			case nil:
				outcomes["session"]++
			case io.EOF:
				outcomes["end"]++
			default:
				t.Errorf("killed at system call %d: %v", n, err)
			}
		})
	t.Logf("the client got %v", outcomes)
	// The calls before the answer and those after it were both there.
	if outcomes["session"] < 2 || outcomes["end"] < 5 {
		t.Errorf("the client got %v; want sessions more than once, and more than a few times the end", outcomes)
	}
}

// The library's client gets its session, whenever the daemon was killed: it asks the next one.
func TestKilledAtEachSystemCallOfTheLibrarysAcquire(t *testing.T) {
	t.Setenv("HOLDFAST_ADDRESS", here.address)
	eachKill(t,
		func() (*liveupdate.Session, error) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			client, err := holdfast.Dial(ctx)
			if err != nil {
				return nil, err
			}
			defer client.Close()
			s, err := client.Acquire(ctx, "ram")
			if err != nil {
				return nil, err
			}
			return s.LiveUpdate(), nil
		},
		func(n int, s *liveupdate.Session, err error) {
			if err != nil {
				t.Errorf("killed at system call %d: %v", n, err)
			}
		})
}

// A session is over when its client has closed it, though the daemon may not have come to closing its own descriptor.
func TestNameIsFreeBeforeTheDaemonHasClosed(t *testing.T) {
	d, c := serve(t)
	answers, closes := false, false
	held := make(chan struct{})
	tr := traced(t, d.pid(), func(stop *trace.Stop) trace.Verdict {
		switch {
		case stop.Entry() && stop.Nr == unix.SYS_SENDMSG:
			answers = true
		case stop.Entry() && stop.Nr == unix.SYS_CLOSE && answers && !closes:
			closes = true
			close(held)
			return trace.Stay
		}
		return trace.GoOn
	})
	c.acquire(t, here.me.owner, "ram").Close()
	select {
	case <-held:
	case <-time.After(patience):
		t.Fatal("the daemon closes nothing after its answer")
	}
	next := dial(t)
	if err := next.send(`{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"ram"}}`); err != nil {
		t.Fatal(err)
	}
	next.taken(t)
	// Others don't wait for that thread, and a NameTaken would be on its way by then.
	others := dial(t)
	for range 20 {
		others.sessions(t, "Describe", `{}`)
	}
	ended(t, tr)
	r, err := next.receive()
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.session(here.me.owner, "ram")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}
