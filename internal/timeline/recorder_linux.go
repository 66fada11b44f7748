// SPDX-License-Identifier: MIT

package timeline

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

const (
	sessionName = "report"
	fileName    = "timeline"

	// beatEvery is how exact the last sign of life is.
	beatEvery = 20 * time.Millisecond
	// askEvery is how often PID 1 is asked, while the kernel is being left, whether it has begun to stop the host.
	askEvery = 250 * time.Millisecond

	// answersMost is how many answers of one owner a round may have, so that nobody takes the room of all.
	answersMost = 200

	orchestratorUnit = "holdfastd.service"
)

// Session is one of somebody's.
type Session struct {
	Owner, Name, KernelName string
	// Where it was before the kernel was left, in words, of one that was carried.
	Where string
	// State is "reclaimed" or "released", of one that came back.
	State string
	// At is when it came back, on CLOCK_BOOTTIME.
	At time.Duration
}

// Recorder writes the timeline. It is safe for concurrent use.
type Recorder struct {
	log *slog.Logger
	// times is [systemd.TimesOf].
	times func(ctx context.Context, unit string) (systemd.Times, error)

	mu   sync.Mutex
	file *file
	back map[string]bool // kernel names that have come back in this kernel
	// unread says why what came over the last update can't be read, where that is so.
	unread string

	// What carries the file. carried: it crosses the next update.
	carrying  sync.Mutex
	committed *holdfast.Committed // to be renewed
	session   *holdfast.Session   // held by this process, where there is no keeper
	carried   bool
	own       string // the session's name in the kernel

	leaving sync.Mutex
	stay    func() // set while the kernel is being left
	asking  sync.WaitGroup

	seen struct {
		round        int
		phase, asked string
		answers      map[string]string // by participant
		lines        map[string]int    // of answers, by owner
	}
}

// Standing is how a participant stands to the phase of a round.
type Standing struct {
	ID            string // of its connection
	Name, Owner   string
	Required      bool
	State, Reason string // waiting, ready, vetoed, late, gone
	Since         time.Time
}

// Changed is told of each change in a round, one after the other, and writes down what is new. It takes microseconds.
func (r *Recorder) Changed(round int, phase, reason string, standings []Standing) {
	if round == 0 {
		return
	}
	if round != r.seen.round {
		r.round(round)
		r.seen.round, r.seen.phase, r.seen.answers, r.seen.lines = round, "", map[string]string{}, map[string]int{}
	}
	entered := phase != r.seen.phase
	if entered {
		r.add(Line{Event: Phase, Phase: phase, Reason: reason})
		r.seen.phase = phase
		switch phase {
		case "preparing", "quiescing":
			r.seen.asked = phase
		case "committing":
			r.Leave()
		case "aborted", "resumed":
			r.Stay()
		}
	}
	if !entered && phase != "preparing" && phase != "prepared" && phase != "quiescing" {
		return // who ends now has answered, or is stopped with everything else
	}
	for _, s := range standings {
		// The last answer is often what ends the phase.
		if s.State == "waiting" {
			delete(r.seen.answers, s.ID)
			continue
		}
		answer := s.State + " " + s.Reason
		if r.seen.answers[s.ID] == answer {
			continue // said once more
		}
		r.seen.answers[s.ID] = answer
		if r.seen.lines[s.Owner]++; r.seen.lines[s.Owner] > answersMost {
			r.file.dropped().Add(1)
			continue
		}
		r.add(Line{Event: Answer, At: int64(Now() - time.Since(s.Since)), Phase: r.seen.asked, Participant: s.Name, Owner: s.Owner, Required: s.Required, State: s.State, Reason: s.Reason})
	}
}

