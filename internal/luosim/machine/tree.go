// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// killTree kills all descendants of this process that it finds. As it is their reaper, none gets away by a fork or a
// setsid; one that is forked meanwhile is found by the next call.
func killTree() {
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if parent := parentOf(pid); parent > 0 {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	type process struct{ pid, parent int }
	var todo []process
	descend := func(parent int) {
		for _, pid := range children[parent] {
			todo = append(todo, process{pid, parent})
		}
	}
	for descend(os.Getpid()); len(todo) > 0; todo = todo[1:] {
		descend(todo[0].pid)
		kill(todo[0].pid, todo[0].parent)
	}
}

// kill kills a process if it is still the child of that parent, or, as that may have died, of this process. Its number
// may be another's by now.
func kill(pid, parent int) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	if now := parentOf(pid); now == parent || now == os.Getpid() {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
}

// parentOf reads a process's parent from its stat in /proc; 0 if it is gone.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name before it is in parentheses, and may have some itself.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}
