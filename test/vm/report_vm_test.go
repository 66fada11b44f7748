// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// slack is by how much a boundary of the report may be off from what a witness saw; and besides by 2 % of the span that it ends.
const slack = 50 * time.Millisecond

// TestReport compares the reports of three updates with what witnesses saw. This process stamps each line that the guest's
// serial console says, the moment it arrives, with the clock of the machine outside. On it are the lines of both kernels, of
// the dynamic linker as the last before PID 1's first, of systemd, and of programs that take part (test/witness).
func TestReport(t *testing.T) {
	w := &watcher{reports: map[int]*timeline.Report{}, guest: map[int]map[string]time.Duration{}}
	w.run(t, "report.sh", "--next-kernel", "7.3", "--package", "libpam-systemd", "--env", "WAIT=12", "--timeout", "600",
		// The console from the first line on, with what systemd-shutdown says; the last word of PID 1's dynamic linker is that it
		// has done its work.
		"--cmdline", "loglevel=7 printk.devkmsg=on earlycon=uart8250,io,0x3f8,115200 LD_DEBUG=statistics")
	if t.Failed() {
		return
	}
	for boot := 2; boot <= 4; boot++ {
		w.compare(t, boot)
	}
}

// line is one of the console's.
type line struct {
	at   time.Duration // since the test began
	text string
}

// watcher is what was seen from outside.
type watcher struct {
	mu      sync.Mutex
	boots   [][]line // of the console
	reports map[int]*timeline.Report
	// guest are times that the guest's PID 1 says of the kernel before, and its kernel of itself.
	guest map[int]map[string]time.Duration
}

func (w *watcher) run(t *testing.T, script string, args ...string) {
	t.Parallel()
	begin := time.Now()
	cmd := exec.Command("../../bin/hfvm", append(append([]string{"run", "--add", tree + ":/"}, args...), script)...)
	pipes := make([]io.Reader, 2)
	var err error
	if pipes[0], err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if pipes[1], err = cmd.StderrPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	for i, each := range []func(line){w.said, w.console} {
		reading.Go(func() {
			lines := bufio.NewScanner(pipes[i])
			lines.Buffer(nil, 1<<20)
			show := i == 0
			for lines.Scan() {
				l := line{time.Since(begin), lines.Text()}
				// What hfvm itself says, and if it fails the end of the console.
				show = show || strings.HasPrefix(l.text, "---- the end of the console")
				if show || strings.HasPrefix(l.text, "hfvm: ") {
					fmt.Printf("%s: %s\n", t.Name(), l.text)
				}
				each(l)
			}
		})
	}
	reading.Wait()
	if err := cmd.Wait(); err != nil {
		t.Errorf("hfvm %s: %v", strings.Join(cmd.Args[1:], " "), err)
	}
	fmt.Printf("%s: %.0f s\n", t.Name(), time.Since(begin).Seconds())
}

// said takes a line of the script's output.
func (w *watcher) said(l line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var boot int
	var what string
	var usec int64
	if rest, ok := strings.CutPrefix(l.text, "report "); ok {
		number, document, _ := strings.Cut(rest, " ")
		r := new(timeline.Report)
		if _, err := fmt.Sscan(number, &boot); err == nil && json.Unmarshal([]byte(document), r) == nil {
			w.reports[boot] = r
		}
	} else if n, _ := fmt.Sscanf(l.text, "said %d %s %d", &boot, &what, &usec); n == 3 {
		if w.guest[boot] == nil {
			w.guest[boot] = map[string]time.Duration{}
		}
		w.guest[boot][what] = time.Duration(usec) * time.Microsecond
	}
}

// firstLine is that of a kernel.
var firstLine = regexp.MustCompile(`\[ +0\.0+\] Linux version`)

func (w *watcher) console(l line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if firstLine.MatchString(l.text) {
		w.boots = append(w.boots, nil)
	}
	if n := len(w.boots); n > 0 {
		w.boots[n-1] = append(w.boots[n-1], l)
	}
}

