// SPDX-License-Identifier: MIT

//go:build linux

package notify

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rule names a system call to be caught, where all of its conditions hold. A condition looks at the lower half of an
// argument.
type Rule struct {
	Compat bool // in the way of 32-bit programs
	Number uintptr
	When   []Condition
}

// Condition holds if the argument, masked, is the value, or, with Not, if it isn't.
type Condition struct {
	Argument int
	Mask     uint32
	Value    uint32
	Not      bool
}

// Of struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func verdict(v uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
}

// jump tests the accumulator, and leaps over so many instructions.
func jump(test uint16, value uint32, ifTrue, ifFalse int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: value, Jt: uint8(ifTrue), Jf: uint8(ifFalse)}
}

// program is a classic BPF program that returns USER_NOTIF for what the rules name, and ALLOW for the rest.
func program(rules []Rule) []unix.SockFilter {
	compat, native := section(rules, true), section(rules, false)
	if x32 > 0 {
		native = append([]unix.SockFilter{
			load(offNumber),
			jump(unix.BPF_JGE, x32, 0, 1),
			verdict(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		}, native...)
	}
	p := []unix.SockFilter{
		load(offArch),
		jump(unix.BPF_JEQ, auditArch, 0, 1),
		{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(compat) + 2)}, // to the native section
		jump(unix.BPF_JEQ, compatArch, 1, 0),
		verdict(unix.SECCOMP_RET_ALLOW),
	}
	return append(append(p, compat...), native...)
}

// section is for one way of making system calls.
func section(rules []Rule, compat bool) []unix.SockFilter {
	p := []unix.SockFilter{load(offNumber)}
	for _, r := range rules {
		if r.Compat != compat {
			continue
		}
		// The conditions, the verdict, and the number again for the next rule.
		p = append(p, jump(unix.BPF_JEQ, uint32(r.Number), 0, 3*len(r.When)+2))
		for i, c := range r.When {
			rest := 3*(len(r.When)-1-i) + 1
			test := jump(unix.BPF_JEQ, c.Value, 0, rest)
			if c.Not {
				test = jump(unix.BPF_JEQ, c.Value, rest, 0)
			}
			p = append(p, load(uint32(offArgs+8*c.Argument)), unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.Mask}, test)
		}
		p = append(p, verdict(unix.SECCOMP_RET_USER_NOTIF), load(offNumber))
	}
	return append(p, verdict(unix.SECCOMP_RET_ALLOW))
}

// Install puts the filter on the calling thread, for ever, and returns the listener for it. The thread gets no new
// privileges from then on, as the kernel wants of those that have none.
func Install(rules []Rule) (int, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	p := program(rules)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	const (
		setModeFilter = 1
		flags         = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	)
	fd, _, err := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, uintptr(unsafe.Pointer(&prog)))
	if err != 0 {
		return -1, err
	}
	return int(fd), nil
}
