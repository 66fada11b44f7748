// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"os"
	"syscall"
)

// dieAfter lets tests see what a death at any step does: if the first line of the file that $NOTEBOOK_DIE names is
// this step, the line is taken away, and the process kills itself on the spot.
func dieAfter(step string) {
	path := os.Getenv("NOTEBOOK_DIE")
	if path == "" {
		return
	}
	steps, err := os.ReadFile(path)
	if err != nil {
		return
	}
	first, rest, _ := bytes.Cut(steps, []byte("\n"))
	if string(first) != step || os.WriteFile(path, rest, 0o600) != nil {
		return
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