// sighting is when something happened by what a witness saw: not before from, not after to.
type sighting struct{ from, to time.Duration }

// off is by how much a time is outside.
func (s sighting) off(at time.Duration) time.Duration {
	switch {
	case at < s.from:
		return at - s.from
	case at > s.to:
		return at - s.to
	}
	return 0
}

// view is a boot seen from outside.
type view struct {
	t     *testing.T
	boot  int
	lines []line
}

// line finds the first line that has this in it, and when it came.
func (v view) line(part string) sighting {
	v.t.Helper()
	for _, l := range v.lines {
		if strings.Contains(l.text, part) {
			return sighting{l.at, l.at}
		}
	}
	v.t.Errorf("boot %d: the console never said %q", v.boot, part)
	return sighting{}
}

var witnessed = regexp.MustCompile(`witness: (\S+) (\S+) (\d+\.\d+)`)

// each has every mark of the witnesses of that name and kind: its time by the guest's clock, and when it came.
func (v view) each(name, what string, mark func(up, at time.Duration)) {
	v.t.Helper()
	found := false
	for _, l := range v.lines {
		m := witnessed.FindStringSubmatch(l.text)
		if m == nil || name != "" && m[1] != name || m[2] != what {
			continue
		}
		up, err := time.ParseDuration(m[3] + "s")
		if err != nil {
			v.t.Fatal(err)
		}
		found = true
		mark(up, l.at)
	}
	if !found {
		v.t.Errorf("boot %d: no witness %q said %q", v.boot, name, what)
	}
}

// zero is when this boot's clock began. Witnesses have told their clock many times; the one that came quickest counts.
func (v view) zero() time.Duration {
	v.t.Helper()
	var zero time.Duration
	v.each(fmt.Sprint("boot", v.boot), "clock", func(up, at time.Duration) {
		if zero == 0 || at-up < zero {
			zero = at - up
		}
	})
	return zero
}

// mark is when a witness saw something: between its look at the clock and the arrival of its words. Of several witnesses the
// first counts, or the last.
func (v view) mark(name, what string, last bool) sighting {
	v.t.Helper()
	var s sighting
	zero := v.zero()
	v.each(name, what, func(up, at time.Duration) {
		if s == (sighting{}) || last == (zero+up > s.from) {
			s = sighting{zero + up, max(at, zero+up)}
		}
	})
	return s
}

// between is what happened after a witness said the one, and before it said the other.
func between(before, after sighting) sighting {
	return sighting{before.from, max(before.from, after.to)}
}

var stamped = regexp.MustCompile(`\[ *(\d+\.\d+)\] `)

// lost is by how much the kernel's log lagged behind the world outside when its first process began, against its first line: a
// kernel's clocks count timer ticks until all clocks are known, and a virtual machine that has to wait for a processor misses some.
func (v view) lost() time.Duration {
	v.t.Helper()
	began, first := v.line("Linux version").from, v.line("Run /sbin/init").from
	var lag time.Duration
	for _, l := range v.lines {
		m := stamped.FindStringSubmatch(l.text)
		if m == nil || l.at < first {
			continue
		}
		if up, err := time.ParseDuration(m[1] + "s"); err == nil && (lag == 0 || l.at-up < lag) {
			lag = l.at - up
		}
	}
	return lag - began
}

