// SPDX-License-Identifier: MIT

// Bench measures what a session costs that Holdfast hands out, on a real kernel in a virtual machine, beside what
// the kernel alone and D-Bus cost there, and how long files take to be preserved and restored. Times under emulation are long, so only the ratios within one run say
// something. See ./guest for what is measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	kernel := flag.String("kernel", "7.2", "hfvm's `KERNEL`")
	quick := flag.Bool("quick", false, "fewer rounds and hand-outs, for a first look; memory then says little")
	only := flag.String("only", "", "`PART` of it: sessions or files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kernel, *quick, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kernel string, quick bool, only string) error {
	if _, err := os.Stat("bin/holdfastd"); err != nil {
		return fmt.Errorf("%w; run make bench in the repository's root", err)
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, guest := filepath.Join(dir, "root"), filepath.Join(dir, "guest")
	hfvm := []string{"run", "./cmd/hfvm", "run", "--kernel", kernel, "--os", "forky", "--quiet-console", "--timeout", "3600", "--add", root + ":/"}
	if quick {
		hfvm = append(hfvm, "--env", "BENCH_QUICK=1")
	}
	commands := [][]string{
		{"make", "--silent", "install", "DESTDIR=" + root},
		{"go", "build", "-o", guest, "./test/bench/guest"},
	}
	if only != "files" {
		commands = append(commands, slices.Concat([]string{"go"}, hfvm, []string{guest}))
	}
	if only != "sessions" {
		// Over 5 GiB cross the update.
		commands = append(commands, slices.Concat([]string{"go"}, hfvm, []string{"--memory", "7168", "--env", "BENCH=files", guest}))
	}
	for _, command := range commands {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		// hfvm ends its machine itself.
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
	}
	return nil
}
