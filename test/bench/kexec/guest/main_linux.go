// SPDX-License-Identifier: MIT

// Guest runs in the virtual machine of ./test/bench/kexec: as hfvm's script at each boot, and as the ordinary service that is
// looked at.
package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

const (
	self = "/root/bench"
	// seen is what the service has seen: start or stop, the counter, CLOCK_BOOTTIME.
	seen = "/root/seen"
	// results has the way of each kexec; for how long the service was away, in ticks of the counter; and how much of that since
	// PID 1's start, in nanoseconds.
	results = "/root/results"
)

// unit is a service like most.
const unit = `[Service]
ExecStart=` + self + ` service
[Install]
WantedBy=multi-user.target
`

var holdfast = []string{"holdfastd.socket", "holdfastd.service", "holdfast-updated.socket", "holdfast-updated.service", "holdfast-quiesce.service"}

func main() {
	log.SetFlags(0)
	var err error
	if len(os.Args) > 1 {
		err = service()
	} else {
		err = script()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// service notes when it starts and when it is told to stop, by the processor's counter, which a kexec doesn't set back.
func service() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	now := timeline.Read()
	if err := note(seen, "start", now.Counter, now.BootTime); err != nil {
		return err
	}
	<-stop
	now = timeline.Read()
	return note(seen, "stop", now.Counter, now.BootTime)
}

func note(file string, values ...any) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, values...)
	return errors.Join(err, f.Close())
}

// noted is a word with two numbers.
type noted struct {
	what string
	a, b int64
}

// In results the word is the way of a kexec; for how long the service was away, in ticks of the counter; and from PID 1's
// start on, in nanoseconds.
func notes(file string) ([]noted, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []noted
	for line := range bytes.Lines(data) {
		var n noted
		if _, err := fmt.Sscan(string(line), &n.what, &n.a, &n.b); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", file, line, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// order is the way of each kexec; the first is for warming up.
func order() ([]string, error) {
	pairs, err := strconv.Atoi(os.Getenv("PAIRS"))
	if err != nil {
		return nil, err
	}
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(seed, 0))
	ways := []string{"plain"}
	for range pairs {
		pair := []string{"plain", "holdfast"}
		random.Shuffle(2, func(i, j int) { pair[i], pair[j] = pair[j], pair[i] })
		ways = append(ways, pair...)
	}
	return ways, nil
}

func script() error {
	boot, err := strconv.Atoi(os.Getenv("HFVM_BOOT"))
	if err != nil {
		return err
	}
	ways, err := order()
	if err != nil {
		return err
	}
	if boot == 1 {
		program, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(self, program, 0o755)
		}
		if err == nil {
			err = os.WriteFile("/etc/systemd/system/bench.service", []byte(unit), 0o644)
		}
		if err == nil {
			err = command("systemctl", "enable", "--now", "bench.service")
		}
		if err != nil {
			return err
		}
	}
	began := timeline.Read()
	// A unit that failed is of no interest here.
	if out, err := exec.Command("systemctl", "is-system-running", "--wait").Output(); err != nil && !strings.HasPrefix(string(out), "degraded") {
		return fmt.Errorf("waiting for the end of the start: %s: %w", out, err)
	}
	if boot > 1 {
		if err := away(ways[boot-2], boot); err != nil {
			return err
		}
	}
	if boot > len(ways) {
		time.Sleep(time.Second) // by which the counter is measured
		now := timeline.Read()
		if err := tell(float64(now.Counter-began.Counter) / float64(now.Raw-began.Raw) * 1e9); err != nil {
			return err
		}
		return syscall.Exec("/usr/local/bin/hfvm-pass", []string{"hfvm-pass"}, os.Environ())
	}
	return leave(ways[boot-1])
}

// away notes for how long the service was away over the kexec that led here.
func away(way string, boot int) error {
	all, err := notes(seen)
	if err != nil {
		return err
	}
	n := len(all)
	if n < 2 || all[n-2].what != "stop" || all[n-1].what != "start" || all[n-1].a <= all[n-2].a {
		return fmt.Errorf("boot %d: the service was not stopped and started: %v", boot, all)
	}
	if boot == 2 {
		return nil
	}
	out, err := exec.Command("systemctl", "show", "-P", "UserspaceTimestampMonotonic").Output()
	if err != nil {
		return err
	}
	usec, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return err
	}
	ticks, since := all[n-1].a-all[n-2].a, all[n-1].b-usec*1000
	// For whoever watches, or breaks it off: by the counter's frequency since the service's start, which is roughly known.
	now := timeline.Read()
	hz := float64(int64(now.Counter)-all[n-1].a) / float64(now.BootTime-all[n-1].b) * 1e9
	fmt.Printf("%-8s %7.3f s, of them since PID 1's start %.3f s\n", way, float64(ticks)/hz, float64(since)/1e9)
	return note(results, way, ticks, since)
}

// leave goes to the next kernel. What runs here by then starts there too.
func leave(way string) error {
	if way == "holdfast" {
		if err := command("systemctl", append([]string{"enable", "--now"}, holdfast...)...); err != nil {
			return err
		}
	} else {
		if err := command("systemctl", append([]string{"disable", "--now"}, holdfast...)...); err != nil {
			return err
		}
		// The session of its reports.
		if err := command("systemctl", "clean", "--what=fdstore", "holdfastd.service"); err != nil {
			return err
		}
	}
	if err := command("hfvm-kexec-load"); err != nil {
		return err
	}
	if way == "holdfast" {
		return command("holdfast", "update", "--yes", "--force")
	}
	// The bus may be gone before it has answered.
	_ = exec.Command("systemctl", "kexec").Run()
	return nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func tell(hz float64) error {
	all, err := notes(results)
	if err != nil {
		return err
	}
	of := map[string][]float64{}    // seconds
	since := map[string][]float64{} // PID 1 has begun
	for _, m := range all {
		of[m.what] = append(of[m.what], float64(m.a)/hz)
		since[m.what] = append(since[m.what], float64(m.b)/1e9)
	}
	var added []float64
	fmt.Println("pair     plain  holdfast     added")
	for i := range of["plain"] {
		plain, update := of["plain"][i], of["holdfast"][i]
		fmt.Printf("%4d %7.3f s %7.3f s %+8.3f s\n", i+1, plain, update, update-plain)
		added = append(added, update-plain)
	}
	plain, update := median(of["plain"]), median(of["holdfast"])
	fmt.Printf("medians %.3f s, %.3f s: %+.1f %%; of them since PID 1's start %.3f s, %.3f s\n", plain, update, (update/plain-1)*100, median(since["plain"]), median(since["holdfast"]))
	fmt.Printf("the median pair: %+.3f s, %+.1f %%\n", median(added), median(added)/plain*100)
	return nil
}

func median(values []float64) float64 {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare)
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
