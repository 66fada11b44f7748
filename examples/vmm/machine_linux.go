// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/examples/internal/pass"
	"github.com/holdfast-project/holdfast/examples/vmm/qemu"
	"github.com/holdfast-project/holdfast/examples/vmm/qmp"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const (
	// stopTimeout is less than what systemd gives a scope to stop (DefaultTimeoutStopSec=, 90 s).
	stopTimeout = time.Minute
	// answerTimeout is for a QEMU whose processors stand still.
	answerTimeout = 10 * time.Second
	// nameTimeout is how long the session's name may stay taken by one that was released: PID 1 closes what it was told to drop
	// some time after.
	nameTimeout = 5 * time.Second
)

// step is told how far it has come. Tests end somebody there.
var step = func(m *machine, name string) {}

// machine is a QEMU, and what of it is to be there after an update. Its RAM is in a session only from the time that an update
// is prepared, or the machine stopped: while it runs there is no state that fits to it.
type machine struct {
	client     *holdfast.Client
	config     qemu.Config
	ram, state *os.File
	ended      chan error // gets one when there is nothing to go on with

	mu       sync.Mutex // of the callbacks, and of the end
	qemu     *qemu.Machine
	released bool              // the orchestrator has nothing of before any more
	session  *holdfast.Session // with the RAM and the state's file in it
	stands   bool              // the processors do
	saved    []byte            // the state that fits to the RAM then
	took     string            // stopping and saving it
	parked   bool
	leaving  bool // the scope is being stopped
}

// answer is what a machine tells the manager, and that who has asked.
type answer struct {
	Scope string `json:"scope,omitempty"`
	Came  string `json:"came,omitempty"` // fresh, parked, update
	Why   string `json:"why,omitempty"`  // it is fresh
	Pause *pause `json:"pause,omitempty"`
	Error string `json:"error,omitempty"`
}

// String is a line for people.
func (a *answer) String() string {
	text := a.Scope + " " + a.Came
	if a.Why != "" {
		text += ": " + a.Why
	}
	if a.Pause != nil {
		text += ", " + a.Pause.String()
	}
	return text
}

// runMachine is the process beside QEMU, in the same scope.
func runMachine(ctx context.Context, o options, name string) error {
	conn, err := pass.Conn(os.NewFile(3, "manager"))
	if err != nil {
		return err
	}
	defer conn.Close()
	m := newMachine(qemu.Config{Kernel: o.kernel, Initrd: o.initrd, Append: o.append, Console: os.Stdout, Log: os.Stderr})
	participant, came, err := m.start(ctx, conn, name, o.mebibytes<<20)
	if err != nil {
		came = &answer{Error: err.Error()}
	}
	data, jsonErr := json.Marshal(came)
	if jsonErr != nil {
		return jsonErr
	}
	// Who has started it may be gone by now, and that is no reason to end.
	if _, sendErr := conn.Write(data); err == nil && sendErr != nil {
		log.Printf("the manager isn't told that it runs: %v", sendErr)
	}
	if err != nil {
		return err
	}
	defer m.client.Close()
	return m.run(ctx, participant)
}

func newMachine(c qemu.Config) *machine { return &machine{config: c, ended: make(chan error, 1)} }

// run returns when the machine has ended, or was saved since its scope is being stopped.
func (m *machine) run(ctx context.Context, participant *holdfast.Participant) error {
	var ended error
	select {
	case ended = <-m.ended:
	case <-ctx.Done():
	}
	m.mu.Lock()
	lost := ended != nil && m.saved == nil
	m.leaving = !lost
	m.mu.Unlock()
	if participant != nil {
		participant.Close() // a round is over then, save one whose switch has begun
	}
	if lost {
		// For who looks there why it starts afresh.
		fmt.Fprintf(m.config.Console, "\nvmm: %v; nothing of the machine is saved\n", ended)
		m.kill()
		return ended
	}
	stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return errors.Join(ended, m.stop(stopping))
}

// watch says when QEMU has ended, unless the machine was saved before: then it can go on in another QEMU.
func (m *machine) watch(q *qemu.Machine) {
	<-q.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.qemu == q && m.saved == nil {
		m.end(q.Err())
	}
}

func (m *machine) end(err error) {
	select {
	case m.ended <- err:
	default:
	}
}

