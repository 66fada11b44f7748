// SPDX-License-Identifier: MIT

// Package policy answers: may it, in whose name, and how much. Rules come from files; after them come the built-in
// one, and a switch for where there are no units. The first that matches decides, and what nothing matches is denied.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
)

// The names of the rules that aren't in files, in errors and in the log.
const (
	BuiltIn = "built-in"
	ByUID   = "uid-owners"
	// brokenFile is what a file is that could not be understood.
	brokenFile = "broken-file"
)

// What a rule grants that doesn't say otherwise.
const (
	// DefaultMaxParked is how many sessions may be parked.
	DefaultMaxParked = 64
	// defaultRate is for rules in files that let others than root in. The rest is not limited.
	defaultBurst    = 60
	defaultInterval = time.Minute
)

// Denial is why somebody may not have a session. Its text is for whoever asked.
type Denial struct {
	Reason string
	Rule   string
}

func (d *Denial) Error() string { return d.Reason + " (rule: " + d.Rule + ")" }

// NoOwner says that a process is outside any unit, so that nothing can belong to it.
type NoOwner struct{ Cgroup string }

func (n *NoOwner) Error() string {
	return fmt.Sprintf("the cgroup %q names no unit, so a session could belong to nobody; run this as a .service", n.Cgroup)
}

// Policy decides. The zero value has the built-in rule alone. It must not be changed once it is in use; its methods
// may run concurrently.
type Policy struct {
	// UIDOwners, unless nil, lets processes outside any unit have sessions too.
	UIDOwners *UIDOwners

	rules     []rule
	files     []string
	unclaimed []unclaimed
	named     map[string]string // owners that rules name outright, by their digests
}

// Files are those that the rules came from, in their order.
func (p *Policy) Files() []string { return slices.Clone(p.files) }

// Rules is how many rules there are in the files.
func (p *Policy) Rules() (n int) {
	for _, r := range p.rules {
		if !r.broken {
			n++
		}
	}
	return n
}

// Broken is the first file that stands for a denial, since it could not be understood; "" is none.
func (p *Policy) Broken() string {
	for _, r := range p.rules {
		if r.broken {
			return r.file
		}
	}
	return ""
}

// UIDOwners is the rule that gives all processes of a uid N that are outside any unit one owner, uid/N. It comes after
// the built-in one, and changes nothing for a process inside a unit.
//
// The unit that the daemon itself runs in doesn't count: a daemon that somebody started in a login session is there
// for what runs in that session beside it, as in a cgroup namespace of its own. A daemon in a service of its own is alone
// in there.
type UIDOwners struct {
	// Unit is the cgroup of the daemon's own unit, see [peer.UnitPath]; "" outside any.
	Unit string
	// Overflow is the uid that stands for all those that the daemon's user namespace doesn't know; nil where it knows
	// all.
	Overflow *uint32
}

// Grant is a yes, and how far it goes.
type Grant struct {
	Owner string // whom sessions are made for, and given back to
	Rule  string // that decided

	MaxParked int  // how many sessions may be parked
	Rate      Rate // how fast sessions may be asked for
	ListAll   bool // may see every session on the machine
	Required  bool // may be a participant without which there is no update

	rule *rule // nil where it isn't of a file
}

// Rate is Burst requests at once, and as many again in each Interval, evenly. The zero value is no limit.
type Rate struct {
	Burst    int
	Interval time.Duration
}

func (r Rate) String() string {
	if r.Burst == 0 {
		return "any"
	}
	interval := r.Interval.String()
	if trimmed, minutes := strings.CutSuffix(interval, "m0s"); minutes {
		interval = trimmed + "m"
		if trimmed, hours := strings.CutSuffix(interval, "h0m"); hours {
			interval = trimmed + "h"
		}
	}
	return fmt.Sprintf("%d/%s", r.Burst, interval)
}

