// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a luosim with a fault leaves behind must not stay: its processes become this one's children.

// adopt makes orphans among the descendants this process's children.
func adopt() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// killDescendants ends all processes that this one started, and theirs.
func killDescendants() {
	for killed := true; killed; {
		parents := map[int]int{}
		names, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			// The command's name, in parentheses, may have anything in it.
			after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
			if len(after) > 1 && after[0] != "Z" {
				parents[pid], _ = strconv.Atoi(after[1])
			}
		}
		killed = false
		for pid := range parents {
			for at := parents[pid]; at > 1; at = parents[at] {
				if at == os.Getpid() {
					unix.Kill(pid, unix.SIGKILL)
					unix.Wait4(pid, nil, 0, nil)
					killed = true
					break
				}
			}
		}
	}
}

// available is the machine's free memory in bytes.
func available() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	var kB int64
	fmt.Sscan(rest, &kB)
	return kB << 10
}

// watchMemory calls stop once much more memory is gone than a batch takes, until done is closed.
func watchMemory(done <-chan struct{}, stop func()) {
	const batch = 4 << 30
	start := available()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if start-available() > batch {
				stop()
				return
			}
		}
	}
}
