// SPDX-License-Identifier: MIT

package orchestrator

import (
	"maps"
	"sync"
	"time"

	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
)

// maxRates bounds how many are counted apart. A unit that has had its time isn't counted any more, so more than that
// would have to ask at once.
const maxRates = 4096

// rates limits how fast sessions are asked for: how many somebody holds can't be counted in Linux. The zero value is
// ready, and safe for concurrent use.
type rates struct {
	mu    sync.Mutex
	known map[rateKey]rate
}

// rateKey is what is counted apart: an outermost unit, as a delegated subtree makes inner ones without end, and the rule
// that lets it.
type rateKey struct {
	place places.Place
	rule  string
}

type rate struct {
	full    time.Time // when there is room for the whole burst again
	refused bool      // since the last one was let through
}

// take counts one request. Where there is no room for it, wait is the time until there is, and first says that the one
// before it was let through. now is of the monotonic clock.
func (r *rates) take(who places.Place, grant policy.Grant, now time.Time) (wait time.Duration, first bool) {
	limit := grant.Rate
	if limit.Burst == 0 {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := r.room(rateKey{who, grant.Rule}, now)
	known := r.known[key]
	full := known.full
	if full.Before(now) {
		full = now
	}
	full = full.Add(limit.Interval / time.Duration(limit.Burst))
	if wait := full.Sub(now) - limit.Interval; wait > 0 {
		first, known.refused = !known.refused, true
		r.known[key] = known
		return wait, first
	}
	r.known[key] = rate{full: full}
	return 0, false
}

// room makes room for the key. Those for whom there is none share one.
func (r *rates) room(key rateKey, now time.Time) rateKey {
	if r.known == nil {
		r.known = map[rateKey]rate{}
	}
	if _, ok := r.known[key]; ok || len(r.known) < maxRates {
		return key
	}
	maps.DeleteFunc(r.known, func(_ rateKey, known rate) bool { return !known.full.After(now) })
	if len(r.known) >= maxRates {
		key.place = places.Place{}
	}
	return key
}