// Open takes up the timeline that an earlier process or kernel has left with the orchestrator, or begins one. There is a
// Recorder with an error too: what it records is in this process only, until [Recorder.Carry] succeeds.
func Open(ctx context.Context, client *holdfast.Client, log *slog.Logger) (*Recorder, error) {
	r := &Recorder{log: log, times: systemd.TimesOf, back: map[string]bool{}}
	err := r.restore(ctx, client)
	if r.file == nil {
		var fileErr error
		if r.file, fileErr = newFile(); fileErr != nil {
			return nil, fileErr
		}
	}
	if len(kernels(r.file.lines())) == 0 {
		r.begin(ctx, 0)
	}
	return r, errors.Join(err, r.Carry(ctx, client))
}

// restore takes the document over. In a new kernel it begins its part.
func (r *Recorder) restore(ctx context.Context, client *holdfast.Client) error {
	if client == nil {
		return nil
	}
	committed, err := client.Reclaim(ctx, sessionName)
	if errors.Is(err, holdfast.ErrNoSuchSession) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the timeline of the last update: %w", err)
	}
	files, err := committed.Retrieve()
	if err != nil {
		r.cannotRead(committed, err)
		committed.Close()
		return fmt.Errorf("the timeline of the last update: %w", err)
	}
	for file, f := range files {
		if file == fileName && r.file == nil {
			if r.file, err = openFile(f); err == nil {
				continue
			}
		}
		f.Close()
	}
	if r.file == nil {
		// Of no use, and in the way of the next one.
		err = cmp.Or(err, os.ErrNotExist)
		r.cannotRead(committed, err)
		committed.Close()
		return errors.Join(fmt.Errorf("the timeline of the last update: %w", err), client.Release(ctx, sessionName))
	}
	r.committed, r.own = committed, name.Kernel(committed.Manifest().Owner, sessionName)
	r.takeUp(ctx)
	return nil
}

// cannotRead remembers that there was an update, of which nothing else is known.
func (r *Recorder) cannotRead(committed *holdfast.Committed, err error) {
	if committed.Incoming() {
		r.unread = fmt.Sprint("the timeline of the last update can't be read: ", err)
	}
}

// takeUp goes on with the document, in a new kernel with a new part.
func (r *Recorder) takeUp(ctx context.Context) {
	last := r.file.beat().Swap(0)
	boots := kernels(r.file.lines())
	if len(boots) == 0 || boots[len(boots)-1][0].BootID != bootID() {
		r.begin(ctx, last)
		return
	}
	// An earlier process has begun this part. That the session is incoming would prove nothing: that one may not have come to
	// renewing it.
	phase := ""
	for _, l := range boots[len(boots)-1] {
		switch l.Event {
		case Back:
			r.back[l.KernelName] = true
		case Phase:
			phase = l.Phase
		}
	}
	switch phase {
	case "preparing", "prepared", "quiescing":
		r.file.add(Line{Event: Phase, At: int64(Now()), Phase: "aborted", Reason: "holdfast-updated has ended"})
	}
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(id))
}

// begin begins a kernel's part: with what PID 1 has stamped, if it is one of systemd's.
func (r *Recorder) begin(ctx context.Context, last uint64) {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	clock := Read()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	times, err := r.times(ctx, orchestratorUnit)
	if err != nil {
		r.log.Warn("could not ask PID 1 for its times", "reason", err)
	}
	r.endBefore(times)
	boot := Line{Event: Boot, At: clock.BootTime, Clock: &clock, Last: last, Dropped: r.file.dropped().Swap(0), BootID: bootID(), Release: string(bytes.TrimSpace(release)), Reason: r.unread}
	r.file.replace(compact(append(r.file.lines(), boot)))
	for _, e := range []struct {
		event Event
		at    time.Duration
	}{{Initrd, times.Initrd}, {Userspace, times.Userspace}, {Daemon, times.Unit}} {
		if e.at > 0 {
			r.file.add(Line{Event: e.event, At: int64(SinceBoot(e.at))})
		}
	}
	clock = Read()
	r.file.add(Line{Event: ClockRead, At: clock.BootTime, Clock: &clock})
}

