// SPDX-License-Identifier: MIT

package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// group is some sessions that the same can be said of.
type group struct {
	who      string
	sessions []*inventory.Session
}

// groups puts sessions together by who they are with, in the order of that.
func groups(sessions []*inventory.Session, who func(*inventory.Session) string) (all []*group) {
	for _, s := range sessions {
		w := who(s)
		i := slices.IndexFunc(all, func(g *group) bool { return g.who == w })
		if i < 0 {
			i = len(all)
			all = append(all, &group{who: w})
		}
		all[i].sessions = append(all[i].sessions, s)
	}
	slices.SortFunc(all, func(a, b *group) int { return cmp.Compare(a.who, b.who) })
	return all
}

// named is how many are named in a sentence.
const named = 4

// String is "the session a" or "the sessions a, b and 3 more".
func (g *group) String() string {
	var names []string
	for _, s := range g.sessions {
		names = append(names, fmt.Sprintf("%q", s.KernelName))
	}
	return "the " + plural(names, "session")
}

func plural(names []string, what string) string {
	if len(names) == 1 {
		return what + " " + names[0]
	}
	if more := len(names) - named; more > 0 {
		return fmt.Sprintf("%ss %s and %d more", what, strings.Join(names[:named], ", "), more)
	}
	return what + "s " + strings.Join(names, ", ")
}

