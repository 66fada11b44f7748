// SPDX-License-Identifier: MIT

// Package policy says who may have sessions. There is one rule so far, the built-in one; what it doesn't match is
// denied.
package policy

import (
	"fmt"
	"strings"

	"github.com/holdfast-project/holdfast/internal/peer"
)

// BuiltIn is the name of the last rule, in errors and in the log.
const BuiltIn = "built-in"

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

// Allow returns the name of the rule that lets id have sessions under its own owner, or a *NoOwner or *Denial.
//
// The built-in rule: exactly one unit, a .service below slices only and outside user.slice, and uid 0.
func Allow(id peer.Identity) (rule string, err error) {
	if id.Owner == "" {
		return "", &NoOwner{id.Cgroup}
	}
	deny := func(format string, args ...any) (string, error) {
		return "", &Denial{Reason: fmt.Sprintf(format, args...), Rule: BuiltIn}
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
	return BuiltIn, nil
}