// CheckName tells whether a session may have this name, the client's own portion. The error is a *Denial.
func (g Grant) CheckName(name string) error {
	if g.rule == nil || len(g.rule.names) == 0 || matchesAny(g.rule.names, name) {
		return nil
	}
	return &Denial{Reason: fmt.Sprintf("the name %q is none of those that %s may use: %s", name, g.Owner, strings.Join(g.Names(), " ")), Rule: g.Rule}
}

// Names are the patterns of names that may be used; none are all.
func (g Grant) Names() []string { return g.texts(func(r *rule) []pattern { return r.names }) }

// MayActFor tells whether sessions may be asked for in the name of this owner.
func (g Grant) MayActFor(owner string) bool {
	return owner == g.Owner || g.rule != nil && matchesAny(g.rule.delegate, owner)
}

// Delegate are the patterns of owners that sessions may be asked for in the name of.
func (g Grant) Delegate() []string { return g.texts(func(r *rule) []pattern { return r.delegate }) }

func (g Grant) texts(of func(*rule) []pattern) (texts []string) {
	if g.rule == nil {
		return nil
	}
	for _, p := range of(g.rule) {
		texts = append(texts, p.text)
	}
	return texts
}

func matchesAny(patterns []pattern, text string) bool {
	return slices.ContainsFunc(patterns, func(p pattern) bool {
		_, ok := p.match(text)
		return ok
	})
}

// Step is one rule that was looked at.
type Step struct {
	Rule    string `json:"rule"`
	At      string `json:"at,omitempty"` // file:line
	Decides bool   `json:"decides"`
	Why     string `json:"why"`
}

// Decision is what the policy says of somebody, and how it came to it.
type Decision struct {
	Grant Grant
	Err   error  // nil if it is a yes; else a *NoOwner or *Denial
	Owner string // whom sessions there belong to, whether any may be had or not; "" is nobody
	Steps []Step // the last one decides
}

// Allow decides whether id may have sessions; else the error is a *NoOwner or *Denial.
func (p *Policy) Allow(id peer.Identity) (Grant, error) {
	v := p.decide(id, nil)
	return v.grant, v.err
}

// Owner is whom id's sessions belong to, whether it may have any or not. "" is nobody. The error is a *Denial, where a
// file that could not be understood leaves it open.
func (p *Policy) Owner(id peer.Identity) (string, error) {
	v := p.decide(id, nil)
	if v.open {
		return "", v.err
	}
	return v.owner, nil
}

// Decide is Allow and Owner, with every step on the way.
func (p *Policy) Decide(id peer.Identity) Decision {
	var steps []Step
	v := p.decide(id, func(s Step) { steps = append(steps, s) })
	return Decision{Grant: v.grant, Err: v.err, Owner: v.owner, Steps: steps}
}

// verdict is what decide comes to.
type verdict struct {
	grant Grant
	err   error
	owner string
	open  bool // a broken file leaves open what the owner is
}

