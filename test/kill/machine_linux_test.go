// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/luosim"
)

// batch is how many names are begun in a boot: few, since all that is stored makes holdfastd's work longer. Twice as many
// cross an update.
const batch = 8

// stride is how many of holdfastd's system calls come to one kill, unless -every is set.
const stride = 2

// unharmed is how many victims in a row must come to the end of the phase, for it to be done: Go's runtime has each of
// them make a few calls more or less.
const unharmed = 5

// phase is a part of a session's life, and who dies in it.
type phase struct{ Victim, Part string }

const (
	theClient = "client"
	theDaemon = "holdfastd"

	firstLife  = "acquire to release"
	renewal    = "renewal"
	ownStart   = "its own start"
	andRestart = "restart"
	andUpdate  = "update"
)

var (
	phases  = []phase{{theClient, firstLife}, {theClient, renewal}, {theDaemon, ownStart}, {theDaemon, firstLife}, {theDaemon, renewal}}
	actions = map[string][]string{firstLife: {"park", "back", "release"}, renewal: {"park"}, ownStart: {"back"}}
)

// job is one kill.
type job struct {
	phase
	N    int    // at the victim's N-th system call
	Then string // what comes next: the client is started again, or only after an update
}

func (j job) String() string {
	return fmt.Sprintf("%s killed at system call %d of %s, then %s", j.Victim, j.N, j.Part, j.Then)
}

// name is one that clients live and die under.
type name struct {
	record
	Name    string
	Renewed bool // since an update
	Job     *job // that was done to it and isn't judged yet
}

// state goes from one boot to the next by a file.
type state struct {
	Seed     string
	Names    int
	Next     int // the number of the next job
	Offset   int // the first of holdfastd's system calls to be killed at
	Calls    int // system calls of the victim, once the phase is done
	Unharmed int // victims in a row that came to the end of it
	Records  []*name
	Rows     []*deaths
	Failures []string
	Slowest  time.Duration // of a client that started again, to its last step
	Noticed  int           // clients that were given an error by the death of holdfastd
}

// deaths are of those who died after the same step.
type deaths struct {
	Step     string
	Kills    map[string]int // by what came next
	Outcomes map[string]int
}

type machine struct {
	state
	phase
	dir  string
	pid1 *pid1
	mu   sync.Mutex // of Failures
}

func (m *machine) fail(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text := fmt.Sprintf("boot %d: ", luosim.Boot()) + fmt.Sprintf(format, args...)
	m.Failures = append(m.Failures, text)
	fmt.Println("FAIL:", text)
}

// failuresMax is when to give up.
const failuresMax = 10

// boot is one boot of the machine: it returns at the end of the last one.
func boot(dir string, p phase) error {
	m := &machine{dir: dir, phase: p}
	path := filepath.Join(dir, "state")
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		m.state = state{Seed: newNonce(), Offset: 1 + rand.N(stride)}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(data, &m.state); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "boot", luosim.Boot())
	ctx := context.Background()
	m.pid1, err = bootPID1(ctx, []string{filepath.Join(dir, "holdfastd"), "--uid-owners", "--policy", filepath.Join(dir, "policy")}, log, m.fail)
	if err != nil {
		return err
	}
	if err := m.work(); err != nil {
		return err
	}
	if len(m.Records) == 0 || len(m.Failures) >= failuresMax {
		return m.report()
	}
	if data, err = json.Marshal(m.state); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return m.pid1.kexec(ctx)
}

func (m *machine) work() error {
	came := m.Records
	m.Records = nil
	for _, r := range came {
		j := (*job)(nil)
		if m.Part == renewal && r.Job == nil && !r.Renewed {
			j = m.next()
		}
		if j != nil {
			if err := m.kill(j, r); err != nil {
				return fmt.Errorf("%v: %w", j, err)
			}
		} else if !m.startAgain(r) {
			continue
		}
		if r.Renewed {
			if err := m.live(r, "release"); err != nil {
				m.fail("%s: can't be released at last: %v", r.Name, err)
			}
			continue
		}
		r.Renewed = true
		m.Records = append(m.Records, r)
	}
	for range batch {
		if m.Calls > 0 || len(m.Failures) >= failuresMax {
			break
		}
		var r *name
		if m.Part == ownStart && len(m.Records) > 0 {
			r = m.Records[len(m.Records)-1] // so that there is always as much to take over
		} else {
			m.Names++
			r = &name{Name: fmt.Sprintf("n%d", m.Names)}
			m.Records = append(m.Records, r)
		}
		if m.Part != firstLife {
			if err := m.live(r, "park"); err != nil {
				m.fail("%s: nobody dies, and it can't be parked: %v", r.Name, err)
				continue
			}
		}
		if m.Part != renewal {
			j := m.next()
			if err := m.kill(j, r); err != nil {
				return fmt.Errorf("%v: %w", j, err)
			}
		}
	}
	return nil
}