// start waits for what the manager passes on, and says what the machine was made of.
func (m *machine) start(ctx context.Context, conn *net.UnixConn, name string, size int64) (*holdfast.Participant, *answer, error) {
	files, err := pass.Receive(conn)
	if err != nil {
		return nil, nil, err
	}
	defer pass.CloseAll(files)
	// Not earlier: the orchestrator goes by the cgroup, and by now that is the scope.
	if m.client, err = holdfast.Dial(ctx); err != nil {
		return nil, nil, err
	}
	came, err := m.restore(ctx, files)
	// Before it takes part in updates: as long as a session of before is open, the RAM can't be in another one.
	pass.CloseAll(files)
	if errors.Is(err, holdfast.ErrNoSuchSession) || errors.Is(err, qemu.ErrSpent) || errors.Is(err, qemu.ErrNotWhole) {
		came = &answer{Came: "fresh"}
		if !errors.Is(err, holdfast.ErrNoSuchSession) {
			came.Why = err.Error()
		} else if len(files) > 0 {
			came.Why = "the update came before it was saved"
		}
		m.tryRelease(ctx) // what is of no use is gigabytes
		err = m.boot(ctx, size)
	}
	if err != nil {
		return nil, nil, err
	}
	go m.watch(m.qemu)
	participant, err := holdfast.Join(ctx, holdfast.ParticipantConfig{
		Name: name, Prepare: m.prepare, Quiesce: m.quiesce, Abort: m.abort,
	})
	if err != nil {
		// It is saved when its scope is stopped, all the same, and that is part of the shutdown.
		log.Printf("%s isn't asked before updates: %v", name, err)
	}
	return participant, came, nil
}

// boot starts a machine with RAM that nothing is in.
func (m *machine) boot(ctx context.Context, size int64) (err error) {
	if m.ram, err = qemu.NewMemory(ramName, size); err != nil {
		return err
	}
	if m.state, err = qemu.NewMemory(stateName, qemu.StateSize); err != nil {
		return err
	}
	m.qemu, err = qemu.Start(ctx, m.config, m.ram)
	return err
}

// restore has the machine go on that the files are of. Up to the point of no return in goOn nothing is changed, so that after
// an error, or a death, it can be tried again.
func (m *machine) restore(ctx context.Context, files []*os.File) (*answer, error) {
	began := timeline.Read()
	if len(files) == 0 {
		return nil, holdfast.ErrNoSuchSession
	}
	committed, err := m.client.TakeOver(ctx, files)
	if err != nil {
		return nil, err
	}
	defer committed.Close()
	came := &answer{Came: "parked"}
	if committed.Incoming() {
		came.Came = "update"
	}
	begin := time.Now()
	memory, err := committed.Retrieve() // in this cgroup, which pays
	if err != nil {
		return nil, err
	}
	step(m, "retrieved")
	m.ram, m.state = memory[ramName], memory[stateName]
	if m.ram == nil || m.state == nil {
		return nil, fmt.Errorf("session %q isn't a machine's: it has no file %q, or none %q", committed.Name(), ramName, stateName)
	}
	retrieved := time.Now()
	saved, err := qemu.ReadState(m.state)
	if errors.Is(err, qemu.ErrSpent) || errors.Is(err, qemu.ErrNotWhole) {
		// It has died after it had gone on, or before it was saved. Its RAM is of no use.
		return nil, errors.Join(err, m.ram.Close(), m.state.Close())
	}
	if err != nil {
		return nil, err
	}
	paused, _, err := parseSaved(saved)
	if err != nil {
		return nil, err
	}
	m.stands, m.saved = true, saved
	if err := m.again(ctx); err != nil {
		return nil, err
	}
	step(m, "restored")
	if err := m.goOn(ctx); err != nil {
		m.qemu.Kill()
		return nil, err
	}
	came.Pause = paused.since(began, timeline.Read(), committed.Incoming())
	log.Printf("retrieved in %v, restored in %v", retrieved.Sub(begin), time.Since(retrieved))
	log.Print(came.Pause)
	m.tryRelease(ctx)
	step(m, "released")
	return came, nil
}

// again makes another QEMU of RAM and state.
func (m *machine) again(ctx context.Context) error {
	_, state, err := parseSaved(m.saved)
	if err != nil {
		return err
	}
	m.qemu, err = qemu.Restore(ctx, m.config, m.ram, state)
	return err
}

// goOn has a machine go on that stands still, in this QEMU, or, if that can't, in another one.
func (m *machine) goOn(ctx context.Context) error {
	for try := 0; ; try++ {
		answering, cancel := context.WithTimeout(ctx, answerTimeout)
		err := m.qemu.Stands(answering)
		cancel()
		if err == nil {
			// In this order: whoever finds the session later must not take an old state for that of the RAM.
			if err := qemu.SpendState(m.state); err != nil {
				return err
			}
			step(m, "spent")
			if err = m.qemu.Continue(ctx); err == nil {
				m.stands, m.saved = false, nil
				step(m, "continued")
				return nil
			}
			// What it has refused it hasn't done, and the state is still the RAM's. Of anything else nobody knows.
			var refused *qmp.Error
			if !errors.As(err, &refused) {
				m.saved = nil
				return fmt.Errorf("the machine may have gone on, or not: %w", err)
			}
			if m.saved != nil {
				if err := qemu.WriteState(m.state, m.saved); err != nil {
					return err
				}
			}
		}
		if m.saved == nil || try > 0 {
			return fmt.Errorf("the machine doesn't go on: %w", err)
		}
		log.Printf("the machine doesn't go on, and is restored in another QEMU: %v", err)
		m.qemu.Kill()
		if err := m.again(ctx); err != nil {
			return fmt.Errorf("the machine doesn't go on: %w", err)
		}
	}
}