// decide looks for the first rule that matches. trace may be nil.
func (p *Policy) decide(id peer.Identity, trace func(Step)) verdict {
	step := func(r *rule, decides bool, format string, args ...any) {
		if trace != nil {
			trace(Step{r.name, r.at(), decides, fmt.Sprintf(format, args...)})
		}
	}
	path := place(id.Cgroup)
	for i := range p.rules {
		r := &p.rules[i]
		if r.broken {
			reason := fmt.Sprintf("the policy file %s is broken, so that what it would decide is denied; the log of holdfastd, and holdfast policy check, say what is wrong", r.file)
			step(r, true, "%s", reason)
			return verdict{err: &Denial{reason, r.name}, open: true}
		}
		if !r.uids.has(id.UID) {
			step(r, false, "uid %d is not %s", id.UID, r.uids.text)
			continue
		}
		in, taken, ok := r.matches(path)
		if !ok {
			step(r, false, "%s is not %s", path, r)
			continue
		}
		v := r.apply(id, path, in, taken)
		switch {
		case v.err != nil:
			step(r, true, "%s", v.err)
		case in == nil:
			step(r, true, "it is for any cgroup, and uid %s", r.uids.text)
		default:
			step(r, true, "%s is %s, and uid %d is %s", path, in.text, id.UID, r.uids.text)
		}
		return v
	}

	v := verdict{owner: ownChain(id)}
	if v.err = builtIn(id); v.err == nil {
		step(&rule{name: BuiltIn}, true, "%s is a service of the system manager, and runs as uid 0", strings.TrimPrefix(id.Owner, "/"))
		v.grant = Grant{Owner: id.Owner, Rule: BuiltIn, MaxParked: DefaultMaxParked}
		return v
	}
	if p.UIDOwners == nil || !p.UIDOwners.match(id) {
		step(&rule{name: BuiltIn}, true, "%s", v.err)
		return v
	}
	step(&rule{name: BuiltIn}, false, "%s", v.err)
	if o := p.UIDOwners.Overflow; o != nil && id.UID == *o {
		v.err = &Denial{Reason: fmt.Sprintf("uid %d stands for every user that holdfastd's user namespace doesn't know, so nothing can belong to it", id.UID), Rule: ByUID}
		step(&rule{name: ByUID}, true, "%s", v.err)
		return v
	}
	step(&rule{name: ByUID}, true, "it is outside any unit")
	owner := fmt.Sprintf("uid/%d", id.UID)
	return verdict{grant: Grant{Owner: owner, Rule: ByUID, MaxParked: DefaultMaxParked}, owner: owner}
}

// place is what rules are matched against: the path up to the innermost unit, as a subdirectory that a service makes
// changes nothing of who it is. Outside any unit it is the whole path.
func place(cgroup string) string {
	if unit := peer.UnitPath(cgroup); unit != "" {
		return unit
	}
	return cgroup
}

// ownChain is the owner that id has by its units' names: "" for one in a unit of another manager than the system's,
// since that could be called as one of the system's is.
func ownChain(id peer.Identity) string {
	if noSlice(id.Cgroup) != "" {
		return ""
	}
	return id.Owner
}

// noSlice returns what there is above the outermost unit that isn't a slice. A container's cgroup may name units too,
// of a manager of its own: /docker/ID/system.slice/vmm.service.
func noSlice(cgroup string) string {
	for component := range strings.SplitSeq(strings.TrimPrefix(cgroup, "/"), "/") {
		if strings.TrimPrefix(component, "_") == peer.Outermost(cgroup) {
			break
		}
		if !strings.HasSuffix(component, ".slice") {
			return component
		}
	}
	return ""
}

// match tells whether id is outside any unit.
func (u *UIDOwners) match(id peer.Identity) bool {
	below, beside := strings.CutPrefix(id.Cgroup, u.Unit)
	if u.Unit != "" && beside && (below == "" || below[0] == '/') {
		return peer.Owner(below) == ""
	}
	return id.Owner == ""
}

// builtIn is the last rule of any policy: exactly one unit, a .service below slices only and outside user.slice, and
// uid 0.
func builtIn(id peer.Identity) error {
	if id.Owner == "" {
		return &NoOwner{id.Cgroup}
	}
	deny := func(format string, args ...any) error {
		return &Denial{Reason: fmt.Sprintf(format, args...), Rule: BuiltIn}
	}
	unit := strings.TrimPrefix(id.Owner, "/")
	above := noSlice(id.Cgroup)
	switch {
	case above != "":
		return deny("%s is below %q, which is no slice: only units of the system manager may have sessions", unit, above)
	case strings.HasSuffix(peer.Outermost(id.Cgroup), ".scope"):
		return deny("%s is a scope, which has no fd store to have its session back from after the update; run this in a .service of the system manager", peer.Outermost(id.Cgroup))
	case id.Cgroup == "/user.slice" || strings.HasPrefix(id.Cgroup, "/user.slice/"):
		return deny("%s is below user.slice: units of users' managers may not have sessions", unit)
	case strings.Contains(unit, "/"):
		return deny("%s is a unit inside another: only units of the system manager may have sessions", unit)
	case id.UID != 0:
		return deny("uid %d of %s: only uid 0 may have sessions", id.UID, unit)
	}
	return nil
}