// number is "1 session" or "2 sessions".
func number(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// verb is the singular's or the plural's.
func (g *group) verb(one, many string) string {
	if len(g.sessions) == 1 {
		return one
	}
	return many
}

// pids are the processes that hold them.
func (g *group) pids() string {
	var pids []string
	for _, s := range g.sessions {
		for _, h := range s.Holders {
			if pid := fmt.Sprint(h.PID); !h.Store && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		return "no process that was seen"
	}
	return plural(pids, "PID")
}

// heldBy are the units whose processes hold a session: those of the keeper only if nobody else does.
func heldBy(s *inventory.Session) string {
	var units []string
	for _, h := range s.Holders {
		if unit := cmp.Or(h.Unit, noUnit); !h.Store && unit != keeper && !slices.Contains(units, unit) {
			units = append(units, unit)
		}
	}
	if units == nil {
		if len(s.Holders) == 0 {
			return "nobody that was seen"
		}
		return keeper
	}
	slices.Sort(units)
	return strings.Join(units, ", ")
}

// incoming: are there sessions of the previous kernel, which can't be carried into a second update?
func incoming(s *System) (findings []Finding) {
	const id = "incoming"
	var waiting, asked, done []*inventory.Session
	outgoing := s.outgoing()
	for _, session := range s.of(liveupdate.Incoming) {
		switch {
		case slices.ContainsFunc(outgoing, func(o *inventory.Session) bool { return o.KernelName == session.KernelName && len(o.Stores()) > 0 }):
			done = append(done, session)
		case s.participates(session.KernelName):
			asked = append(asked, session)
		default:
			waiting = append(waiting, session)
		}
	}
	where := func(session *inventory.Session) string {
		if stores := session.Stores(); len(stores) > 0 {
			return "in the fd store of " + strings.Join(stores, ", ")
		}
		return "with " + heldBy(session)
	}
	for _, g := range groups(waiting, where) {
		first := g.sessions[0].KernelName
		findings = append(findings, failure(id, fmt.Sprintf("have the owner renew (start it, if it doesn't run), or free the memory: holdfast release --kernel-name %s --direction incoming", first),
			"%v, %s, came from the previous kernel and %s not been renewed: a second update can't carry %s", g, g.who, g.verb("has", "have"), g.verb("it", "them"))...)
	}
	for _, g := range groups(asked, where) {
		findings = append(findings, warning(id, "see that the owner renews when it is asked to prepare", "%v, %s, came from the previous kernel and %s not been renewed; the owner takes part in the update", g, g.who, g.verb("has", "have"))...)
	}
	if len(findings) == 0 {
		if len(done) > 0 {
			return ok(id, "of the previous kernel %s not released yet, and renewed", number(len(done), "session"))
		}
		return ok(id, "no session of the previous kernel waits to be renewed")
	}
	return findings
}

// uncommitted: are there sessions that only processes have, which are about to be ended?
func uncommitted(s *System) (findings []Finding) {
	const id = "uncommitted"
	var lost, asked []*inventory.Session
	committed := 0
	for _, session := range s.outgoing() {
		switch {
		case len(session.Stores()) > 0:
			committed++
		case s.participates(session.KernelName):
			asked = append(asked, session)
		default:
			lost = append(lost, session)
		}
	}
	for _, g := range groups(lost, heldBy) {
		hint := "have it store the session in its fd store, or park it with holdfastd; or stop it, if it isn't needed"
		if u := s.unit(g.who); u != nil && u.Service != nil && u.Service.StoreMax == 0 {
			hint = "have it park the session with holdfastd, or give it an fd store: FileDescriptorStoreMax=16, FileDescriptorStorePreserve=yes"
		}
		switch {
		case !s.hasSystemd():
			findings = append(findings, warning(id, "let it run until the kexec", "%v %s only held by %s (%s), and crosses if that runs up to the kexec", g, g.verb("is", "are"), g.who, g.pids())...)
		case g.who == keeper:
			findings = append(findings, failure(id, "see holdfastd's log, and make room in its fd store", "%v %s held by holdfastd, but not in its fd store: %s would be lost", g, g.verb("is", "are"), g.verb("it", "they"))...)
		default:
			findings = append(findings, failure(id, hint, "%v %s not committed: only %s (%s) holds %s, and with that %s would be lost", g, g.verb("is", "are"), g.who, g.pids(), g.verb("it", "them"), g.verb("it", "they"))...)
		}
	}
	for _, g := range groups(asked, heldBy) {
		findings = append(findings, ok(id, "%v %s not committed yet: %s takes part in the update and will be asked to", g, g.verb("is", "are"), g.who)...)
	}
	if len(lost) == 0 {
		findings = append(findings, ok(id, "committed: %s", number(committed, "session"))...)
	}
	return findings
}

// twoStores: is there a session that PID 1 would give to one of two units at random?
func twoStores(s *System) (findings []Finding) {
	const id = "two-stores"
	for _, session := range s.Sessions {
		if stores := session.Stores(); session.Direction != liveupdate.Incoming && len(stores) > 1 {
			findings = append(findings, failure(id, "take it out of all but one: systemctl clean --what=fdstore UNIT with the unit stopped, or holdfast release",
				"the session %q is in the fd stores of %s: the next kernel's systemd gives it to one of them at random", session.KernelName, strings.Join(stores, " and of "))...)
		}
	}
	if findings == nil {
		return ok(id, "no session is in two fd stores")
	}
	return findings
}

// survives says whether a store outlasts the end of its service.
func survives(service *systemd.Service) bool {
	return service.Preserve == "yes" || service.Preserve == "on-success"
}

// storePreserved: will each store that has sessions outlast its service, which is stopped before the kexec?
func storePreserved(s *System) (findings []Finding) {
	const id = "store-preserved"
	n := 0
	for _, u := range s.Units {
		count := s.inStore(u.Name)
		if count == 0 || u.Service == nil {
			continue
		}
		if n++; !survives(u.Service) {
			findings = append(findings, failure(id, "systemctl edit "+u.Name+": FileDescriptorStorePreserve=yes", "the fd store of %s has %s, and is emptied when it stops (FileDescriptorStorePreserve=%s): lost in an update",
				u.Name, number(count, "session"), u.Service.Preserve)...)
		}
	}
	if findings == nil && n > 0 {
		return ok(id, "the fd stores with sessions, %d, outlast their services", n)
	}
	return findings
}

// inStore is how many outgoing sessions are in a unit's store.
func (s *System) inStore(unit string) (n int) {
	for _, session := range s.outgoing() {
		if slices.Contains(session.Stores(), unit) {
			n++
		}
	}
	return n
}

// yetToStore is how many sessions the processes of a unit have that are in no store.
func (s *System) yetToStore(unit string) (n int) {
	for _, session := range s.outgoing() {
		if len(session.Stores()) == 0 && slices.ContainsFunc(session.Holders, func(h inventory.Holder) bool { return h.Unit == unit }) {
			n++
		}
	}
	return n
}

// storeRoom: can each unit store what it hasn't stored yet?
func storeRoom(s *System) (findings []Finding) {
	const id = "store-room"
	for _, u := range s.Units {
		if u.Service == nil {
			continue
		}
		n, max, toStore := u.Service.Stored, u.Service.StoreMax, s.yetToStore(u.Name)
		switch {
		case max == 0 && toStore > 0:
			findings = append(findings, warning(id, "FileDescriptorStoreMax=16 and FileDescriptorStorePreserve=yes, unless it parks them with holdfastd", "%s has %s to commit, and no fd store", u.Name, number(toStore, "session"))...)
		case max == 0 || s.inStore(u.Name)+toStore == 0:
		case n >= max && toStore > 0:
			findings = append(findings, failure(id, fmt.Sprintf("raise FileDescriptorStoreMax=, which is %d: 4 for each session and 1 for each file in it", max), "the fd store of %s is full, and it has %s to commit", u.Name, number(toStore, "session"))...)
		case n >= max:
			findings = append(findings, warning(id, fmt.Sprintf("raise FileDescriptorStoreMax=, which is %d", max), "the fd store of %s is full", u.Name)...)
		}
	}
	if findings == nil {
		return ok(id, "no fd store that is needed is full")
	}
	return findings
}

// notPreservable: is there something in the stores with sessions that PID 1 can't preserve, and drops with a warning? Or a memfd beside a
// session that can't be preserved in it?
func notPreservable(s *System) (findings []Finding) {
	const id = "not-preservable"
	for _, store := range s.Stores {
		u := s.unit(store.Unit)
		// The stores of systemd's own services are full of sockets, which they can do without.
		if u == nil || u.Service == nil || !survives(u.Service) || s.inStore(u.Name) == 0 {
			continue
		}
		var entries []string
		for _, e := range store.Entries {
			if kind := u.cannotCross(e); kind != "" {
				entries = append(entries, fmt.Sprintf("%q (%s)", e.Name, kind))
			}
		}
		if entries != nil {
			findings = append(findings, warning(id, "see that "+store.Unit+" can do without", "in the fd store of %s the kernel can't preserve the %s, which an update loses", store.Unit, plural(entries, "file"))...)
		}
	}
	for _, u := range s.Units {
		var huge uint64
		for _, f := range u.Files {
			if f.Huge && !s.isStored(u.Name, f) {
				huge += f.Size
			}
		}
		if huge > 0 {
			findings = append(findings, warning(id, "see that "+u.Name+" can do without, or has its memory in ordinary memfds", "%s has memfds of huge pages, %s, beside its sessions: the kernel can't preserve them, and an update loses them", u.Name, bytes(huge))...)
		}
	}
	if findings == nil {
		return ok(id, "nothing was seen in the fd stores with sessions, or beside sessions, that can't be preserved")
	}
	return findings
}

// isStored says whether a file is in a unit's fd store.
func (s *System) isStored(unit string, f File) bool {
	return slices.ContainsFunc(s.Stores, func(store systemd.UnitStore) bool {
		return store.Unit == unit && slices.ContainsFunc(store.Entries, func(e systemd.Entry) bool { return e.Dev == f.Dev && e.Inode == f.Inode })
	})
}

// S_IFMT and S_IFREG, stat(2).
const (
	formatMask  = 0o170000
	regularFile = 0o100000
)

// cannotCross says what an entry of the unit's store is, if the kernel can't preserve it: it can sessions, and files in memory but for
// those of huge pages (memfd_luo_can_preserve(), mm/memfd_luo.c, Linux 7.2.13).
func (u *Unit) cannotCross(e systemd.Entry) string {
	switch {
	case strings.HasPrefix(e.Path, liveupdate.LinkPrefix):
		return ""
	case e.Mode&formatMask != regularFile:
		return e.Path
	case !strings.HasPrefix(e.Path, memfdPrefix):
		return e.Path
	}
	for _, f := range u.Files {
		if f.Dev == e.Dev && f.Inode == e.Inode && f.Huge {
			return "a memfd of huge pages"
		}
	}
	return ""
}

// memfdPrefix begins the links of memfds in /proc/PID/fd.
const memfdPrefix = "/memfd:"

// memoryLimit: may each unit have as much memory as comes back to it? The pages are charged to whoever retrieves them.
func memoryLimit(s *System) (findings []Finding) {
	const id = "memory-limit"
	n := 0
	for _, u := range s.Units {
		if u.Name == keeper { // which only keeps
			continue
		}
		var size, sure uint64
		for _, f := range u.Files {
			if !f.Huge {
				size += f.Size
			}
			if f.crosses() {
				sure += f.Size
			}
		}
		if size == 0 {
			continue
		}
		n++
		need := func(size uint64) uint64 { return size + size/64 + 1<<20 }
		for _, l := range u.Limits {
			hint := func(size uint64) string {
				return fmt.Sprintf("raise MemoryMax= of %s to %s or more", l.Cgroup, bytes(need(size)))
			}
			switch {
			case sure > l.Max:
				findings = append(findings, failure(id, hint(sure), "%s has memfds of %s beside its sessions, and may have %s (memory.max of %s): it couldn't get them back", u.Name, bytes(sure), bytes(l.Max), l.Cgroup)...)
			case need(sure) > l.Max:
				findings = append(findings, warning(id, hint(sure), "%s has memfds of %s beside its sessions, and with %s (memory.max of %s) too little room for what it takes to get them back", u.Name, bytes(sure), bytes(l.Max), l.Cgroup)...)
			case need(size) > l.Max:
				findings = append(findings, warning(id, hint(size)+", unless they are something else", "%s has memfds of %s open beside its sessions, most of it holes, and may have %s (memory.max of %s): if all are preserved, it couldn't get them back", u.Name, bytes(size), bytes(l.Max), l.Cgroup)...)
			}
		}
	}
	switch {
	case findings != nil:
		return findings
	case n > 0:
		return ok(id, "the memory limits of %d units are large enough for the memfds beside their sessions", n)
	}
	return ok(id, "no memfd was seen beside a session")
}

// pinned: is there enough memory for what preserving takes? It pins all pages, and gives pages to holes.
func pinned(s *System) []Finding {
	const id = "pinned-memory"
	type inode struct{ dev, inode uint64 }
	seen := map[inode]bool{}
	var size, holes, sure uint64
	for _, u := range s.Units {
		for _, f := range u.Files {
			if i := (inode{f.Dev, f.Inode}); !f.Huge && !seen[i] {
				seen[i] = true
				size += f.Size
				hole := f.Size - min(f.Size, f.Allocated)
				if holes += hole; f.crosses() {
					sure += hole
				}
			}
		}
	}
	// What is pinned is moved out of KHO's scratch areas, where only the next kernel finds room (memfd_pin_folios(), mm/gup.c, and
	// kho_init(), kernel/liveupdate/kexec_handover.c, Linux 7.2.13). Whose pages are in them now can't be told.
	var moved uint64
	for _, n := range s.Scratch.Is {
		moved += n
	}
	moved = min(size-holes, moved-min(moved, s.Memory.Is.ScratchFree))
	available := s.Memory.Is.Available
	const hint = "free memory, or shrink the memfds"
	switch {
	case s.Memory.Err != nil:
		return warning(id, "mount /proc", "how much memory is available can't be told: %v", s.Memory.Err)
	case sure > available:
		return failure(id, hint, "%s in %d memfds would be pinned, and the holes in those that are stored take %s when they are preserved: only %s are available outside of KHO's scratch areas", bytes(size), len(seen), bytes(sure), bytes(available))
	case holes > available:
		return warning(id, hint+", unless they are something else", "programs with sessions have %d memfds, of %s: if all are preserved, their holes take %s, and only %s are available outside of KHO's scratch areas", len(seen), bytes(size), bytes(holes), bytes(available))
	case holes+moved > available:
		return warning(id, hint, "%s in %d memfds would be pinned: their holes take %s, and up to %s have to be moved out of KHO's scratch areas; only %s are available outside of these", bytes(size), len(seen), bytes(holes), bytes(moved), bytes(available))
	}
	if len(seen) == 0 {
		return ok(id, "no memfd was seen beside a session, and %s of memory are available", bytes(available))
	}
	return ok(id, "%s in %d memfds are or will be pinned, %s of it holes that get pages; %s are available outside of KHO's scratch areas", bytes(size), len(seen), bytes(holes), bytes(available))
}

func bytes(n uint64) string {
	for _, unit := range []struct {
		shift int
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 1<<unit.shift {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(uint64(1)<<unit.shift)), ".0") + " " + unit.name
		}
	}
	return fmt.Sprint(n, " bytes")
}