// compare holds the report of how this boot came about against what was seen.
func (w *watcher) compare(t *testing.T, boot int) {
	r := w.reports[boot]
	if r == nil || len(w.boots) < boot {
		t.Fatalf("boot %d: there is no report, or it was never seen", boot)
	}
	before, after := view{t, boot - 1, w.boots[boot-2]}, view{t, boot, w.boots[boot-1]}
	began, beganNext := before.zero(), after.zero()
	usec := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	var worst time.Duration
	// check has a boundary of the report, in its microseconds, and the length of the span that it ends.
	check := func(what string, reported, length int64, seen sighting) {
		t.Helper()
		at := began + usec(reported-r.From.Start)
		off, may := seen.off(at), slack+usec(length)/50
		t.Logf("boot %d: %-26s off by %6.1f ms of %5.1f ms; seen to %5.1f ms", boot, what, off.Seconds()*1e3, may.Seconds()*1e3, (seen.to-seen.from).Seconds()*1e3)
		if off.Abs() > may {
			t.Errorf("boot %d: %s was at %v by the report; seen from outside it was from %v to %v: off by more than %v", boot, what, at, seen.from, seen.to, may)
		}
		worst = max(worst, off.Abs())
	}
	spans := map[string]timeline.Span{}
	for _, s := range r.Spans {
		spans[s.Name] = s
	}
	begins := func(what, span string, seen sighting) {
		t.Helper()
		s, ok := spans[span]
		if !ok {
			t.Errorf("boot %d: the report has no %s", boot, span)
			return
		}
		check(what, s.Begin, 0, seen)
	}
	ends := func(what, span string, seen sighting) {
		t.Helper()
		s, ok := spans[span]
		if !ok {
			t.Errorf("boot %d: the report has no %s", boot, span)
			return
		}
		check(what, s.End, s.End-s.Begin, seen)
	}
	said := func(what string, zero time.Duration) sighting {
		t.Helper()
		at := w.guest[boot][what]
		if at == 0 {
			t.Errorf("boot %d: the guest doesn't say %s", boot, what)
		}
		return sighting{zero + at, zero + at}
	}
	begins("prepare begins", "prepare", between(before.mark("", "idle", true), before.mark("", "preparing", false)))
	allPrepared := between(before.mark("", "prepared", true), before.mark("", "quiescing", false))
	ends("prepare ends", "prepare", allPrepared)
	begins("quiesce begins", "quiesce", allPrepared)
	ready := between(before.mark("", "quiesced", true), before.mark("", "quiesced-arrived", true))
	ends("quiesce ends", "quiesce", ready)
	for _, p := range r.Participants {
		for _, a := range p.Answers {
			done := a.Name + "d" // prepared, quiesced
			check(p.Name+" has "+done, a.End, a.End-a.Begin, between(before.mark(p.Name, done, false), before.mark(p.Name, done+"-arrived", false)))
		}
	}
	stop := said("PreviousShutdownStart", began)
	if stop.from < ready.from {
		// It is the quiesce unit that got everybody ready, with which PID 1 began.
		stop = ready
	}
	begins("stop begins", "stop", stop)
	ends("kexec, by PID 1", "stop", said("PreviousShutdownLateFinish", began))
	ends("kexec, on the console", "stop", before.line("systemd-shutdown[1]: Rebooting with kexec"))
	ends("kernel start, by its clock", "kexec", sighting{beganNext, beganNext})
	first, lost := after.line("Linux version").from, after.lost()
	t.Logf("boot %d: the kernel's log, %v after its first line, had lost %v", boot, after.line("Run /sbin/init").from-first, lost)
	ends("kernel start, by its log", "kexec", sighting{first + lost, first + lost})
	ends("PID 1", "kernel", after.line("runtime linker statistics"))
	// PID 1 says so once it has begun the process.
	ends("holdfastd", "userspace", between(said("holdfastd", beganNext), after.line("systemd[1]: Starting holdfastd.service")))
	var last int64
	for _, o := range r.Owners {
		for _, s := range o.Sessions {
			if s.Back == nil {
				t.Errorf("boot %d: %s isn't back", boot, s.KernelName)
				continue
			}
			who := strings.Trim(strings.TrimSuffix(o.Owner, ".service"), "/")
			check(who+"'s session is back", *s.Back, *s.Back-spans["reclaim"].Begin, between(after.mark(who, "asking", false), after.mark(who, "back", false)))
			last = max(last, *s.Back)
		}
	}
	if end := spans["reclaim"].End; end != last {
		t.Errorf("boot %d: reclaim ends at %d, and the last session is back at %d", boot, end, last)
	}
	t.Logf("boot %d: the worst is off by %v", boot, worst)
}
