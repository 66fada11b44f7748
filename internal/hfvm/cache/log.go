// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Log takes what the tools print that make an entry, and tells the user no more than which step
// it is and how long it has taken.
type Log struct {
	file *os.File
	tell *os.File
	line bool // tell is a terminal: one line that changes
}

// NewLog starts the log of what makes name.
func (c *Cache) NewLog(name string) (*Log, error) {
	dir := filepath.Join(c.Dir, "logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".log"))
	if err != nil {
		return nil, err
	}
	_, err = unix.IoctlGetTermios(int(c.Tell.Fd()), unix.TCGETS)
	return &Log{file: f, tell: c.Tell, line: err == nil}, nil
}

// Close closes the log's file, which stays.
func (l *Log) Close() error { return l.file.Close() }

// Name is the path of the log.
func (l *Log) Name() string { return l.file.Name() }

// Write adds to the log.
func (l *Log) Write(p []byte) (int, error) { return l.file.Write(p) }

// Step does one step. If it fails the user is shown the end of the log.
func (l *Log) Step(ctx context.Context, title string, do func() error) error {
	fmt.Fprintf(l.file, "== %s\n", title)
	from, err := l.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	show := func(state, end string) {
		fmt.Fprintf(l.tell, "hfvm: %s: %s%.0f s%s", title, state, time.Since(start).Seconds(), end)
	}
	var tick <-chan time.Time
	if l.line {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		tick = ticker.C
	} else {
		fmt.Fprintf(l.tell, "hfvm: %s\n", title)
	}
	for {
		select {
		case <-tick:
			show("", "\r")
		case err := <-done:
			if err == nil {
				show("done, ", "\n")
				return nil
			}
			show("failed after ", "\n")
			if ctx.Err() == nil {
				l.showEnd(from)
			}
			return fmt.Errorf("%s: %w", title, err)
		}
	}
}

// showEnd shows the last lines since a place in the log.
func (l *Log) showEnd(from int64) {
	const most, lines = 64 << 10, 40
	info, err := l.file.Stat()
	if err != nil {
		return
	}
	from = max(from, info.Size()-most)
	text := make([]byte, info.Size()-from)
	n, _ := l.file.ReadAt(text, from)
	fmt.Fprintf(l.tell, "---- the end of %s\n%s\n----\n", l.file.Name(), Tail(text[:n], lines))
}

// Tail is the last lines of a text.
func Tail(text []byte, lines int) []byte {
	text = bytes.TrimRight(text, "\n")
	at := len(text)
	for range lines {
		if at = bytes.LastIndexByte(text[:at], '\n'); at < 0 {
			return text
		}
	}
	return text[at+1:]
}

// Command is a command whose output goes to the log and whose whole process group ends with
// ctx.
func (l *Log) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	fmt.Fprintf(l.file, "+ %s %s\n", name, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = l.file, l.file
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
