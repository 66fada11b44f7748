// SPDX-License-Identifier: MIT

package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

const (
	beginTimeout = 5 * time.Minute  // for gigabytes to be retrieved
	keepTimeout  = 2 * time.Minute  // for pinning and committing when there is no round
	nameWait     = 10 * time.Second // PID 1 closes some time later what was taken out of a store, and until then a name is taken
	joinTimeout  = 10 * time.Second
	crashPause   = time.Second
	crashesMax   = 5 // within crashesIn
	crashesIn    = time.Minute
)

// runner is the command's life. The main loop starts and ends it; the callbacks of a round, which come on a goroutine of
// their own, stop it and ask the loop to go on.
type runner struct {
	Config
	client *holdfast.Client
	say    func(string, ...any)
	own    bool // what is committed goes to the unit's own fd store

	memory *memory
	notify *notifySocket // with Notify; of the newest child

	mu       sync.Mutex
	phase    phase
	leaving  bool              // this process is to end: an abort starts nothing
	child    *child            // the newest one; nil before the first. The loop alone sets it
	asked    bool              // it was, to stop
	session  *holdfast.Session // of the round
	complete bool              // all is in the session

	again chan struct{} // the loop is to look at the child
}

// phase is where in an update it is.
type phase int

const (
	running   phase = iota
	stopping        // for an update
	committed       // and the command has stopped
	pausing         // it has ended outside of an update, and the loop starts it again; or didn't yet
)

// Run runs the command until it ends or this process is told to end, and returns the exit status.
func Run(c Config, say func(format string, args ...any)) (int, error) {
	if err := Check(c.Memory, c.Files); err != nil {
		return 1, err
	}
	// Where nobody reads standard error any more, the Go runtime would have it end this process (os/signal, "SIGPIPE"), and the
	// command with it. The command inherits that, as services do (IgnoreSIGPIPE= in systemd.exec(5)).
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 16)
	// What is ignored since this process was started, by nohup(1) or a shell's "&", stays so for both.
	signal.Notify(signals, slices.DeleteFunc(append(forwarded(), syscall.SIGTERM, syscall.SIGINT), signal.Ignored)...)
	defer signal.Stop(signals)
	ctx, cancel := context.WithTimeout(context.Background(), beginTimeout)
	defer cancel()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return 1, err
	}
	defer client.Close()
	r := &runner{Config: c, client: client, say: say, again: make(chan struct{}, 1)}
	for _, m := range c.Memory {
		if m.Path == "" {
			continue
		}
		if _, err := ourLink(m.Path); err != nil {
			return 1, err
		}
	}
	if err := r.choose(ctx); err != nil {
		return 1, err
	}
	if r.memory, err = begin(ctx, c, client, say); err != nil {
		return 1, err
	}
	defer r.memory.close()
	switch r.memory.how {
	case fresh:
		r.tell("a clean start: the memory is new")
	case updated:
		r.tell("the memory of generation %d came over an update", r.memory.generation)
	default:
		r.tell("the memory of generation %d is here since the last stop", r.memory.generation)
	}
	defer func() {
		if r.notify != nil {
			r.notify.Close()
		}
	}()
	r.phase = pausing
	return r.loop(signals)
}

// forwarded are the signals that the command gets. SIGTERM and SIGINT stop it in its own way.
func forwarded() []os.Signal {
	signals := []os.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGALRM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
	for s := syscall.Signal(34); s <= 64; s++ { // SIGRTMIN to SIGRTMAX, as the C libraries leave them
		signals = append(signals, s)
	}
	return signals
}

// tell is for the log, and for systemctl status.
func (r *runner) tell(format string, args ...any) {
	r.say(format, args...)
	r.forward("STATUS=" + fmt.Sprintf(format, args...))
}

func (r *runner) forward(state string) error {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return systemd.Notify(state)
}

