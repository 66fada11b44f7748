// SPDX-License-Identifier: MIT

package inventory

import (
	"cmp"
	"slices"
	"strings"

	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Session is a session that somebody holds. Of one direction, the kernel has each name once.
type Session struct {
	KernelName string
	// Direction is 0 where the session could not be asked, and nothing else tells it.
	Direction liveupdate.Direction
	Holders   []Holder
}

// Holder is a process that has a session open, or PID 1 that has it in the fd store of a unit.
type Holder struct {
	PID int
	// Unit is the store's, or the process's: with a unit inside another as "user@1000.service/cache.service", "" outside
	// any.
	Unit  string
	Store bool
}

// Stores are the units in whose fd stores the session is.
func (s *Session) Stores() (units []string) {
	for _, h := range s.Holders {
		if h.Store {
			units = append(units, h.Unit)
		}
	}
	return units
}

// Unseen is a process whose descriptors could not be looked at.
type Unseen struct {
	PID int
	Err error
}

// Inventory is what was found. The zero value is empty. It is not safe for concurrent use.
type Inventory struct {
	Sessions []*Session
	// Unseen are the processes that could not be looked at.
	Unseen []Unseen
	// Seen is who runs on this machine: the cgroups and users of all processes that were looked at, each once.
	Seen []peer.Identity
}

// Session returns the session of that name and direction, and adds it if it isn't there.
func (i *Inventory) Session(kernelName string, direction liveupdate.Direction) *Session {
	for _, s := range i.Sessions {
		if s.KernelName == kernelName && s.Direction == direction {
			return s
		}
	}
	s := &Session{KernelName: kernelName, Direction: direction}
	i.Sessions = append(i.Sessions, s)
	return s
}

// AddStores adds the sessions in the fd stores at PID 1. What the sessions of PID 1's own descriptors have said counts:
// an FDNAME is a hint. So look at the processes first, where that is possible. boot is this one's, see [fdname.ThisBoot].
func (i *Inventory) AddStores(stores []systemd.UnitStore, boot string) {
	type stored struct {
		kernelName, unit string
		hint             liveupdate.Direction
	}
	var found []stored
	for _, store := range stores {
		for _, e := range store.Entries {
			kernelName, ok := strings.CutPrefix(e.Path, liveupdate.LinkPrefix)
			if !ok {
				continue
			}
			s := stored{kernelName: kernelName, unit: store.Unit}
			if n, ours := fdname.Parse(e.Name); ours && n.Boot == boot {
				s.hint = liveupdate.Outgoing
			} else if ours {
				s.hint = liveupdate.Incoming
			}
			found = append(found, s)
		}
	}
	// Those that tell nothing of their direction come last: where there is one session of the name by then, it is that one.
	slices.SortStableFunc(found, func(a, b stored) int { return cmp.Compare(min(b.hint, 1), min(a.hint, 1)) })
	asked := map[*Session]bool{} // of PID 1's own descriptors
	for _, s := range i.Sessions {
		asked[s] = slices.ContainsFunc(s.Holders, func(h Holder) bool { return h.PID == 1 && !h.Store })
	}
	for _, f := range found {
		for _, s := range i.stored(f.kernelName, f.hint, asked) {
			s.Holders = slices.DeleteFunc(s.Holders, func(h Holder) bool { return h.PID == 1 && (!h.Store || h.Unit == f.unit) })
			s.Holders = append(s.Holders, Holder{PID: 1, Unit: f.unit, Store: true})
		}
	}
}

// stored are the sessions that an entry of a store stands for: one, but where PID 1 has two of the name and nothing tells
// which.
func (i *Inventory) stored(kernelName string, hint liveupdate.Direction, asked map[*Session]bool) []*Session {
	var all, atPID1, hinted []*Session
	for _, s := range i.Sessions {
		if s.KernelName != kernelName {
			continue
		}
		all = append(all, s)
		if s.Direction == hint {
			hinted = append(hinted, s)
		}
		if asked[s] {
			atPID1 = append(atPID1, s)
		}
	}
	switch {
	case len(atPID1) == 1, len(atPID1) > 1 && hint == 0:
		return atPID1
	case len(hinted) > 0:
		return hinted
	case hint == 0 && len(all) == 1:
		return all
	}
	return []*Session{i.Session(kernelName, hint)}
}

// Sort orders the sessions by name and direction, and their holders with the stores first.
func (i *Inventory) Sort() {
	slices.SortFunc(i.Sessions, func(a, b *Session) int {
		return cmp.Or(cmp.Compare(a.KernelName, b.KernelName), cmp.Compare(a.Direction, b.Direction))
	})
	for _, s := range i.Sessions {
		slices.SortFunc(s.Holders, func(a, b Holder) int {
			if a.Store != b.Store {
				return map[bool]int{true: -1, false: 1}[a.Store]
			}
			return cmp.Or(cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.PID, b.PID))
		})
	}
}