// unretrieved: may there be sessions that came from the previous kernel and that nobody has asked for? The kernel doesn't list them.
func unretrieved(s *System) []Finding {
	const id = "unretrieved"
	const hint = "start whoever had sessions before the last update"
	switch {
	case s.Handed.Err != nil:
		return warning(id, "mount debugfs to have it looked at; "+hint, "sessions that nobody has retrieved since the last update can't be listed, nor whether there was one: %v", s.Handed.Err)
	case s.Handed.Is:
		return warning(id, hint, "this kernel was started by a live update: sessions that nobody has retrieved since can't be listed, and would be lost")
	}
	return ok(id, "this kernel was not started by a live update: no session waits in it")
}

const unseenHint = "root, outside of containers, sees more"

// unseen: what could not be looked at?
func unseen(s *System) (findings []Finding) {
	for _, session := range s.of(0) {
		findings = append(findings, warning("unseen", unseenHint, "whether the session %q is this kernel's or the previous one's can't be told", session.KernelName)...)
	}
	for _, u := range s.Units {
		if u.Err != nil {
			findings = append(findings, warning("unseen", unseenHint, "not all of %s was looked at: %v", u.Name, u.Err)...)
		}
	}
	for _, text := range s.Unseen {
		findings = append(findings, warning("unseen", unseenHint, "%s", text)...)
	}
	return findings
}
