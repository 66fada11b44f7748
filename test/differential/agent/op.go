// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"strings"
)

// An op is one operation of a sequence. Its slots A and B name descriptors, of which a sequence has slotCount: the
// device's, sessions', other files'. What an op doesn't use is 0. Nothing in it depends on what an earlier op gave.
type op struct {
	Kind    string
	A, B    int
	N, M, L int64
	Name    string
}

// The slots of a sequence. A descriptor of the device never leaves its own two, so that no sequence can leave the
// device open for the next one.
const (
	deviceSlot  = 0
	sessionSlot = 2
	fileSlot    = 7
	slotCount   = 16
)

func (o op) String() string {
	return fmt.Sprintf("%s %d %d %d %d %d %q", o.Kind, o.A, o.B, o.N, o.M, o.L, o.Name)
}

// parseOp reads what String wrote.
func parseOp(line string) (op, error) {
	var o op
	if _, err := fmt.Sscanf(line, "%s %d %d %d %d %d %q", &o.Kind, &o.A, &o.B, &o.N, &o.M, &o.L, &o.Name); err != nil {
		return op{}, fmt.Errorf("read operation %q: %w", line, err)
	}
	return o.confined(), nil
}

// confined puts slots where they may be.
func (o op) confined() op {
	o.A, o.B = o.A%slotCount, o.B%slotCount
	switch o.Kind {
	case "open":
		o.A %= sessionSlot
	case "dup", "pass", "reopen":
		if o.A < sessionSlot {
			o.B %= sessionSlot
		}
	case "park":
		if o.A < sessionSlot {
			o.A += sessionSlot
		}
	}
	if o.B < sessionSlot {
		switch o.Kind {
		case "dup", "pass", "reopen":
			if o.A >= sessionSlot {
				o.B += sessionSlot
			}
		case "create", "retrieve", "retrievefd", "unpark":
			o.B += sessionSlot
		}
	}
	if o.A < sessionSlot {
		switch o.Kind {
		case "memfd", "file", "chmod":
			o.A += fileSlot
		}
	}
	return o
}

// A sequence is what happens in each boot.
type sequence struct {
	ID    string
	Parts [][]op
}

// parseSequence reads a script: a line "boot" begins the next boot's part, # a comment.
func parseSequence(id, text string) (sequence, error) {
	s := sequence{ID: id}
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line == "boot":
			s.Parts = append(s.Parts, nil)
		case len(s.Parts) == 0:
			return s, fmt.Errorf("%s: %q before the first \"boot\"", id, line)
		default:
			o, err := parseOp(line)
			if err != nil {
				return s, fmt.Errorf("%s: %w", id, err)
			}
			last := len(s.Parts) - 1
			s.Parts[last] = append(s.Parts[last], o)
		}
	}
	return s, nil
}
