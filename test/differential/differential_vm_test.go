// SPDX-License-Identifier: MIT

//go:build linux && vm

package main

import (
	"io"
	"math/rand/v2"
	"testing"
)

// output gives lines to the test's log.
type output struct{ *testing.T }

func (o output) Write(b []byte) (int, error) { o.Logf("%s", b); return len(b), nil }

// The same seeds every time, the regression cases, and a few seeds that nobody has tried.
func TestLikeTheRealKernel(t *testing.T) {
	new := int64(1_000_000 + rand.IntN(1_000_000_000))
	t.Logf("seeds 1 to 200, and 40 from %d on", new)
	for _, c := range []comparison{
		{first: 1, count: 200, batch: 500, regressions: true},
		{first: new, count: 40, batch: 500},
	} {
		if err := c.run(io.Writer(output{t})); err != nil {
			t.Error(err)
		}
	}
}