// endBefore adds to the part of the kernel before what is known of its end in this one only.
func (r *Recorder) endBefore(times systemd.Times) {
	boots := kernels(r.file.lines())
	if len(boots) == 0 || times.PreviousShutdown == 0 || times.PreviousSwitch == 0 {
		return
	}
	// Its CLOCK_MONOTONIC and CLOCK_BOOTTIME differ by the time that the machine was suspended.
	var suspended time.Duration
	for _, l := range boots[len(boots)-1] {
		if l.Clock != nil {
			suspended = time.Duration(l.Clock.Suspended)
		}
	}
	r.file.add(Line{Event: Shutdown, At: int64(times.PreviousShutdown + suspended)})
	r.file.add(Line{Event: Switch, At: int64(times.PreviousSwitch + suspended)})
}

// Carry makes sure that the timeline crosses the next update. Call it early: it asks the orchestrator for a session.
func (r *Recorder) Carry(ctx context.Context, client *holdfast.Client) error {
	r.carrying.Lock()
	defer r.carrying.Unlock()
	if client == nil || r.carried {
		return nil
	}
	err := r.carry(ctx, client)
	if err != nil {
		return fmt.Errorf("the timeline will not cross an update: %w", err)
	}
	r.carried = true
	return nil
}

func (r *Recorder) carry(ctx context.Context, client *holdfast.Client) error {
	if r.committed != nil {
		session, err := holdfast.Renew(ctx, client, r.committed, holdfast.WithParking())
		if noKeeper(err) {
			session, err = holdfast.Renew(ctx, client, r.committed, holdfast.WithoutStore())
			r.session = session
		}
		if err != nil {
			return err
		}
		r.committed = nil
		if r.session == nil {
			session.Close()
		}
		return nil
	}
	session, err := client.Acquire(ctx, sessionName, holdfast.WithFresh(), holdfast.WithReplace())
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.own = session.KernelName()
	r.mu.Unlock()
	err = session.Preserve(fileName, r.file.File)
	if err == nil {
		err = session.Park(ctx, client)
	}
	if noKeeper(err) {
		// Park has committed it. It crosses if this process is there at the kexec.
		r.session = session
		return nil
	}
	session.Close()
	return err
}

// noKeeper tells whether the orchestrator keeps nothing for anybody.
func noKeeper(err error) bool {
	var refused *holdfast.Error
	return errors.As(err, &refused) && errors.Is(err, holdfast.ErrKeeperFull) && refused.Limit == 0
}

// Close ends the recording in this process. While the kernel is being left, that is its last sign of life.
func (r *Recorder) Close() {
	r.leaving.Lock()
	if r.stay != nil {
		r.stay()
		r.file.beat().Store(counter())
	}
	r.leaving.Unlock()
	r.asking.Wait()
	r.carrying.Lock()
	defer r.carrying.Unlock()
	if r.session != nil {
		r.session.Close()
	}
	if r.committed != nil {
		r.committed.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.close()
}

func (r *Recorder) add(l Line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.At == 0 {
		l.At = int64(Now())
	}
	r.file.add(l)
}

func (r *Recorder) readClock() {
	clock := Read()
	r.add(Line{Event: ClockRead, At: clock.BootTime, Clock: &clock})
}

// round begins a round. What was recorded of earlier ones goes, but for the last update's.
func (r *Recorder) round(number int) {
	clock := Read()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.replace(compact(r.file.lines()))
	r.file.add(Line{Event: Round, At: clock.BootTime, Round: number, Clock: &clock})
}

// Carried notes which sessions are committed and will be carried.
func (r *Recorder) Carried(sessions []Session) {
	for _, s := range sessions {
		if r.Own(s.KernelName) {
			continue
		}
		r.add(Line{Event: Carried, Owner: s.Owner, Name: s.Name, KernelName: s.KernelName, Where: s.Where})
	}
}

// Back notes which sessions of the previous kernel came back to their owners or were released. Those that it knows it
// passes over, so all may be named each time.
func (r *Recorder) Back(sessions []Session) {
	var back []Line
	for _, s := range sessions {
		if r.Own(s.KernelName) {
			continue
		}
		r.mu.Lock()
		known := r.back[s.KernelName]
		r.back[s.KernelName] = true
		r.mu.Unlock()
		if !known {
			back = append(back, Line{Event: Back, At: int64(s.At), Owner: s.Owner, Name: s.Name, KernelName: s.KernelName, State: s.State})
		}
	}
	for i, l := range back {
		if i == len(back)-1 {
			// They are put on the line by this reading and the one before.
			clock := Read()
			l.Clock = &clock
		}
		r.add(l)
	}
}

// Own tells whether a session is the one that carries the timeline, which is nobody's memory.
func (r *Recorder) Own(kernelName string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.own != "" && kernelName == r.own
}

// Leave is called when the kernel is about to be left, at the latest moment at which that costs nothing. From then on this
// process gives signs of life, to the end or until [Recorder.Stay].
func (r *Recorder) Leave() {
	r.readClock()
	r.leaving.Lock()
	defer r.leaving.Unlock()
	if r.stay != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	r.stay = func() {
		cancel()
		ended.Wait() // it doesn't wait for anything
	}
	ended.Go(func() {
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for r.file.beat().Store(counter()); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.file.beat().Store(counter())
			}
		}
	})
	left := Now()
	r.asking.Go(func() { r.awaitShutdown(ctx, left) })
}

