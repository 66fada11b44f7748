// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// ticks are lines of a console that has been written to since the guest's first tick.
func ticks(n int, word string) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("console tick %d word %s ram 16 MiB ok", i+1, word))
	}
	return lines
}

func TestTheConsoleIsChecked(t *testing.T) {
	const word, other = "00000000deadbeef", "0123456789abcdef"
	before := slices.Concat([]string{"kernel 7.2.13"}, ticks(3, word), []string{"switching", "kernel 7.3.4"})
	after := []string{
		`report {"spans":[{"name":"stop","beginUSec":1,"endUSec":2000001}]}`,
		"vmm stopped in 12ms, saved 312608 bytes in 150ms, parked in 60ms",
		"vmm retrieved in 100ms, restored in 1.1s",
		"chapter",
	}
	for name, c := range map[string]struct {
		console []string
		wrong   bool
	}{
		"it goes on":            {ticks(5, word), false},
		"no tick after":         {ticks(3, word), true},
		"a new guest":           {ticks(5, other), true},
		"a tick is missing":     {slices.Delete(ticks(5, word), 3, 4), true},
		"a tick comes twice":    {append(ticks(4, word), ticks(4, word)[3]), true},
		"its memory is another": {append(ticks(3, word), "console tick 4 word "+word+" ram 7 numbers WRONG"), true},
	} {
		s := &guestStory{}
		var err error
		for _, line := range slices.Concat(before, c.console, after) {
			if _, err = s.hear(line, time.Now()); err != nil {
				break
			}
		}
		if (err != nil) != c.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
}