// release has the orchestrator give up what it keeps of this machine, of either kernel.
func (m *machine) release(ctx context.Context) error {
	for _, d := range []liveupdate.Direction{liveupdate.Incoming, liveupdate.Outgoing} {
		err := m.client.Release(ctx, sessionName, holdfast.OnlyDirection(d))
		if err != nil && !errors.Is(err, holdfast.ErrNoSuchSession) {
			return err
		}
	}
	m.released = true
	return nil
}

func (m *machine) tryRelease(ctx context.Context) {
	if err := m.release(ctx); err != nil {
		log.Printf("the orchestrator keeps what this machine needs no more: %v", err)
	}
}

// preserve puts the RAM into a session: the slow part, while the machine runs.
func (m *machine) preserve(ctx context.Context, acquire func() (*holdfast.Session, error)) error {
	// What came over an update can't be preserved again before that is finished.
	if !m.released {
		if err := m.release(ctx); err != nil {
			return err
		}
	}
	session, err := acquire()
	for pause, waited := 20*time.Millisecond, time.Duration(0); errors.Is(err, holdfast.ErrNameTaken) && waited < nameTimeout; pause *= 2 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		waited += pause
		session, err = acquire()
	}
	if err != nil {
		return err
	}
	if err := errors.Join(session.Preserve(ramName, m.ram), session.Preserve(stateName, m.state)); err != nil {
		session.Close()
		return err
	}
	m.session = session
	step(m, "preserved")
	return nil
}

// save stops the machine, and writes what isn't RAM beside that.
func (m *machine) save(ctx context.Context) error {
	begin := time.Now()
	if err := m.qemu.Stop(ctx); err != nil {
		return cmp.Or(m.dead(), err)
	}
	m.stands = true
	stop := time.Since(begin)
	step(m, "stopped")
	// There is to be room for the line before it.
	const line = 512
	state, err := m.qemu.Save(ctx, qemu.StateMax-line)
	if err != nil {
		return cmp.Or(m.dead(), err)
	}
	head := stopped{Stop: stop, Save: time.Since(begin) - stop, Clock: timeline.Read()}
	saved, err := head.with(state)
	if err != nil {
		return err
	}
	m.saved = saved
	step(m, "saved")
	if err := qemu.WriteState(m.state, saved); err != nil {
		return err
	}
	step(m, "written")
	m.took = fmt.Sprintf("stopped in %v, saved %d bytes in %v, ", stop, len(saved), head.Save)
	return nil
}

// dead is why QEMU has ended, if it has.
func (m *machine) dead() error {
	select {
	case <-m.qemu.Done():
		return m.qemu.Err()
	default:
		return nil
	}
}

// park saves the machine into its session, and has the orchestrator keep that.
func (m *machine) park(ctx context.Context) error {
	if m.saved == nil {
		if err := m.save(ctx); err != nil {
			return err
		}
	}
	begin := time.Now()
	if err := m.session.Park(ctx, m.client); err != nil {
		return err
	}
	m.parked = true
	log.Printf("%sparked in %v", m.took, time.Since(begin))
	step(m, "parked")
	return nil
}

func (m *machine) prepare(ctx context.Context, r *holdfast.Round) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.preserve(ctx, func() (*holdfast.Session, error) {
		return r.Acquire(ctx, m.client, sessionName, holdfast.WithReplace())
	})
}

// quiesce isn't broken off with its round: in the middle of a command QEMU can't be spoken to any more.
func (m *machine) quiesce(ctx context.Context, _ *holdfast.Round) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.park(ctx)
}

// abort has the machine go on. The session is given up already; but where the scope is being stopped, one that is parked may
// have stayed so.
func (m *machine) abort(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parked = false
	if m.leaving {
		return // stop looks
	}
	m.session = nil
	if !m.stands {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := m.goOn(ctx); err != nil {
		m.end(fmt.Errorf("the update was called off (%s): %w", reason, err))
		return
	}
	go m.watch(m.qemu)
}

// stop saves the machine, unless that was done for an update, and ends it.
func (m *machine) stop(ctx context.Context) error {
	err := m.parkAtEnd(ctx)
	if err != nil {
		err = fmt.Errorf("the machine can't be saved: %w", err)
	}
	m.kill()
	return err
}

func (m *machine) parkAtEnd(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.parked {
		return nil
	}
	if err := m.dead(); err != nil && m.saved == nil {
		return err
	}
	if m.session != nil {
		if err := m.park(ctx); err == nil {
			return nil
		}
		// It was given up with its round.
		m.session.Close()
		m.session = nil
	}
	if err := m.preserve(ctx, func() (*holdfast.Session, error) {
		return m.client.Acquire(ctx, sessionName, holdfast.WithReplace())
	}); err != nil {
		return err
	}
	return m.park(ctx)
}

func (m *machine) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.qemu.Kill()
	step(m, "ended")
}
