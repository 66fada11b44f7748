// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// death is what befalls a client, or holdfastd by its hand, at a step.
type death struct {
	step, victim, then, marker string
}

func (d *death) String() string {
	if d.step == "" {
		return ""
	}
	return d.victim + " " + d.step + " " + d.then
}

// die kills the victim. It returns if that isn't this process.
func (d *death) die() {
	d.dying()
	if d.victim == "daemon" {
		systemctl("KILL")
		return
	}
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// dying makes the marker, so that there is no second time.
func (d *death) dying() {
	tell("dying")
	d.step = ""
	if d.marker == "" {
		return
	}
	if err := os.WriteFile(d.marker, nil, 0o644); err != nil {
		log.Fatal(err)
	}
}

func systemctl(signal string) {
	out, err := exec.Command("systemctl", "kill", "--signal="+signal, "--kill-whom=main", "holdfastd.service").CombinedOutput()
	if err != nil {
		log.Fatalf("systemctl kill --signal=%s: %v: %s", signal, err, out)
	}
}

// atSent stops holdfastd, and has the victim killed as soon as something was sent to it.
func (d *death) atSent() {
	systemctl("STOP")
	d.dying()
	victim := "kill -KILL $PPID; systemctl kill --signal=CONT"
	if d.victim == "daemon" {
		victim = "systemctl kill --signal=KILL"
	}
	// The shell outlives this process, and systemd's SIGTERM to what is left of its unit.
	killer := exec.Command("/bin/sh", "-c", "trap '' TERM; read go; "+victim+" --kill-whom=main holdfastd.service")
	gate, err := killer.StdinPipe()
	if err != nil {
		log.Fatal(err)
	}
	if err := killer.Start(); err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			sent, err := unread()
			if err != nil {
				log.Fatal(err)
			}
			if sent {
				break
			}
			time.Sleep(time.Millisecond) // there is no event for that
		}
		gate.Close()
		killer.Wait()
	}()
}

// unread tells whether something that this process has sent lies in a unix stream socket of somebody else's.
func unread() (bool, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return false, fmt.Errorf("/proc/self/fd: %w", err)
		}
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if errors.Is(err, unix.ENOTSOCK) || errors.Is(err, unix.EBADF) || domain != unix.AF_UNIX {
			continue
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil || kind != unix.SOCK_STREAM {
			continue
		}
		if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil && n > 0 {
			return true, nil
		}
	}
	return false, nil
}
