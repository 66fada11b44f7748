// SPDX-License-Identifier: MIT

// Kexec measures what Holdfast adds to the time for which an ordinary service of a host is away over a kexec: a plain
// systemctl kexec of a host on which nothing of Holdfast runs, against holdfast update of one on which all of it does, with
// nobody taking part. One virtual machine goes through pairs of both, in random order. It takes half a minute a pair on
// an idle machine, and says nothing on a busy one.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	pairs := flag.Int("pairs", 10, "how many of both")
	seed := flag.Uint64("seed", rand.Uint64(), "of the order; it is printed")
	kernel := flag.String("kernel", "7.2", "hfvm's `KERNEL`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kernel, *pairs, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "kexec:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kernel string, pairs int, seed uint64) error {
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, guest := filepath.Join(dir, "root"), filepath.Join(dir, "guest")
	fmt.Println("seed", seed)
	for _, command := range [][]string{
		{"make", "--silent", "install", "DESTDIR=" + root},
		{"go", "build", "-o", guest, "./test/bench/kexec/guest"},
		{"bin/hfvm", "run", "--kernel", kernel, "--os", "forky", "--quiet-console", "--timeout", "7200", "--add", root + ":/",
			"--env", fmt.Sprint("PAIRS=", pairs), "--env", fmt.Sprint("SEED=", seed), guest},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		// hfvm ends its machine itself.
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w; it is run in the repository's root", strings.Join(command, " "), err)
		}
	}
	return nil
}