// choose finds out who will keep the memory: early, while nothing is lost if nobody does.
func (r *runner) choose(ctx context.Context) error {
	var why string
	if !r.Park && os.Getenv("NOTIFY_SOCKET") != "" {
		store, err := systemd.OpenStore(ctx)
		switch {
		case err != nil:
			why = err.Error()
		case !systemd.CarriesStores(store.Version):
			why = fmt.Sprintf("systemd %s gives up its fd stores at a kexec", store.Version)
		case store.Max == 0:
			why = store.Unit + " has FileDescriptorStoreMax=0"
		case store.Preserve != "yes":
			why = store.Unit + " has FileDescriptorStorePreserve=" + store.Preserve
		default:
			// Not to everybody who may store: only root may ask (org.freedesktop.systemd1.conf, systemd 262).
			if _, err := store.Entries(ctx); err != nil {
				why = err.Error()
			} else {
				r.own = true
			}
		}
		if err == nil {
			defer store.Close()
		}
		if need := len(r.Config.Memory) + len(r.Files) + 3; r.own && store.Max < need {
			return fmt.Errorf("the fd store of %s has room for %d descriptors, and %d are needed: the session, its manifest, the record, and each memory and file; set FileDescriptorStoreMax=%d or more", store.Unit, store.Max, need, need)
		}
	}
	if r.own {
		return nil
	}
	d, err := r.client.Describe(ctx)
	if err != nil {
		return err
	}
	if d.Keeper == "none" {
		if r.Park {
			why = "--park leaves out this unit's fd store"
		} else if why == "" {
			why = "this isn't a service with an fd store"
		}
		return fmt.Errorf("nobody would keep the memory: %s, and holdfastd has no keeper (holdfast status). Set FileDescriptorStoreMax=%d and FileDescriptorStorePreserve=yes in the unit",
			why, len(r.Config.Memory)+len(r.Files)+3)
	}
	return nil
}

// loop runs the command, and is the only one to start it.
func (r *runner) loop(signals <-chan os.Signal) (int, error) {
	var participant *holdfast.Participant
	defer func() {
		if participant != nil {
			participant.Close()
		}
		unlink(r.Config.Memory)
	}()
	alive, stop := r.alive()
	defer stop()
	due := time.After(r.unsettled()) // of the next start
	var crashes []time.Time
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				return r.end(participant, signals)
			}
			if r.child == nil {
				continue
			}
			if err := r.child.Signal(s.(syscall.Signal)); err != nil {
				r.say("passing %v on: %v", s, err)
			}
			continue
		case <-alive:
			if r.state() != running || !r.Notify {
				r.forward("WATCHDOG=1")
			}
			continue
		case <-due:
			due = nil
			first := r.child == nil
			if status, err := r.start(first); err != nil {
				if !first {
					_, end := r.end(participant, signals)
					err = errors.Join(err, end)
				}
				return status, err
			}
			if first {
				participant = r.join()
			}
			continue
		case <-r.ended():
		case <-r.again:
		}
		// Unless a round has it in hand, or it runs again.
		ending, over := r.pause()
		if !over {
			continue
		}
		switch {
		case r.asked && r.clean(ending): // for an update that was called off
			r.memory.how = restart
			due = time.After(r.Settle)
		case r.clean(ending):
			r.tell("the command has ended by itself")
			return r.end(participant, signals)
		case !r.Restart:
			return ending.ExitStatus(), fmt.Errorf("the command %v: its memory isn't kept, since it may be half of what it was to be; the next start is a clean one", ending)
		default:
			crashes = append(crashes, time.Now())
			if n := len(crashes); n > crashesMax && crashes[n-1].Sub(crashes[n-1-crashesMax]) < crashesIn {
				return ending.ExitStatus(), fmt.Errorf("the command %v, %d times within %v: it isn't started again, and its memory isn't kept", ending, crashesMax+1, crashesIn)
			}
			r.memory.how = crashed
			r.tell("the command %v: it is started again on its memory", ending)
			due = time.After(max(crashPause, r.Settle))
		}
	}
}

func (r *runner) state() phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase
}

// ended is closed when the command has ended, and this is for the loop to see.
func (r *runner) ended() <-chan struct{} {
	if r.child == nil || r.state() != running {
		return nil
	}
	return r.child.Done()
}

// pause takes the command in hand if it has ended outside of a round.
func (r *runner) pause() (ending, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase != running || r.child == nil {
		return ending{}, false
	}
	select {
	case <-r.child.Done():
		r.phase = pausing
		return r.child.Ending(), true
	default:
		return ending{}, false
	}
}

func (r *runner) clean(e ending) bool { return e.Clean(r.StopSignal, r.asked && r.StopCommand == "") }

// unsettled is how much longer the command should stay stopped. A clock that has jumped makes that no longer than it is asked for.
func (r *runner) unsettled() time.Duration {
	if r.memory.stopped.IsZero() {
		return 0
	}
	return min(r.Settle, max(0, r.Settle-time.Since(r.memory.stopped)))
}

// alive ticks when PID 1 wants to hear that this service lives.
func (r *runner) alive() (<-chan time.Time, func()) {
	limit := watchdog()
	if limit == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(limit / 2)
	return t.C, t.Stop
}