func (p phase) String() string { return p.Victim + " in " + p.Part }

// next is the next kill, or nil once they are done.
func (m *machine) next() *job {
	if m.Calls > 0 {
		return nil
	}
	i := m.Next
	m.Next++
	j := &job{phase: m.phase, N: i + 1, Then: [...]string{andRestart, andUpdate}[i%2]}
	switch {
	case m.Part == ownStart: // nobody has anything under way that an update could find
		j.Then = andRestart
	case *every:
		j.N = i/2 + 1
	}
	if m.Victim == theDaemon && !*every {
		// It makes many more than a client does.
		j.N = i*stride + m.Offset
	}
	return j
}

// kill does it, and judges what came of it unless an update is to come first.
func (m *machine) kill(j *job, r *name) error {
	var died bool
	var calls int64
	var err error
	r.Last, r.Job = "", j
	r.Finished = false
	switch {
	case j.Victim == theClient:
		died, calls, err = m.killClient(j, r)
	case j.Then == andUpdate:
		died, calls, err = m.killBoth(j, r)
	default:
		died, calls, err = m.killDaemon(j, r)
	}
	if err != nil {
		return err
	}
	if died {
		m.Unharmed = 0
		r.Unsafe = j.Part == renewal && j.Then == andUpdate && !r.Finished
	} else {
		r.Job = nil
		if m.Unharmed++; m.Unharmed == unharmed {
			m.Calls = max(1, int(calls))
		}
	}
	if j.Then == andRestart || !died {
		m.startAgain(r)
	}
	return nil
}

// startAgain has a client started again, of which the victim is dead, and judges what it finds.
func (m *machine) startAgain(r *name) bool {
	was := r.was()
	begun := time.Now()
	last := r.Last
	r.Found = ""
	err := m.live(r, "park")
	m.Slowest = max(m.Slowest, time.Since(begun))
	if err != nil {
		m.fail("%s (%v, last told %q): a new client can't go on: %v", r.Name, r.Job, last, err)
		return false
	}
	if r.Job != nil {
		m.count(r.Job, last, was+" and "+r.Found)
		r.Job = nil
	}
	return true
}

func (m *machine) count(j *job, step, outcome string) {
	step, _, _ = strings.Cut(step, " ")
	i := slices.IndexFunc(m.Rows, func(r *deaths) bool { return r.Step == step })
	if i < 0 {
		i = len(m.Rows)
		m.Rows = append(m.Rows, &deaths{Step: step, Kills: map[string]int{}, Outcomes: map[string]int{}})
	}
	m.Rows[i].Kills[j.Then]++
	m.Rows[i].Outcomes[outcome]++
}

// hear holds what a client tells against what was told before.
func (m *machine) hear(r *name, line string) {
	last := r.Last
	if err := r.hear(line, uint64(luosim.Boot())); err != nil {
		m.fail("%s (%v, last told %q): %v", r.Name, r.Job, last, err)
	}
}

// life is the next client of a record.
func (m *machine) life(r *name) *client {
	c := &client{name: r.Name, seed: m.Seed, nonce: newNonce(), epoch: uint64(luosim.Boot())}
	c.told = func(step string) { m.hear(r, step) }
	r.Begun = append(r.Begun, c.nonce)
	return c
}

// live is a client in this process, which nobody kills.
func (m *machine) live(r *name, actions ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return m.life(r).live(ctx, actions)
}

// victim is a client in a process of its own.
type victim struct {
	cmd   *exec.Cmd
	pidfd int
	in    io.WriteCloser
	out   *bufio.Scanner
}

// begin starts a client that waits to be let go.
func (m *machine) begin(r *name, part string) (*victim, error) {
	c := m.life(r)
	args := []string{"-held", "-name", c.name, "-seed", c.seed, "-nonce", c.nonce, "-epoch", strconv.FormatUint(c.epoch, 10)}
	v := &victim{cmd: exec.Command(filepath.Join(m.dir, "kill"), append(args, actions[part]...)...)}
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &v.pidfd}
	var err error
	if v.in, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	v.out = bufio.NewScanner(out)
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if !v.out.Scan() || v.out.Text() != "ready" {
		return nil, fmt.Errorf("the client is not ready: %q, %v", v.out.Text(), v.out.Err())
	}
	return v, nil
}

// listen hears it to its end, or death.
func (v *victim) listen(m *machine, r *name) (died bool) {
	for v.out.Scan() {
		m.hear(r, v.out.Text())
		if word, _, _ := strings.Cut(v.out.Text(), " "); word == "done" || word == "error" {
			return false
		}
	}
	return true
}

