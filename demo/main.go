// SPDX-License-Identifier: MIT

// Command demo shows a service's memory going over two live updates of the kernel: on luosim, an emulator that needs
// nothing but this machine, or on real kernels in a virtual machine, 7.2 to 7.3 and back. Both run story.sh. The service is
// the notebook; its memory is filled with random values, whose checksum is kept here, outside. vm.sh has a virtual machine of
// QEMU in its place, memcached.sh a memcached, and update.sh an update that is called off before one is carried out.
//
// It is started in the root of the source tree, where bin has what it runs.
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
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const updates = 2

func main() {
	verb := strings.Join(os.Args[1:min(2, len(os.Args))], "")
	if verb == "ready" { // for the stand-in of systemctl
		if err := ready(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
		return
	}
	if verb == "member" && len(os.Args) == 3 || verb == "load" { // for update.sh
		var err error
		if verb == "load" {
			err = loadNothing()
		} else {
			err = runMember(os.Args[2])
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "demo %s: %v\n", verb, err)
			os.Exit(1)
		}
		return
	}
	if verb != "luosim" && verb != "kernel" && verb != "update" && verb != "vm" && verb != "memcached" || len(os.Args) > 2 {
		fmt.Fprintln(os.Stderr, "usage: demo luosim|kernel|update|vm|memcached")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	tell := func(ctx context.Context) error { return run(ctx, verb == "kernel") }
	if verb == "update" {
		tell = watch
	}
	if verb == "vm" {
		tell = showMachine
	}
	if verb == "memcached" {
		tell = showMemcached
	}
	if err := tell(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		fmt.Println("demo: FAIL")
		os.Exit(1)
	}
	fmt.Println("demo: PASS")
}

// watch runs update.sh, which tells its story itself.
func watch(ctx context.Context) error {
	m, err := start(ctx, func(ctx context.Context, dir string) (*exec.Cmd, error) {
		bold := "BOLD="
		if out, err := os.Stdout.Stat(); err == nil && out.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
			bold = "BOLD=\x1b[1m"
		}
		cmd, err := emulated("demo/update.sh", bold)(ctx, dir)
		if err == nil {
			asRoot(cmd)
		}
		return cmd, err
	})
	if err != nil {
		return err
	}
	defer m.stop()
	if _, err := io.Copy(os.Stdout, m); err != nil {
		return err
	}
	if err := m.cmd.Wait(); err != nil {
		if log, logErr := os.ReadFile(filepath.Join(m.dir, "log")); logErr == nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "%s", log)
		}
		return fmt.Errorf("the machine did not get to the end: %w", err)
	}
	return nil
}

func run(ctx context.Context, kernel bool) error {
	word := os.Getenv("HOLDFAST_DEMO_WORD")
	if word == "" {
		word = "kelp-" + hex.EncodeToString(random(4))
	}
	if strings.ContainsAny(word, "\n\x00") {
		return errors.New("$HOLDFAST_DEMO_WORD must be one line")
	}
	command := emulated("demo/story.sh", "HOLDFAST_DEMO_WORD="+word)
	if kernel {
		command = virtual(word)
		fmt.Printf("A notebook keeps 64 MiB of random values, and the word %q, in the memory of a virtual machine.\n", word)
		fmt.Printf("The machine's kernel is changed twice by kexec, under the running system.\n\n")
	} else {
		fmt.Printf("A notebook keeps 64 MiB of random values, and the word %q, in its memory.\n", word)
		fmt.Printf("Under it is luosim, which emulates the kernel's Live Update Orchestrator. Its kexec is done twice: every\n")
		fmt.Printf("process ends, and what is in sessions is all that the next kernel has.\n\n")
	}
	m, err := start(ctx, command)
	if err != nil {
		return err
	}
	defer m.stop()
	if err := listen(ctx, m, &story{word: word}); err != nil {
		// What the services have said, where the stand-in of systemctl wrote it.
		if log, logErr := os.ReadFile(filepath.Join(m.dir, "log")); logErr == nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "%s", log)
		}
		return err
	}
	if !kernel {
		fmt.Println(`On real kernels and systemd, in a virtual machine: make demo-kernel`)
	}
	return nil
}

// listen hears the story to its end.
func listen(ctx context.Context, m *machine, s *story) error {
	lines := bufio.NewScanner(m)
	for lines.Scan() {
		if line, ok := strings.CutPrefix(lines.Text(), "demo: "); ok {
			if err := s.hear(line, time.Now()); err != nil {
				return err
			}
		}
	}
	if err := m.cmd.Wait(); ctx.Err() != nil {
		return errors.New("stopped")
	} else if err != nil {
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