// awaitShutdown notes when PID 1 begins to stop the host. What it says of before the kernel was to be left is of a shutdown
// that came to nothing; or it has held that up for this round, and then the services are stopped from now on.
func (r *Recorder) awaitShutdown(ctx context.Context, left time.Duration) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		// An error: PID 1 isn't systemd, or it is systemd-shutdown by now.
		times, err := r.times(ctx, "")
		if began := SinceBoot(times.Shutdown); err == nil && began >= left && ctx.Err() == nil {
			r.add(Line{Event: Shutdown, At: int64(began)})
			r.readClock()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Stay is called when the kernel isn't left after all.
func (r *Recorder) Stay() {
	r.leaving.Lock()
	defer r.leaving.Unlock()
	if r.stay != nil {
		r.stay()
		r.stay = nil
		r.file.beat().Store(0)
	}
}

// Report is what is known of the last update. Without one, the error is [ErrNoUpdate].
func (r *Recorder) Report() (*Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	report, err := Resolve(r.file.lines())
	if err != nil {
		return nil, err
	}
	report.Dropped += r.file.dropped().Load()
	return report, nil
}

// Crossed tells whether an update was recorded.
func (r *Recorder) Crossed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	boots := kernels(r.file.lines())
	return len(boots) > 1 || len(boots) == 1 && boots[0][0].Reason != ""
}

// Began is when this kernel's part of the timeline began, on CLOCK_BOOTTIME. A restart of the process changes nothing of it.
func (r *Recorder) Began() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	boots := kernels(r.file.lines())
	if len(boots) == 0 {
		return 0
	}
	return time.Duration(boots[len(boots)-1][0].At)
}

// CarriedOver are the sessions that the kernel before this one carried, as far as it was noted.
func (r *Recorder) CarriedOver() []Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	boots := kernels(r.file.lines())
	if len(boots) < 2 {
		return nil
	}
	return sessions(ending(boots[len(boots)-2]), Carried)
}

// CameBack are the sessions that came back in this kernel.
func (r *Recorder) CameBack() []Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	boots := kernels(r.file.lines())
	if len(boots) == 0 {
		return nil
	}
	return sessions(boots[len(boots)-1], Back)
}

func sessions(lines []Line, event Event) []Session {
	var sessions []Session
	for _, l := range lines {
		if l.Event == event {
			sessions = append(sessions, Session{Owner: l.Owner, Name: l.Name, KernelName: l.KernelName, Where: l.Where, State: l.State, At: time.Duration(l.At)})
		}
	}
	return sessions
}
