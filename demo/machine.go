// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// machine is where the story happens. What is read from it is what the script prints.
type machine struct {
	io.Reader
	cmd *exec.Cmd
	dir string // all that it needs, and nothing else needs
}

// start starts the machine that command makes of a new directory.
func start(ctx context.Context, command func(ctx context.Context, dir string) (*exec.Cmd, error)) (*machine, error) {
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir}
	if m.cmd, err = command(ctx, dir); err == nil {
		// It ends what runs in it, given the time.
		m.cmd.Cancel = func() error { return m.cmd.Process.Signal(syscall.SIGTERM) }
		m.cmd.WaitDelay = 20 * time.Second
		m.cmd.Stderr = os.Stderr
		if m.Reader, err = m.cmd.StdoutPipe(); err == nil {
			err = m.cmd.Start()
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return m, nil
}

// told are the lines that are for the demo, up to the end of the script.
func (m *machine) told(ctx context.Context) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(m); in.Scan(); {
			if line, ok := strings.CutPrefix(in.Text(), "demo: "); ok {
				select {
				case lines <- line:
				case <-ctx.Done():
				}
			}
		}
	}()
	return lines
}

// stop ends the machine if it still runs.
func (m *machine) stop() {
	if m.cmd.ProcessState == nil {
		m.cmd.Cancel()
		m.cmd.Wait()
	}
	os.RemoveAll(m.dir)
}

// emulated is a script on luosim. Everything that it runs has dir as its working directory, and sockets have names
// relative to that: the whole path may be longer than the 108 bytes of a socket's.
func emulated(script string, env ...string) func(context.Context, string) (*exec.Cmd, error) {
	return func(ctx context.Context, dir string) (*exec.Cmd, error) {
		here, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		bin := filepath.Join(here, "bin")
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "luosim"), "run", "--", "/bin/sh", filepath.Join(here, script))
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(), env...),
			"PATH="+strings.Join([]string{filepath.Join(here, "demo/luosim"), bin, os.Getenv("PATH")}, ":"),
			"HOLDFAST_ADDRESS=io.holdfast",
			"HOLDFAST_UPDATE_ADDRESS=io.holdfast.Update",
			"NOTEBOOK_SOCKET=notebook")
		return cmd, nil
	}
}

// virtual is the script on real kernels and systemd, in QEMU.
func virtual(word string) func(context.Context, string) (*exec.Cmd, error) {
	return func(ctx context.Context, dir string) (*exec.Cmd, error) {
		for _, command := range [][]string{
			{"make", "-s", "install", "DESTDIR=" + dir},
			{"install", "-D", "bin/notebook", dir + "/usr/bin/notebook"},
			{"install", "-D", "-m", "0644", "examples/notebook/notebook.service", dir + "/usr/lib/systemd/system/notebook.service"},
		} {
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Stderr = os.Stderr
			if err := cmd.Run(); err != nil {
				return nil, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
			}
		}
		return exec.CommandContext(ctx, "bin/hfvm", "run", "--kernel", "7.2", "--next-kernel", "7.3", "--os", "forky", "--quiet-console",
			"--add", dir+":/", "--env", "HOLDFAST_DEMO_WORD="+word, "--timeout", "600", "demo/story.sh"), nil
	}
}
