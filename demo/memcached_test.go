// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"github.com/holdfast-project/holdfast/test/memcached"
)

func TestTheKeysAreJudged(t *testing.T) {
	all, none := memcached.Check{Hits: memcached.Keys}, memcached.Check{Misses: memcached.Keys}
	for name, c := range map[string]struct {
		after   []memcached.Check
		kernels int
		right   bool
	}{
		"all, then none":       {[]memcached.Check{all, none}, 2, true},
		"one is missing":       {[]memcached.Check{{Hits: memcached.Keys - 1, Misses: 1}, none}, 2, false},
		"one is another":       {[]memcached.Check{{Hits: memcached.Keys - 1, Wrong: 1}, none}, 2, false},
		"it was never emptied": {[]memcached.Check{all, all}, 2, false},
		"one kernel":           {[]memcached.Check{all, none}, 1, false},
		"it broke off":         {[]memcached.Check{all}, 2, false},
	} {
		var stops []memcached.Stop
		for i, check := range c.after {
			stops = append(stops, memcached.Stop{Way: []string{"holdfast", "cold"}[i], After: check})
		}
		if err := judge(stops, c.kernels); (err == nil) != c.right {
			t.Errorf("%s: %v", name, err)
		}
	}
}
