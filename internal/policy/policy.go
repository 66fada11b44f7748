// SPDX-License-Identifier: MIT

// Package policy answers: may it, and in whose name. There is one rule so far, the built-in one, and a switch for where
// there are no units; what neither matches is denied.
package policy

import (
	"fmt"
	"strings"

	"github.com/holdfast-project/holdfast/internal/peer"
)

// The names of the rules, in errors and in the log.
const (
	BuiltIn = "built-in"
	ByUID   = "uid-owners"
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

// Policy decides. The zero value has the built-in rule alone.
type Policy struct {
	// UIDOwners, unless nil, lets processes outside any unit have sessions too.
	UIDOwners *UIDOwners
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

// Grant is a yes.
type Grant struct {
	Owner string // whom sessions are made for, and given back to
	Rule  string // that decided
}

// Allow decides whether id may have sessions; else the error is a *NoOwner or *Denial.
func (p *Policy) Allow(id peer.Identity) (Grant, error) {
	err := builtIn(id)
	if err == nil {
		return Grant{id.Owner, BuiltIn}, nil
	}
	if p.UIDOwners == nil || !p.UIDOwners.match(id) {
		return Grant{}, err
	}
	if o := p.UIDOwners.Overflow; o != nil && id.UID == *o {
		return Grant{}, &Denial{Reason: fmt.Sprintf("uid %d stands for every user that holdfastd's user namespace doesn't know, so nothing can belong to it", id.UID), Rule: ByUID}
	}
	return Grant{fmt.Sprintf("uid/%d", id.UID), ByUID}, nil
}

// Owner is whom id's sessions belong to, whether it may have any or not. "" is nobody.
func (p *Policy) Owner(id peer.Identity) string {
	if grant, err := p.Allow(id); err == nil {
		return grant.Owner
	}
	return id.Owner
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
	// A container's cgroup may name units too, of a manager of its own: /docker/ID/system.slice/vmm.service.
	for component := range strings.SplitSeq(strings.TrimPrefix(id.Cgroup, "/"), "/") {
		if strings.TrimPrefix(component, "_") == peer.Outermost(id.Cgroup) {
			break
		}
		if !strings.HasSuffix(component, ".slice") {
			return deny("%s is below %q, which is no slice: only units of the system manager may have sessions", unit, component)
		}
	}
	switch {
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
