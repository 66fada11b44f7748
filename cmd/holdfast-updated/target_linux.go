// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"os"
	"runtime/debug"
	"strings"

	"github.com/holdfast-project/holdfast/internal/check"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/updated"
)

// checkTarget looks at everything that this process may see. The participants will be asked to commit what they have.
func checkTarget(ctx context.Context, t *updated.Target, participants []string) ([]updated.Finding, error) {
	of, done, err := target(t)
	if err != nil {
		return nil, err
	}
	defer done()
	of.Participants = participants
	findings, err := check.Run(ctx, of)
	if err != nil {
		return nil, err
	}
	host, err := systemd.Booted()
	return reported(unseenBlocks(findings, host)), err
}

// unseenBlocks has what could not be looked at stand in the way: as its unit starts it, this process sees all that there is to see on
// a host, and what it doesn't may be what is lost. Where nobody stops what runs before the switch, what processes hold crosses.
func unseenBlocks(findings []check.Finding, stopped bool) []check.Finding {
	for i := range findings {
		if f := &findings[i]; stopped && f.ID == "unseen" && f.Severity == check.Warning {
			f.Severity = check.Error
		}
	}
	return findings
}

// loadTarget loads a kernel, unless something is in its way and it isn't to be forced, and tells with what command line.
func loadTarget(ctx context.Context, t *updated.Target, force bool) (string, error) {
	of, done, err := target(t)
	if err != nil {
		return "", err
	}
	defer done()
	line, err := commandLine(of)
	if err != nil {
		return "", err
	}
	line, _ = kexec.Enable(line)
	of.CommandLine = &line
	return line, kexec.LoadChecked(ctx, of.Kernel, of.Initrd, line, func() error {
		findings, err := check.RunKernel(ctx, of)
		if wrong := check.Errors(findings); err == nil && len(wrong) > 0 && !force {
			err = updated.Blocked(reported(wrong))
		}
		return err
	})
}

func commandLine(of check.Target) (string, error) {
	if of.CommandLine != nil {
		return *of.CommandLine, nil
	}
	if line, err := kexec.CommandLine(of.Kernel); line != "" || err != nil {
		return line, err
	}
	own, err := os.ReadFile("/proc/cmdline")
	return kexec.Reuse(strings.TrimSpace(string(own))), err
}

// target is what was asked about, in files that are closed by done.
func target(t *updated.Target) (of check.Target, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
		// A kernel that is unpacked is large, and this process stays.
		debug.FreeOSMemory()
	}
	if t == nil {
		return of, done, nil
	}
	of.CommandLine = t.CommandLine
	for _, part := range []struct {
		name string
		from *fd.FD
		to   **os.File
	}{{"kernel", t.Kernel, &of.Kernel}, {"initrd", t.Initrd, &of.Initrd}} {
		if part.from == nil {
			continue
		}
		dup, err := part.from.Dup()
		if err != nil {
			done()
			return of, nil, err
		}
		*part.to = dup.File(part.name)
		files = append(files, *part.to)
	}
	return of, done, nil
}

func reported(findings []check.Finding) []updated.Finding {
	var list []updated.Finding
	for _, f := range findings {
		list = append(list, updated.Finding{ID: f.ID, Severity: string(f.Severity), Text: f.Text, Hint: f.Hint})
	}
	return list
}
