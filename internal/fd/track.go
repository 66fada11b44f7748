// SPDX-License-Identifier: MIT

//go:build linux

package fd

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// tracking is false outside of tests, and costs a load then.
var tracking atomic.Bool

var tracked = struct {
	sync.Mutex
	made map[*FD][]uintptr
}{made: make(map[*FD][]uintptr)}

func track(f *FD) {
	pcs := make([]uintptr, 16)
	pcs = pcs[:runtime.Callers(3, pcs)]
	tracked.Lock()
	defer tracked.Unlock()
	tracked.made[f] = pcs
}

func untrack(f *FD) {
	tracked.Lock()
	defer tracked.Unlock()
	delete(tracked.made, f)
}

// Track has every FD made from now on remembered until it is closed or given away. It is for tests.
func Track() {
	tracking.Store(true)
}

// Tracked describes each FD that is remembered, by its number and the stack where it was made.
func Tracked() []string {
	tracked.Lock()
	defer tracked.Unlock()

	open := make([]*FD, 0, len(tracked.made))
	for f := range tracked.made {
		open = append(open, f)
	}
	slices.SortFunc(open, func(a, b *FD) int { return cmp.Compare(a.Raw(), b.Raw()) })

	var all []string
	for _, f := range open {
		var b strings.Builder
		fmt.Fprintf(&b, "descriptor %d, made by", f.Raw())
		frames := runtime.CallersFrames(tracked.made[f])
		for {
			frame, more := frames.Next()
			fmt.Fprintf(&b, "\n\t%s\n\t\t%s:%d", frame.Function, frame.File, frame.Line)
			if !more {
				break
			}
		}
		all = append(all, b.String())
	}
	return all
}
