// SPDX-License-Identifier: MIT

package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
)

// Unclaimed is what becomes of a session that came over an update and that nobody claims. Both times count from the start
// of the kernel.
type Unclaimed struct {
	// ReclaimWithin is how long its owner has before it is overdue; 0 where the policy doesn't say.
	ReclaimWithin time.Duration
	// ReleaseAfter is when it is given up; 0 is never. Rule is which rule says so, or which file.
	ReleaseAfter time.Duration
	Rule         string
}

// unclaimed is what a rule says of its owners' sessions, or a file of all that no rule speaks of.
type unclaimed struct {
	owners  []string // digests; nil is everybody
	rule    string
	within  *time.Duration
	release *time.Duration // 0 is never
}

// Unclaimed is what the policy says of a session of that kernel name. Its owner is known by the digest in it alone, so only
// those rules speak of it whose owner is known without a process. A policy that is broken gives nothing up.
func (p *Policy) Unclaimed(kernelName string) (u Unclaimed) {
	digest, _, ours := name.Parse(kernelName)
	if !ours {
		return u
	}
	var within, release *time.Duration
	for _, all := range []bool{false, true} {
		for _, of := range p.unclaimed {
			if all != (of.owners == nil) || !all && !slices.Contains(of.owners, digest) {
				continue
			}
			if within == nil {
				within = of.within
			}
			if release == nil && of.release != nil {
				release, u.Rule = of.release, of.rule
			}
		}
	}
	if within != nil {
		u.ReclaimWithin = *within
	}
	if release != nil && p.Broken() == "" {
		u.ReleaseAfter = *release
	}
	return u
}

// OwnerOf is whose digest it is, if a rule names that owner outright; or "".
func (p *Policy) OwnerOf(digest string) string { return p.named[digest] }

// owners are those that a rule gives, whoever matches it; nil where that is left open.
func (r *rule) owners() (owners []string) {
	if r.owner != nil {
		if slices.ContainsFunc(r.owner.parts, func(part string) bool { return part[0] == '{' }) {
			return nil
		}
		return []string{r.owner.text}
	}
	for _, p := range r.cgroups {
		if strings.ContainsAny(p.text, "*#{") {
			return nil
		}
		if o := ownChain(peer.Identity{Cgroup: p.text, Owner: peer.Owner(p.text)}); o != "" {
			owners = append(owners, o)
		}
	}
	return owners
}

// unclaimedKeys are of rules, and of files before their first rule.
var unclaimedKeys = map[string]func(*unclaimed) **time.Duration{
	"reclaim-within":          func(u *unclaimed) **time.Duration { return &u.within },
	"release-unclaimed-after": func(u *unclaimed) **time.Duration { return &u.release },
}

var periodText = regexp.MustCompile(`^([1-9][0-9]{0,4})(s|m|h|d)$`)

// setPeriod reads the value of one of the unclaimedKeys.
func (f *file) setPeriod(u *unclaimed, key string, value *unstable.Node) {
	text := string(value.Data)
	var period time.Duration
	if found := periodText.FindStringSubmatch(text); value.Kind == unstable.String && found != nil {
		n, _ := strconv.Atoi(found[1])
		period = time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[found[2]]
	} else if value.Kind != unstable.String || text != "never" || key != "release-unclaimed-after" {
		or := ""
		if key == "release-unclaimed-after" {
			or = ` or "never"`
		}
		f.problem(value, `%s is a time like "90s", "30m", "12h" or "7d"%s, of at most 5 digits`, key, or)
		return
	}
	*unclaimedKeys[key](u) = &period
}

// said is what the rule says of unclaimed sessions, or nil.
func (t *table) said() *unclaimed {
	u := t.unclaimed
	if u.within == nil && u.release == nil {
		return nil
	}
	owners := t.made.owners()
	if owners == nil {
		for key := range unclaimedKeys {
			if at, ok := t.at[key]; ok {
				t.problem(&at, "%s is for an owner that is known while nobody of it runs: give the rule an owner without {…}, or a cgroup without * # {…}; or put the key before the first [[rule]], where it is for everybody whom no rule speaks of", key)
			}
		}
		return nil
	}
	u.rule = t.made.name
	for _, o := range owners {
		u.owners = append(u.owners, name.Digest(o))
	}
	return &u
}

// Period is how a policy writes a time.
func Period(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d >= unit.of && d%unit.of == 0 {
			return fmt.Sprintf("%d%s", d/unit.of, unit.name)
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
