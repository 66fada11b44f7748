// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// judge reads what the clients of each name have told, one after the other, and prints what became of those that died.
func judge(paths []string) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "victim\tboot\tat\tthen\twhat was there")
	wrong := 0
	var rows []row
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		t := &trial{}
		for line := range strings.Lines(string(text)) {
			t.hear(strings.TrimSpace(line))
		}
		t.end()
		rows = append(rows, t.rows...)
		for _, text := range t.failures {
			fmt.Fprintf(os.Stdout, "%s: %s\n", filepath.Base(path), text)
			wrong++
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.victim, b.victim), cmp.Compare(a.then, b.then), cmp.Compare(a.boot, b.boot))
	})
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", r.victim, r.boot, r.step, r.then, r.what)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d things are wrong", wrong)
	}
	return nil
}

// trial is of one name.
type trial struct {
	record
	epoch uint64
	death []string // what is to befall this client: victim, step, and what comes before the next start
	dying bool

	before      []string // what befell the one before it
	beforeEpoch uint64
	knew        string // by that one

	rows     []row
	failures []string
}

func (t *trial) fail(format string, args ...any) {
	t.failures = append(t.failures, fmt.Sprintf("boot %d, after %q: ", t.epoch, t.Last)+fmt.Sprintf(format, args...))
}

func (t *trial) hear(line string) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "begin":
		t.begin(strings.Fields(rest))
		return
	case "dying":
		t.dying = true
		return // it is no step
	}
	if err := t.record.hear(line, t.epoch); err != nil {
		t.fail("%v", err)
	}
	switch word {
	case "none", "same":
		if t.before != nil {
			t.row(t.before, t.beforeEpoch, t.knew+" and "+t.Found)
			t.before = nil
		}
	case "done":
		if t.death != nil && t.dying && t.death[0] == "daemon" {
			t.row(t.death, t.epoch, "its client went on to the end")
		} else if t.death != nil {
			t.fail("nobody died at %s", t.death[1])
		}
		t.death = nil
	}
}

// end is that of all that was told.
func (t *trial) end() {
	if t.Last != "done" {
		t.fail("the last client has not come to its end")
	}
}

// begin is a new client's first word, with what is to befall it.
func (t *trial) begin(words []string) {
	if t.death != nil {
		t.Unsafe = t.dying && t.epoch > 1 && t.death[2] == "update" && !t.Finished
		t.before, t.beforeEpoch, t.knew = t.death, t.epoch, t.was()
		if !t.dying {
			t.fail("ended before it died at %s", t.death[1])
		}
	}
	t.epoch, _ = strconv.ParseUint(words[0], 10, 64)
	t.Begun = append(t.Begun, words[1])
	t.death, t.dying, t.Finished, t.Found = nil, false, false, ""
	if len(words) == 5 {
		t.death = words[2:]
	}
}

func (t *trial) row(death []string, boot uint64, what string) {
	t.rows = append(t.rows, row{victim: death[0], step: death[1], then: death[2], boot: boot, what: what})
}

// row is of one death.
type row struct {
	victim, step, then string
	boot               uint64
	what               string // was there, for the next one
}
