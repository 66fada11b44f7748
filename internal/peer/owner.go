// SPDX-License-Identifier: MIT

package peer

import "strings"

// Owner works out who sessions belong to from a cgroup's path: the components that name units that run processes
// (*.service, *.scope), each with a "/" before it. Slices and plain directories are dropped, so that neither a
// Slice= drop-in nor a subdirectory changes the owner. A delegated subtree can only make longer chains. It
// returns "" where no component names a unit.
func Owner(cgroup string) string {
	var owner strings.Builder
	for unit := range Units(cgroup) {
		owner.WriteByte('/')
		owner.WriteString(unit)
	}
	return owner.String()
}

// Units yields the names of the units in a cgroup's path, the outermost first.
func Units(cgroup string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for component := range strings.SplitSeq(cgroup, "/") {
			// systemd puts a "_" before a unit's name that cgroupfs could take for one of its own files
			// (cg_escape, src/basic/cgroup-util.c, systemd 262).
			unit := strings.TrimPrefix(component, "_")
			if runsProcesses(unit) && !yield(unit) {
				return
			}
		}
	}
}

// Outermost returns the first unit of a cgroup's path, or "". Limits are counted by it, since a delegated subtree
// makes as many inner units as it likes.
func Outermost(cgroup string) string {
	for unit := range Units(cgroup) {
		return unit
	}
	return ""
}

// UnitPath returns the part of a cgroup's path that ends with the innermost unit, or "".
func UnitPath(cgroup string) string {
	components := strings.Split(cgroup, "/")
	for i := len(components) - 1; i >= 0; i-- {
		if runsProcesses(strings.TrimPrefix(components[i], "_")) {
			return strings.Join(components[:i+1], "/")
		}
	}
	return ""
}

// runsProcesses tells whether a name is a valid one of a unit of the kinds that processes live in
// (unit_name_is_valid, src/basic/unit-name.c, systemd 262).
func runsProcesses(name string) bool {
	prefix, ok := strings.CutSuffix(name, ".service")
	if !ok {
		prefix, ok = strings.CutSuffix(name, ".scope")
	}
	if !ok || prefix == "" || len(name) > 255 || prefix[0] == '@' {
		return false
	}
	for _, c := range []byte(prefix) {
		alnum := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune(`:-_.\@`, rune(c)) {
			return false
		}
	}
	return true
}
