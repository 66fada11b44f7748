// SPDX-License-Identifier: MIT

//go:build linux

// Command luosim (of test/bench) measures what running under luosim costs: system calls, and a build of a Go program,
// in turn with and without it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/luosim"
)

const (
	rounds = 7
	calls  = 5000
	builds = 3
	aim    = 1.5

	measureVariable = "BENCH_MEASURE"
)

func main() {
	log.SetFlags(0)
	if os.Getenv(measureVariable) != "" {
		runtime.LockOSThread()
		json.NewEncoder(os.Stdout).Encode(measure())
		return
	}
	systemCalls()
	build()
}

// What is measured, in the order in which it is printed.
var operations = []struct {
	name string
	do   func() error
}{
	{"getppid, which isn't caught", func() error { unix.Getppid(); return nil }},
	{"an ioctl of another kind (FIONREAD)", func() error {
		_, err := unix.IoctlGetInt(pipe[0], unix.TIOCINQ)
		return err
	}},
	{"open and close of an unrelated file", func() error {
		fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}},
	{"write of a byte to /dev/null", func() error {
		_, err := unix.Write(null, []byte{0})
		return err
	}},
	{"GET_NAME of a session", func() error {
		if session < 0 {
			return errNone
		}
		args := [72]byte{0: 72}
		if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(session), 0xBA43, uintptr(unsafe.Pointer(&args))); err != 0 {
			return err
		}
		return nil
	}},
}

var (
	errNone = unix.ENODEV
	pipe    [2]int
	null    int
	session = -1
)

// measure gives the median time of each, in nanoseconds; 0 for what can't be had here.
func measure() map[string]float64 {
	var err error
	if err = unix.Pipe(pipe[:]); err != nil {
		log.Fatal(err)
	}
	if null, err = unix.Open("/dev/null", unix.O_WRONLY, 0); err != nil {
		log.Fatal(err)
	}
	if luosim.Boot() > 0 {
		session = newSession()
	}
	out := map[string]float64{}
	for _, o := range operations {
		times := make([]time.Duration, calls)
		for i := range times {
			start := time.Now()
			err := o.do()
			times[i] = time.Since(start)
			if err == errNone {
				times = []time.Duration{0}
				break
			}
			if err != nil {
				log.Fatalf("%s: %v", o.name, err)
			}
		}
		out[o.name] = float64(median(times))
	}
	return out
}

func newSession() int {
	device, err := unix.Open("/dev/liveupdate", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(device)
	args := [72]byte{0: 72, 8: 'b'}
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(device), 0xBA00, uintptr(unsafe.Pointer(&args))); err != 0 {
		log.Fatal(err)
	}
	return int(*(*int32)(unsafe.Pointer(&args[4])))
}

func median[T cmp.Ordered](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

func systemCalls() {
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	run := func(under bool) map[string]float64 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), measureVariable+"=1")
		return result(cmd, under)
	}
	var plain, under []map[string]float64
	for range rounds {
		plain, under = append(plain, run(false)), append(under, run(true))
	}
	fmt.Printf("%-40s %10s %10s %8s\n", "median of "+fmt.Sprint(rounds*calls)+" calls, in µs", "without", "luosim", "ratio")
	for _, o := range operations {
		a, b := of(plain, o.name)/1e3, of(under, o.name)/1e3
		if a == 0 {
			fmt.Printf("%-40s %10s %10.2f\n", o.name, "-", b)
			continue
		}
		fmt.Printf("%-40s %10.2f %10.2f %8.1f\n", o.name, a, b, b/a)
	}
}

func of(rounds []map[string]float64, name string) float64 {
	var v []float64
	for _, r := range rounds {
		v = append(v, r[name])
	}
	return median(v)
}

func result(cmd *exec.Cmd, under bool) map[string]float64 {
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := start(cmd, under); err != nil {
		log.Fatal(err)
	}
	v := map[string]float64{}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		log.Fatal(err)
	}
	return v
}

func start(cmd *exec.Cmd, under bool) error {
	if under {
		return luosim.Machine{}.Run(context.Background(), cmd)
	}
	return cmd.Run()
}

func build() {
	run := func(under bool) time.Duration {
		cache, err := os.MkdirTemp("", "holdfast-bench-")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(cache)
		cmd := exec.Command("go", "build", "-o", os.DevNull, "./cmd/luosim")
		cmd.Env = append(os.Environ(), "GOCACHE="+cache)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		begin := time.Now()
		if err := start(cmd, under); err != nil {
			log.Fatal(err)
		}
		return time.Since(begin)
	}
	var plain, under []time.Duration
	for range builds {
		plain, under = append(plain, run(false)), append(under, run(true))
	}
	ratio := float64(median(under)) / float64(median(plain))
	verdict := "met"
	if ratio > aim {
		verdict = "MISSED"
	}
	fmt.Printf("a Go program built with an empty cache, median of %d: %.1f s without, %.1f s under luosim, ratio %.2f (aim: at most %.1f, %s)\n",
		builds, median(plain).Seconds(), median(under).Seconds(), ratio, aim, verdict)
}
