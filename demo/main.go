// SPDX-License-Identifier: MIT

// Command demo shows a service's memory going over two live updates of the kernel, 7.2 to 7.3 and back, in a virtual
// machine. The service is the notebook; its memory is filled with random values, whose checksum is kept here, outside.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const updates = 2

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		fmt.Println("demo: FAIL")
		os.Exit(1)
	}
	fmt.Println("demo: PASS")
}

func run(ctx context.Context) error {
	word := os.Getenv("HOLDFAST_DEMO_WORD")
	if word == "" {
		word = "kelp-" + hex.EncodeToString(random(4))
	}
	if strings.ContainsAny(word, "\n\x00") {
		return errors.New("$HOLDFAST_DEMO_WORD must be one line")
	}
	fmt.Printf("A notebook keeps 64 MiB of random values, and the word %q, in the memory of a virtual machine.\n", word)
	fmt.Printf("The machine's kernel is changed twice by kexec, under the running system.\n\n")
	guest, err := start(ctx, word)
	if err != nil {
		return err
	}
	defer guest.stop()
	s := &story{word: word}
	lines := bufio.NewScanner(guest)
	for lines.Scan() {
		if line, ok := strings.CutPrefix(lines.Text(), "demo: "); ok {
			if err := s.hear(line, time.Now()); err != nil {
				return err
			}
		}
	}
	if err := guest.wait(); err != nil {
		return fmt.Errorf("the machine did not get to the end: %w", err)
	}
	if s.seen != updates+1 {
		return fmt.Errorf("the machine told of %d kernels and not of %d", s.seen, updates+1)
	}
	return lines.Err()
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// guest is the output of the virtual machine's script.
type guest struct {
	io.Reader
	cmd  *exec.Cmd
	tree string
}

func start(ctx context.Context, word string) (*guest, error) {
	tree, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return nil, err
	}
	g := &guest{tree: tree}
	for _, command := range [][]string{
		{"make", "-s", "install", "DESTDIR=" + tree},
		{"install", "-D", "bin/notebook", tree + "/usr/bin/notebook"},
		{"install", "-D", "-m", "0644", "examples/notebook/notebook.service", tree + "/usr/lib/systemd/system/notebook.service"},
	} {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			os.RemoveAll(tree)
			return nil, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
	}
	g.cmd = exec.CommandContext(ctx, "bin/hfvm", "run", "--kernel", "7.2", "--next-kernel", "7.3", "--os", "forky", "--quiet-console",
		"--add", tree+":/", "--env", "HOLDFAST_DEMO_WORD="+word, "--timeout", "600", "demo/story.sh")
	g.cmd.Cancel = func() error { return g.cmd.Process.Signal(syscall.SIGTERM) } // it stops the machine itself
	g.cmd.Stderr = os.Stderr
	if g.Reader, err = g.cmd.StdoutPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		os.RemoveAll(tree)
		return nil, err
	}
	return g, nil
}

func (g *guest) wait() error { return g.cmd.Wait() }

// stop ends the machine if it still runs.
func (g *guest) stop() {
	if g.cmd.ProcessState == nil {
		g.cmd.Cancel()
		g.cmd.Wait()
	}
	os.RemoveAll(g.tree)
}

// story checks what the guest tells against what it told first.
type story struct {
	word     string
	seen     int // kernels
	kernel   string
	first    map[string]string
	now      map[string]string
	switched time.Time // by the monotonic clock here: the guest's own may jump with the kexec
	arrived  time.Time
}

func (s *story) hear(line string, at time.Time) error {
	key, value, _ := strings.Cut(line, " ")
	switch key {
	case "switching":
		s.switched = at
		fmt.Println("  … kexec")
		return nil
	case "kernel": // it tells once the notebook is ready
		s.now, s.arrived = map[string]string{}, at
	}
	if s.now == nil {
		return fmt.Errorf("the machine told of %q before it told of its kernel", key)
	}
	s.now[key] = value
	if key != "word" {
		return nil
	}
	return s.chapter()
}

// chapter is one kernel's: all was heard.
func (s *story) chapter() error {
	before := s.kernel
	s.kernel = s.now["kernel"]
	s.seen++
	tell := func(key, text string, args ...any) { fmt.Printf("  %-20s %s\n", key, fmt.Sprintf(text, args...)) }
	if s.seen == 1 {
		fmt.Println("At the start")
		tell("kernel", "%s", s.kernel)
		tell("kernel name", "%s", s.now["kernel-name"])
		tell("owner", "%s", s.now["owner"])
		tell("bytes", "%s", s.now["bytes"])
		tell("checksum", "%s", s.now["sum"])
		tell("word", "%s", s.now["word"])
		s.first = s.now
	} else {
		fmt.Printf("After update %d\n", s.seen-1)
		tell("kernel", "%s, before: %s", s.kernel, before)
		tell("kernel name", "%s", s.now["kernel-name"])
		tell("owner", "%s", s.now["owner"])
		tell("bytes", "%s", s.now["bytes"])
		tell("checksum", "%s", s.now["sum"])
		tell("checksum before", "%s", s.first["sum"])
		tell("word", "%s", s.now["word"])
		tell("from kexec to data", "%.1f s, from \"systemctl kexec\" to the notebook's being ready", s.arrived.Sub(s.switched).Seconds())
		if s.kernel == before {
			return fmt.Errorf("the kernel is %s, as before", s.kernel)
		}
		if s.now["came"] != "update" {
			return fmt.Errorf("the memory came from %q, not over the update", s.now["came"])
		}
	}
	fmt.Println()
	for _, key := range []string{"sum", "bytes", "kernel-name", "owner"} {
		if s.now[key] == "" || s.now[key] != s.first[key] {
			return fmt.Errorf("%s is %q, and was %q", key, s.now[key], s.first[key])
		}
	}
	if s.now["word"] != s.word {
		return fmt.Errorf("the word is %q, and was %q", s.now["word"], s.word)
	}
	return nil
}