// start runs the command. The first time, what was kept becomes the command's.
func (r *runner) start(first bool) (int, error) {
	config := childConfig{
		Words: expand(r.Command, r.Config.Memory), Env: variables(r.Config.Memory, r.memory.how, r.memory.generation),
		Files: r.memory.files, StopSignal: r.StopSignal, StopCommand: r.StopCommand,
	}
	if r.Notify {
		if r.notify != nil {
			r.notify.Close()
		}
		var err error
		if r.notify, err = listenNotify(serviceManager{r.forward, systemd.Barrier}, slog.Default()); err != nil {
			return 1, err
		}
		config.NotifySocket = r.notify.Path()
	}
	if first {
		if err := r.memory.place(r.Files, r.say); err != nil {
			return 1, err
		}
	}
	if err := link(r.Config.Memory); err != nil {
		return 1, err
	}
	if r.child != nil {
		// What it has forked may have outlived it.
		if err := r.child.Kill(); err != nil {
			return 1, err
		}
	}
	// Before the command can write to it, and also where a session of a round that was called off could not be given up.
	if err := r.memory.take(); err != nil {
		return 1, err
	}
	child, err := start(config)
	if err != nil {
		return cannotRun(err), errors.Join(err, r.memory.untake())
	}
	if r.notify != nil {
		r.notify.Serve(child.PID())
	}
	r.mu.Lock()
	r.child, r.asked, r.phase = child, false, running
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	if err := r.memory.drop(ctx, r.client); err != nil {
		r.say("what was kept could not be given up yet: %v", err)
	}
	if !r.Notify {
		r.forward("READY=1")
	}
	return 0, nil
}

// cannotRun has the exit statuses of env(1).
func cannotRun(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return 127
	}
	return 126
}

// join makes this a participant in updates. Without, it commits when it is stopped, which is part of every update too.
func (r *runner) join() *holdfast.Participant {
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	defer cancel()
	p, err := holdfast.Join(ctx, holdfast.ParticipantConfig{
		Name: r.Session, Required: r.Required, Optional: r.Optional,
		Prepare: r.prepare, Quiesce: r.quiesce, Abort: r.abort,
	})
	if err != nil {
		r.say("it isn't asked before updates, and commits when it is stopped: %v", err)
		return nil
	}
	return p
}

// prepare pins the memory while the command runs.
func (r *runner) prepare(ctx context.Context, round *holdfast.Round) error {
	r.extend(ctx, round, pinTime(r.Config.Memory), "memory is to be pinned")
	if err := r.pinnable(ctx); err != nil {
		return err
	}
	session, err := round.Acquire(ctx, r.client, r.Session, r.options()...)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.session = session
	r.mu.Unlock()
	return r.preserve(session)
}

// pinTime is more than it takes: 1 GiB takes less than a second where it was measured.
func pinTime(wanted []Memory) time.Duration {
	var sum int64
	for _, m := range wanted {
		sum += m.Size
	}
	return 10*time.Second + time.Duration(sum>>30)*10*time.Second
}

func (r *runner) extend(ctx context.Context, round *holdfast.Round, d time.Duration, reason string) {
	if deadline := round.Deadline(); deadline.IsZero() || time.Until(deadline) >= d {
		return
	}
	if err := round.Extend(ctx, d, reason); err != nil {
		r.say("more time for the update: %v", err)
	}
}

// pinnable makes sure that preserving can succeed.
func (r *runner) pinnable(ctx context.Context) error {
	if err := r.memory.drop(ctx, r.client); err != nil {
		return err
	}
	if err := r.memory.unchanged(r.Config.Memory); err != nil {
		return err
	}
	return room(r.memory.files, r.Config.Memory)
}

func (r *runner) options() []holdfast.AcquireOption {
	if r.own {
		return nil
	}
	return []holdfast.AcquireOption{holdfast.WithReplace()}
}

func (r *runner) preserve(session *holdfast.Session) error {
	for i, m := range r.Config.Memory {
		if err := session.Preserve(memoryPrefix+m.Name, r.memory.files[i]); err != nil {
			return err
		}
	}
	return nil
}

// quiesce stops the command, and commits.
func (r *runner) quiesce(ctx context.Context, round *holdfast.Round) error {
	r.mu.Lock()
	c, session := r.child, r.session
	if r.phase != running {
		r.mu.Unlock()
		return errors.New("the command isn't running: it is about to be started again")
	}
	r.phase, r.asked = stopping, true
	r.mu.Unlock()
	r.extend(ctx, round, r.StopTimeout+10*time.Second, "the command is to stop")
	stopCtx, cancel := context.WithTimeout(ctx, r.StopTimeout)
	defer cancel()
	if r.notify != nil {
		r.notify.Stopping(true)
	}
	ending, err := c.Stop(stopCtx)
	if err != nil {
		return err
	}
	if !r.clean(ending) {
		return fmt.Errorf("the command %v when it was to stop: its memory may be half of what it was to be", ending)
	}
	if err := r.commit(ctx, session); err != nil {
		return err
	}
	r.mu.Lock()
	r.phase = committed
	r.mu.Unlock()
	r.tell("stopped, and committed as generation %d", r.memory.generation+1)
	return nil
}

