// SPDX-License-Identifier: MIT

// Guest is what "make bench" runs in its virtual machine, as root in a service. It measures, in turn so that a
// machine that gets slower hits all alike,
//
//   - the floor: two Go processes and a unix socket, a message there, a message with one descriptor back;
//   - Acquire by the client library, on a kept connection and connecting each time;
//   - a D-Bus call that returns one descriptor, by godbus and dbus-daemon;
//   - what the kernel takes for a session: open, CREATE_SESSION and close of the device, close of the session.
//
// Then it has a crowd of clients ask for sessions, and looks at the daemon's memory before and after.
//
// With BENCH=files it measures in a machine of its own, at two boots with a kexec between them, how long files of some sizes take
// to be preserved and restored, by the bare ioctls and by the client library.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// What the crowd is.
const (
	crowdProcesses = 4
	crowdClients   = 1000
	crowdSessions  = 100_000
)

func main() {
	// The other processes of the benchmark are this program too.
	var err error
	switch role := strings.Join(os.Args[1:], " "); role {
	case "":
		what := bench
		if os.Getenv("BENCH") == "files" {
			what = files
		}
		if err = what(); err == nil {
			err = exec.Command("hfvm-pass").Run()
		}
	case "raw-server":
		err = rawServer()
	case "bus-server":
		err = busServer()
	case "crowd":
		err = crowd()
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		if len(os.Args) == 1 {
			exec.Command("hfvm-fail", err.Error()).Run()
		}
		os.Exit(1)
	}
}

func bench() error {
	quick := os.Getenv("BENCH_QUICK") != ""
	if err := startDaemon(); err != nil {
		return err
	}
	fresh, err := daemonMemory()
	if err != nil {
		return err
	}
	rounds := 2000
	if quick {
		rounds = 300
	}
	if err := speed(rounds); err != nil {
		return err
	}
	sessions := crowdSessions
	if quick {
		sessions /= 20
	}
	return memory(fresh, sessions)
}

// startDaemon starts holdfastd as a host would.
func startDaemon() error {
	if out, err := exec.Command("systemctl", "start", "holdfastd.socket", "holdfastd.service").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl start holdfastd: %w: %s", err, out)
	}
	return nil
}
