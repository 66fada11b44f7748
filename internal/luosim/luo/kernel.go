// SPDX-License-Identifier: MIT

package luo

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Features are what differs between the kernels that have the Live Update Orchestrator.
type Features struct {
	GetName bool // the ioctl GET_NAME, since 7.2
	LinkMax int  // the longest name for which the link of a session's descriptor can be read, in bytes
}

// Versions are the kernels that can be emulated.
var Versions = map[string]Features{
	// dynamic_dname() had 64 bytes for the whole of `anon_inode:[luo_session] NAME` (fs/d_path.c).
	"7.0": {GetName: false, LinkMax: 38},
	"7.2": {GetName: true, LinkMax: nameLength - 1},
}

// Handle stands for an open file of which the tasks hold the descriptors: a session, or the device.
type Handle interface {
	// Alive tells whether any task holds the file still.
	Alive() bool
	// Discard forgets the file, once it isn't alive or was never given away.
	Discard()
}

// Kernel is one boot of the machine. The next one's is made by [Kernel.Kexec].
type Kernel struct {
	features Features
	faults   Faults
	// open makes a file for a task; the descriptor is this process's, to be closed once the task has its own.
	open func() (Handle, int, error)

	device    Handle // nil or not alive: nobody has it open
	outgoing  []*Session
	incoming  []*Session
	preserved map[inode]*file // luo_preserved_files
	sessions  map[Handle]*Session
	retrieved map[inode]bool // files that were made by RETRIEVE_FD
	sweepAt   int            // so many sessions
}

// New is the kernel of the first boot.
func New(features Features, faults Faults, open func() (Handle, int, error)) *Kernel {
	return &Kernel{
		features: features, faults: faults, open: open,
		preserved: map[inode]*file{}, sessions: map[Handle]*Session{}, retrieved: map[inode]bool{},
	}
}

// Present tells whether there is a device.
func (k *Kernel) Present() bool { return !k.faults.NoDevice }

// OpenDevice is luo_open() (kernel/liveupdate/luo_core.c).
func (k *Kernel) OpenDevice() (int, unix.Errno) {
	if k.faults.busy() {
		return -1, unix.EBUSY
	}
	if k.device != nil {
		if k.device.Alive() {
			return -1, unix.EBUSY
		}
		k.device.Discard()
		k.device = nil
	}
	if k.faults.EIO {
		return -1, unix.EIO
	}
	h, fd, err := k.open()
	if err != nil {
		return -1, unix.ENFILE
	}
	k.device = h
	return fd, 0
}

// IsDevice tells whether the file is the device's, opened.
func (k *Kernel) IsDevice(h Handle) bool { return h == k.device }

// Session is the session that the file stands for, or nil.
func (k *Kernel) Session(h Handle) *Session { return k.sessions[h] }

// FileLink is what the link of a descriptor in /proc reads, if the file was made by RETRIEVE_FD: it has an empty name,
// and none of the prefix that memfd_create() gives (memfd_luo_retrieve() in mm/memfd_luo.c).
func (k *Kernel) FileLink(dev, ino uint64) (link string, ok bool) {
	return "/ (deleted)", k.retrieved[inode{dev, ino}]
}

// Tidy gives back what was kept for files that nobody holds any more. Whatever depends on that looks by itself.
func (k *Kernel) Tidy() {
	if k.device != nil && !k.device.Alive() {
		k.device.Discard()
		k.device = nil
	}
	k.sweep()
}

// sweepSometimes keeps the number of sessions that nobody holds any more below that of the others.
func (k *Kernel) sweepSometimes() {
	if len(k.sessions) >= k.sweepAt {
		k.sweep()
		k.sweepAt = 2*len(k.sessions) + 16
	}
}

// sweep ends the sessions whose last descriptor was closed. Whatever depends on it looks by itself.
func (k *Kernel) sweep() {
	for _, list := range [][]*Session{k.outgoing, k.incoming} {
		for _, s := range slices.Clone(list) {
			k.releaseIfClosed(s)
		}
	}
}

// Freeze is the part of reboot(KEXEC) that can fail: luo_session_serialize() (kernel/liveupdate/luo_session.c). It
// fixes which sessions go over, and the positions of their files.
func (k *Kernel) Freeze() unix.Errno {
	k.sweep()
	if k.faults.freeze() {
		return unix.EIO
	}
	for _, s := range k.outgoing {
		for _, f := range s.files {
			f.freeze()
		}
	}
	return 0
}

// Kexec is the next kernel, with the sessions that were outgoing in this one. No task may be left. With handover
// false, as after kexec_load(), nothing goes over.
func (k *Kernel) Kexec(faults Faults, handover bool) *Kernel {
	next := New(k.features, faults, k.open)
	for _, s := range k.outgoing {
		s.handle.Discard()
		if !handover || faults.Lost || faults.NoDevice {
			s.close()
			continue
		}
		arrived := &Session{kernel: next, name: s.name, files: s.files}
		next.incoming = append(next.incoming, arrived)
	}
	for _, s := range k.incoming {
		if s.handle != nil {
			s.handle.Discard()
		}
		s.close()
	}
	if k.device != nil {
		k.device.Discard()
	}
	return next
}

// Close ends the machine.
func (k *Kernel) Close() { k.Kexec(Faults{}, false) }