// CheckOwner tells whether an owner could be one: of units' names, of a rule, or uid/N.
func CheckOwner(owner string) error {
	if strings.HasPrefix(owner, "/") {
		if len(owner) > 4096 || peer.Owner(owner) != owner {
			return fmt.Errorf("%q isn't made of units' names, each with a / before it", owner)
		}
		return nil
	}
	return checkMapped(owner)
}

// rule is one of a file.
type rule struct {
	name     string
	file     string
	line     int  // 0 is the file as a whole
	broken   bool // stands for the file, and denies
	uids     uids
	anywhere bool
	cgroups  []pattern
	denies   bool

	owner     *owner
	names     []pattern
	delegate  []pattern
	maxParked int
	rate      Rate
	listAll   bool
	required  bool
}

func (r *rule) at() string {
	if r.line == 0 {
		return r.file
	}
	return fmt.Sprintf("%s:%d", r.file, r.line)
}

// matches returns the pattern that a path is of; nil where the rule is for any.
func (r *rule) matches(path string) (in *pattern, taken []string, ok bool) {
	if r.anywhere {
		return nil, nil, true
	}
	for i := range r.cgroups {
		if taken, ok := r.cgroups[i].match(path); ok {
			return &r.cgroups[i], taken, true
		}
	}
	return nil, nil, false
}

// String is whom the rule is for.
func (r *rule) String() string {
	var texts []string
	for _, p := range r.cgroups {
		texts = append(texts, p.text)
	}
	return strings.Join(texts, " or ")
}

// apply is what a rule says of who matches it.
func (r *rule) apply(id peer.Identity, path string, in *pattern, taken []string) verdict {
	deny := func(format string, args ...any) error {
		return &Denial{Reason: fmt.Sprintf(format, args...), Rule: r.name}
	}
	v := verdict{owner: ownChain(id)}
	if r.owner != nil {
		var err error
		if v.owner, err = r.owner.of(in, taken); err != nil {
			v.owner, v.err = "", deny("the owner %s can't be made for %s: %s", r.owner.text, path, err)
			return v
		}
	}
	switch {
	case r.denies:
		v.err = deny("sessions are denied to uid %d of %s", id.UID, path)
	case v.owner != "":
		v.grant = Grant{Owner: v.owner, Rule: r.name, MaxParked: r.maxParked, Rate: r.rate, ListAll: r.listAll, Required: r.required, rule: r}
	case id.Owner == "":
		v.err = &NoOwner{id.Cgroup}
	default:
		v.err = deny("%s is below %q, which is no slice: a unit of the system's could be called %s as well, so the rule must give it an owner", path, noSlice(id.Cgroup), strings.TrimPrefix(id.Owner, "/"))
	}
	return v
}

// uids are users.
type uids struct {
	text   string
	all    bool
	ranges [][2]uint32 // inclusive
}

func (u *uids) has(uid uint32) bool {
	return u.all || slices.ContainsFunc(u.ranges, func(r [2]uint32) bool { return r[0] <= uid && uid <= r[1] })
}

// onlyRoot tells whether nobody else is among them.
func (u *uids) onlyRoot() bool {
	return !u.all && !slices.ContainsFunc(u.ranges, func(r [2]uint32) bool { return r[1] > 0 })
}

// parseName takes a name of sessions, or a pattern of such, as a rule lists them.
func parseName(text string) (pattern, error) {
	example := strings.NewReplacer("*", "x", "#", "0").Replace(text)
	if invalid, ok := errors.AsType[*name.InvalidError](name.Check(example, name.Max)); ok {
		return pattern{}, fmt.Errorf("it can't be a session's name: %s", invalid.Reason)
	}
	return parsePattern(text)
}
