// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast"
)

// usage is what the daemon has at one moment.
type usage struct {
	pss, peak float64 // MiB
	fds       int
	threads   string
}

func (u usage) String() string {
	return fmt.Sprintf("%6.2f MiB PSS, %d descriptors, %s threads", u.pss, u.fds, u.threads)
}

// daemonMemory asks the kernel.
func daemonMemory() (usage, error) {
	var u usage
	out, err := exec.Command("systemctl", "show", "--property=MainPID", "--value", "holdfastd.service").Output()
	if err != nil {
		return u, err
	}
	proc := "/proc/" + strings.TrimSpace(string(out))
	pss, err := procField(proc+"/smaps_rollup", "Pss:")
	if err != nil {
		return u, err
	}
	peak, err := procField(proc+"/status", "VmHWM:")
	if err != nil {
		return u, err
	}
	if u.threads, err = procField(proc+"/status", "Threads:"); err != nil {
		return u, err
	}
	for text, mib := range map[string]*float64{pss: &u.pss, peak: &u.peak} {
		var kib float64
		if _, err := fmt.Sscanf(text, "%f kB", &kib); err != nil {
			return u, fmt.Errorf("%s of %s: %w", text, proc, err)
		}
		*mib = kib / 1024
	}
	fds, err := os.ReadDir(proc + "/fd")
	u.fds = len(fds)
	return u, err
}

func procField(file, field string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no %s", file, field)
}

// settled waits until the daemon's memory stays as it is for some seconds, a minute at most.
func settled() (usage, error) {
	var last usage
	same := 0
	for range 60 {
		u, err := daemonMemory()
		if err != nil {
			return u, err
		}
		if same++; u.pss != last.pss || u.fds != last.fds {
			same = 0
		}
		if last = u; same == 4 {
			break
		}
		time.Sleep(time.Second)
	}
	return last, nil
}

func memory(fresh usage, sessions int) error {
	fmt.Printf("\nholdfastd's memory, before and after %d clients at once got %d sessions in all\n\n", crowdClients, sessions)
	before, err := settled()
	if err != nil {
		return err
	}
	fmt.Println("just started   ", fresh)
	fmt.Println("idle           ", before)
	full, peak, took, err := storm(sessions / crowdClients)
	if err != nil {
		return err
	}
	fmt.Println("with the crowd ", full)
	after, err := settled()
	if err != nil {
		return err
	}
	fmt.Println("idle after it  ", after)
	fmt.Printf("the crowd took %.1f s, %.0f sessions a second; at its peak the daemon had %.1f MiB RSS\n\n",
		took.Seconds(), float64(sessions)/took.Seconds(), peak)
	verdict(before.pss, "MiB PSS when idle", 15, true)
	verdict(after.pss/before.pss, "PSS after the crowd / before", 1.1, true)
	verdict(float64(after.fds-before.fds), "descriptors more than before", 0, true)
	return nil
}

// storm has each client of the crowd, all of them connected, get and close so many sessions. full is what the daemon
// has when all are connected, peak the most MiB that it had resident.
func storm(each int) (full usage, peak float64, took time.Duration, err error) {
	type worker struct {
		cmd   *exec.Cmd
		ready *bufio.Reader
		start *os.File
	}
	var workers []worker
	for i := range crowdProcesses {
		cmd := exec.Command("/proc/self/exe", "crowd")
		cmd.Env = append(os.Environ(), fmt.Sprint("BENCH_WORKER=", i), fmt.Sprint("BENCH_EACH=", each))
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return full, 0, 0, err
		}
		gate, start, err := os.Pipe()
		if err != nil {
			return full, 0, 0, err
		}
		cmd.Stdin = gate
		if err := cmd.Start(); err != nil {
			return full, 0, 0, err
		}
		gate.Close()
		workers = append(workers, worker{cmd, bufio.NewReader(stdout), start})
	}
	for _, w := range workers {
		if line, err := w.ready.ReadString('\n'); err != nil {
			return full, 0, 0, fmt.Errorf("the crowd did not get ready: %w %s", err, line)
		}
	}
	if full, err = daemonMemory(); err != nil {
		return full, 0, 0, err
	}
	begin := time.Now()
	for _, w := range workers {
		w.start.Close()
	}
	for _, w := range workers {
		if err := w.cmd.Wait(); err != nil {
			return full, 0, 0, fmt.Errorf("the crowd: %w", err)
		}
	}
	took = time.Since(begin)
	// At once: once it is idle the daemon starts over, and the kernel counts anew.
	last, err := daemonMemory()
	return full, last.peak, took, err
}

// crowd is one process's share of the clients. They connect, and start when standard input ends.
func crowd() error {
	ctx := context.Background()
	var each int
	if _, err := fmt.Sscan(os.Getenv("BENCH_EACH"), &each); err != nil {
		return err
	}
	clients := make([]*holdfast.Client, crowdClients/crowdProcesses)
	for i := range clients {
		var err error
		if clients[i], err = holdfast.Dial(ctx); err != nil {
			return err
		}
		// The connection is in the listener's queue until its first call is answered.
		if _, err = clients[i].Describe(ctx); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	errs := make([]error, len(clients))
	var all sync.WaitGroup
	for i, client := range clients {
		all.Go(func() {
			defer client.Close()
			name := fmt.Sprintf("crowd-%s-%d", os.Getenv("BENCH_WORKER"), i)
			for range each {
				session, err := client.Acquire(ctx, name)
				if err == nil {
					err = session.Close()
				}
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	all.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		failed := 0
		for _, err := range errs {
			if err != nil {
				failed++
			}
		}
		return fmt.Errorf("%d clients failed, one with: %w", failed, errs[i])
	}
	return nil
}
