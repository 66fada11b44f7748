// SPDX-License-Identifier: MIT

package check

import (
	"slices"
	"time"

	"github.com/holdfast-project/holdfast/internal/initrd"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/kimage"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Fact is something that was looked at, or why it can't be told.
type Fact[T any] struct {
	Is  T
	Err error
}

// fact is what a function returns.
func fact[T any](is T, err error) Fact[T] { return Fact[T]{is, err} }

// System is what is known of a machine before an update.
type System struct {
	Arch string // runtime.GOARCH

	// This kernel. Running is nil if nothing is known of it.
	Device      error // why sessions can't be had, or nil
	Running     Fact[*kimage.Kernel]
	CommandLine Fact[string]
	Lockdown    Fact[string] // "none", "integrity", "confidentiality"; "" where the kernel has no lockdown
	KexecOff    Fact[bool]   // kernel.kexec_load_disabled
	LoadsLeft   Fact[int]    // kernel.kexec_load_limit_reboot, -1 for no limit
	Scratch     Fact[[]uint64]
	Loaded      Fact[bool]
	// Handed says whether this kernel was started by a live update.
	Handed Fact[bool]

	// Next is nil if no kernel was named.
	Next *Next

	// The host. Systemd is PID 1's version, "" where PID 1 is something else.
	Systemd         Fact[string]
	Uptime          Fact[time.Duration]
	InhibitDelayMax Fact[time.Duration]
	Exitrd          Fact[Exitrd]
	Memory          Fact[Memory]

	// What is meant to cross. Participants are the owners that will be asked to commit before the update.
	Sessions     []*inventory.Session
	Stores       []systemd.UnitStore
	Units        []*Unit
	Participants []string
	// Unseen are sentences on what there may be besides.
	Unseen []string
}

// Next is the kernel to switch to.
type Next struct {
	// Image is nil if the file isn't a kernel's. With an error it may be damaged.
	Image *kimage.Image
	Err   error
	Size  int64

	CommandLine string
	// From says whose command line that is.
	From string

	// Initrd is nil if there is none. InitrdSize is its size.
	Initrd     *initrd.Contents
	InitrdErr  error
	InitrdSize int64
	// Companions are files that systemd-stub would add to a unified image.
	Companions []string
	// Neighbour is the file of an initrd that was made for this release, or "" if none was found.
	Neighbour string
}

// Memory is how much can be had, in bytes.
type Memory struct {
	// Available is what is free or can be freed, without ScratchFree.
	Available uint64
	// ScratchFree is what of KHO's scratch areas is free. Nothing that is pinned can be there.
	ScratchFree uint64
}

// Exitrd is what would be run at the end of the shutdown, in place of systemd-shutdown.
type Exitrd struct {
	// Reason is the file or unit that will have it run, or "" if there is none.
	Reason string
	// Systemd is the version of the systemd that is in it, or 0.
	Systemd int
}

// Unit has sessions: in its processes, or in its fd store.
type Unit struct {
	// Name is the unit's, with one inside another "user@1000.service/cache.service", or "no unit".
	Name string
	// Service is what PID 1 says of it: nil for what isn't a service of PID 1's.
	Service *systemd.Service
	// Files are the memfds beside its sessions, in its processes and its store.
	Files []File
	// Limits are those of memory, of its cgroup and the ones above.
	Limits []Limit
	// Err is what stood in the way of the rest.
	Err error
}

// File is a memfd. Inode and Dev tell it from others.
type File struct {
	Dev, Inode      uint64
	Size, Allocated uint64 // bytes
	// Huge says that it is one of huge pages, which can't be preserved.
	Huge bool
	// Stored says that it is in the fd store of its unit.
	Stored bool
}

// crosses says whether a file is sure to be preserved, or to have what it takes by now: what a program merely has open beside a session,
// with holes, may be anything, as a heap that is hardly used. Preserving fills all holes (memfd_luo_preserve_folios(), mm/memfd_luo.c,
// Linux 7.2.13).
func (f File) crosses() bool { return !f.Huge && (f.Stored || f.Allocated >= f.Size) }

// Limit is a cgroup's memory.max, in bytes.
type Limit struct {
	Cgroup string
	Max    uint64
}

// noUnit stands for the unit of processes outside of any.
const noUnit = "no unit"

// keeper is the unit that keeps sessions for others.
const keeper = "holdfastd.service"

// carries says whether PID 1 carries fd stores across the update.
func (s *System) carries() bool { return s.Systemd.Err == nil && systemd.CarriesStores(s.Systemd.Is) }

// hasSystemd says whether PID 1 is, or may be, systemd.
func (s *System) hasSystemd() bool { return s.Systemd.Err != nil || s.Systemd.Is != "" }

// stored says whether a session is in any store.
func (s *System) stored() bool {
	return slices.ContainsFunc(s.Sessions, func(i *inventory.Session) bool { return len(i.Stores()) > 0 })
}

// outgoing are the sessions of this kernel.
func (s *System) outgoing() []*inventory.Session { return s.of(liveupdate.Outgoing) }

func (s *System) of(direction liveupdate.Direction) (sessions []*inventory.Session) {
	for _, session := range s.Sessions {
		if session.Direction == direction {
			sessions = append(sessions, session)
		}
	}
	return sessions
}

// participates says whether a session's owner will be asked to commit. A digest that fits proves the owner.
func (s *System) participates(kernelName string) bool {
	digest, _, ours := name.Parse(kernelName)
	return ours && slices.ContainsFunc(s.Participants, func(owner string) bool { return name.Digest(owner) == digest })
}

// unit is what is known of a unit, or nil.
func (s *System) unit(name string) *Unit {
	for _, u := range s.Units {
		if u.Name == name {
			return u
		}
	}
	return nil
}
