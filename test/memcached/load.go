// SPDX-License-Identifier: MIT

// Package memcached keeps random values outside of a virtual machine, puts them into the memcached inside, and sees after a stop,
// of whatever kind, how many of them are served again, and how soon.
package memcached

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"time"
)

// Values have this many bytes, by a Pareto distribution: many are small, few are large. The mean is the square root of the
// product, 2236.
const smallest, largest = 10, 500_000

// A Load is what memcached is to hold.
type Load struct {
	keys   []string
	values [][]byte
	bytes  int
}

// NewLoad draws the values. Loads of as many keys have nearly the same sizes, in another order, and nothing else in common.
func NewLoad(keys int) *Load {
	l := &Load{}
	sizes := make([]int, keys)
	for i := range sizes {
		// One value from each of as many equal parts of the distribution, so that the sum is nearly always the same.
		u := (float64(i) + mathrand.Float64()) / float64(keys)
		root := 1 - u*(1-math.Sqrt(float64(smallest)/largest))
		sizes[i] = int(smallest / (root * root))
		l.bytes += sizes[i]
	}
	mathrand.Shuffle(keys, func(i, j int) { sizes[i], sizes[j] = sizes[j], sizes[i] })
	all := make([]byte, l.bytes)
	rand.Read(all)
	for i, size := range sizes {
		l.keys = append(l.keys, fmt.Sprintf("key-%d", i))
		l.values = append(l.values, all[:size:size])
		all = all[size:]
	}
	return l
}

// Keys is how many there are.
func (l *Load) Keys() int { return len(l.keys) }

// Bytes is how many all values have together.
func (l *Load) Bytes() int { return l.bytes }

// Key and Value are the i-th.
func (l *Load) Key(i int) string   { return l.keys[i] }
func (l *Load) Value(i int) []byte { return l.values[i] }

// A Check is what came of asking for keys: a value as it was put in, none, or another one.
type Check struct{ Hits, Misses, Wrong int }

// HitRate is the share of right answers.
func (c Check) HitRate() float64 { return float64(c.Hits) / float64(c.Hits+c.Misses+c.Wrong) }

func (c Check) String() string {
	return fmt.Sprintf("%d hits, %d misses, %d wrong values", c.Hits, c.Misses, c.Wrong)
}

// all are the indices of all keys.
func (l *Load) all() []int {
	all := make([]int, len(l.keys))
	for i := range all {
		all[i] = i
	}
	return all
}

// Fill puts all values into the memcached at an address.
func (l *Load) Fill(ctx context.Context, address string) error { return l.set(ctx, address, l.all()) }

// Verify asks for each key once, and compares each value.
func (l *Load) Verify(ctx context.Context, address string) (Check, error) {
	c, _, err := l.get(ctx, address, l.all())
	return c, err
}

// Served is how a memcached came to serve a load again.
type Served struct {
	First, All time.Time // when the first key was served, and when the last was
	Check      Check     // what it had by itself; the rest was put in again
}

// Again waits until a memcached that has just gone serves the whole load. What it doesn't have it is given: then it is loaded
// again as fast as whoever has the values can.
func (l *Load) Again(ctx context.Context, address string) (Served, error) {
	var s Served
	probe := mathrand.IntN(len(l.keys))
	hit, err := l.await(ctx, address, probe)
	if err != nil {
		return s, err
	}
	s.First = time.Now()
	check, missing, err := l.get(ctx, address, l.all())
	if err != nil {
		return s, err
	}
	s.Check = check
	if !hit { // it was put in by await
		s.Check.Hits--
		s.Check.Misses++
	}
	if len(missing) > 0 {
		if err := l.set(ctx, address, missing); err != nil {
			return s, err
		}
		again, _, err := l.get(ctx, address, missing)
		if err != nil {
			return s, err
		}
		if again.Hits != len(missing) {
			return s, fmt.Errorf("of %d values that were put in again: %v", len(missing), again)
		}
	}
	s.All = time.Now()
	return s, nil
}