// wait returns when nothing is left of it. It must not be traced any more: see [pid1.reap].
func (v *victim) wait() {
	v.in.Close()
	poll := []unix.PollFd{{Fd: int32(v.pidfd), Events: unix.POLLIN}}
	for poll[0].Revents == 0 {
		unix.Poll(poll, -1)
	}
	unix.Close(v.pidfd)
	v.cmd.Wait()
}

func (m *machine) killClient(j *job, r *name) (died bool, calls int64, err error) {
	if _, err := m.pid1.daemon(); err != nil {
		return false, 0, err
	}
	v, err := m.begin(r, j.Part)
	if err != nil {
		return false, 0, err
	}
	tr, err := startKiller(v.cmd.Process.Pid, j.N, *every, func() {})
	if err != nil {
		return false, 0, err
	}
	tr.counting.Store(true)
	io.WriteString(v.in, "\n")
	died = v.listen(m, r)
	if err := tr.End(); err != nil {
		return died, 0, err
	}
	v.wait()
	if strings.HasPrefix(r.Last, "error") {
		m.fail("%s (%v): nobody has died yet: %s", r.Name, j, r.Last)
	}
	return died, tr.calls.Load(), nil
}

// killBoth kills a client together with holdfastd.
func (m *machine) killBoth(j *job, r *name) (died bool, calls int64, err error) {
	pid, err := m.pid1.daemon()
	if err != nil {
		return false, 0, err
	}
	v, err := m.begin(r, j.Part)
	if err != nil {
		return false, 0, err
	}
	tr, err := startKiller(pid, j.N, *every, func() { v.cmd.Process.Kill() })
	if err != nil {
		return false, 0, err
	}
	tr.counting.Store(true)
	io.WriteString(v.in, "\n")
	v.listen(m, r)
	if err := tr.End(); err != nil {
		return false, 0, err
	}
	v.wait()
	if tr.hasKilled() {
		m.pid1.killed = tr.PID
		return true, tr.calls.Load(), nil
	}
	return false, tr.calls.Load(), nil
}

// killDaemon kills holdfastd under a client that goes on.
func (m *machine) killDaemon(j *job, r *name) (died bool, calls int64, err error) {
	pid, err := m.pid1.daemon()
	if err != nil {
		return false, 0, err
	}
	var at string
	note := func() { at = cmp.Or(r.Last, "start") }
	var tr *killer
	if j.Part == ownStart {
		attached := make(chan error, 1)
		m.pid1.holdNext(func(pid int) {
			var err error
			if tr, err = startKiller(pid, j.N, *every, note); err == nil {
				tr.counting.Store(true)
			}
			attached <- err
		})
		unix.Kill(pid, unix.SIGKILL)
		err = <-attached
	} else if tr, err = startKiller(pid, j.N, *every, note); err == nil {
		tr.counting.Store(true)
	}
	if err != nil {
		return false, 0, err
	}
	lifeErr := m.live(r, actions[j.Part]...)
	if err := tr.End(); err != nil {
		return false, 0, err
	}
	if !tr.hasKilled() {
		if lifeErr != nil {
			m.fail("%s (%v): nobody has died yet: %v", r.Name, j, lifeErr)
		}
		return false, tr.calls.Load(), nil
	}
	m.pid1.killed = tr.PID
	if lifeErr != nil {
		m.Noticed++
		if errors.Is(lifeErr, errCorrupt) {
			m.fail("%s (%v): %v", r.Name, j, lifeErr)
		}
		fmt.Printf("%v, after %q: the client was told %v\n", j, at, lifeErr)
	}
	r.Last = at
	return true, tr.calls.Load(), nil
}

func (tr *killer) hasKilled() bool {
	select {
	case <-tr.killed:
		return true
	default:
		return false
	}
}

func (m *machine) report() error {
	if m.Victim == theDaemon && !*every {
		fmt.Printf("at each %d. system call from %d on; all with -every\n", stride, m.Offset)
	}
	fmt.Printf("%d system calls, %d boots, %d names; a new client took %v at most; %d clients got an error when holdfastd died\n",
		m.Calls, luosim.Boot(), m.Names, m.Slowest.Round(time.Millisecond), m.Noticed)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "last step\tkills, then restart\tupdate\twhat there was")
	for _, r := range m.Rows {
		var outcomes []string
		for what, n := range r.Outcomes {
			outcomes = append(outcomes, fmt.Sprintf("%d %s", n, what))
		}
		slices.Sort(outcomes)
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", cmp.Or(r.Step, "-"), r.Kills[andRestart], r.Kills[andUpdate], strings.Join(outcomes, ", "))
	}
	table.Flush()
	if len(m.Failures) > 0 {
		return fmt.Errorf("%d failures", len(m.Failures))
	}
	fmt.Println("all done")
	return nil
}