// commit completes a session that has the memory already, and has it kept.
func (r *runner) commit(ctx context.Context, session *holdfast.Session) error {
	if !r.complete {
		if err := r.fill(session); err != nil {
			return err
		}
		r.complete = true
	}
	if r.own {
		return session.Store(ctx)
	}
	return session.Park(ctx, r.client)
}

// fill adds the carried files, and the record that the memory is whole.
func (r *runner) fill(session *holdfast.Session) error {
	if err := r.memory.unchanged(r.Config.Memory); err != nil {
		return err
	}
	files, memfds, err := carry(r.Files)
	if err != nil {
		return err
	}
	defer closeAll(memfds)
	for i, f := range files {
		if err := session.Preserve(filePrefix+f.Name, memfds[i]); err != nil {
			return err
		}
	}
	whole := record{Generation: r.memory.generation + 1, Stopped: time.Now(), Files: files}
	for _, m := range r.Config.Memory {
		whole.Memory = append(whole.Memory, recordFile{m.Name, m.Size})
	}
	f, err := newMemfd(recordName, recordSize)
	if err != nil {
		return err
	}
	if err := errors.Join(writeRecord(f, whole), session.Preserve(recordName, f)); err != nil {
		f.Close()
		return err
	}
	r.memory.recorded(f)
	return nil
}

// abort has the command go on. The session is given up already, unless it was committed and this process has left the round.
func (r *runner) abort(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		// This process may have been told to end while the round was called off: then nothing is kept any more.
		if r.session != nil && givenUp(r.session) {
			r.session, r.complete = nil, false
			if r.phase == committed {
				r.phase = stopping
			}
		}
		return // the rest is up to end
	}
	r.session, r.complete = nil, false
	if r.notify != nil {
		r.notify.Stopping(false)
	}
	if r.phase == stopping || r.phase == committed {
		r.say("the update was called off (%s): the command goes on", reason)
		r.phase = running
		select {
		case r.again <- struct{}{}:
		default:
		}
	}
}

func givenUp(s *holdfast.Session) bool {
	return errors.Is(s.LiveUpdate().Use(func(int) error { return nil }), os.ErrClosed)
}

// end is for this process being told to end, or the command having done so: it stops, and what it leaves is committed.
func (r *runner) end(participant *holdfast.Participant, signals <-chan os.Signal) (int, error) {
	r.mu.Lock()
	r.leaving = true
	r.mu.Unlock()
	r.forward(fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", (r.StopTimeout + keepTimeout).Microseconds()))
	if participant != nil {
		participant.Close()
	}
	if r.child == nil || r.phase == committed {
		return 0, nil // what was kept is untouched, or what is to be kept is
	}
	const lost = "its memory isn't kept, since it may be half of what it was to be; the next start is a clean one"
	stop := r.child.Stop
	if r.phase == stopping {
		stop = r.child.GoOnStopping
	}
	r.asked = r.asked || r.phase == running
	ctx, cancel := context.WithTimeout(context.Background(), r.StopTimeout)
	defer cancel()
	go impatient(ctx, cancel, signals)
	ending, err := stop(ctx)
	if err != nil {
		return 1, errors.Join(fmt.Errorf("%w: it is killed, and %s", err, lost), r.child.Kill())
	}
	if !r.clean(ending) {
		return max(1, ending.ExitStatus()), fmt.Errorf("the command %v: %s", ending, lost)
	}
	// Nobody gains anything by having this broken off.
	ctx, cancel = context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	if err := r.keep(ctx); err != nil {
		return 1, fmt.Errorf("the command has stopped, and its memory can't be kept; the next start is a clean one: %w", err)
	}
	r.say("committed as generation %d", r.memory.generation+1)
	return 0, nil
}

// impatient ends the wait for the command's stop when this process is told again to end.
func impatient(ctx context.Context, cancel func(), signals <-chan os.Signal) {
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				cancel()
			}
		case <-ctx.Done():
			return
		}
	}
}

// keep commits outside of a round.
func (r *runner) keep(ctx context.Context) error {
	if r.complete { // a round was broken off while it was given to be kept
		return r.commit(ctx, r.session)
	}
	if err := r.pinnable(ctx); err != nil {
		return err
	}
	session, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	defer session.Close() // whoever keeps it has its own by then
	if err := r.preserve(session); err != nil {
		return err
	}
	return r.commit(ctx, session)
}

func (r *runner) acquire(ctx context.Context) (*holdfast.Session, error) {
	begun := time.Now()
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		session, err := r.client.Acquire(ctx, r.Session, r.options()...)
		if !errors.Is(err, holdfast.ErrNameTaken) || time.Since(begun) > nameWait {
			return session, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}
