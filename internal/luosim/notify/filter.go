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

// program is a classic BPF program that returns USER_NOTIF for what the rules name, and ALLOW for the rest.
func program(rules []Rule) []unix.SockFilter {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	verdict := func(v uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
	}
	// equal goes on if the accumulator is the value, and leaps over that many instructions if it isn't.
	equal := func(value uint32, leap int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(leap), K: value}
	}
	p := []unix.SockFilter{
		load(offArch),
		equal(auditArch, 1),
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 1},
		verdict(unix.SECCOMP_RET_ALLOW),
		load(offNumber),
	}
	for _, r := range rules {
		// number, (load, and, test) for each condition, notify
		body := 3*len(r.When) + 1
		if len(r.When) > 0 {
			body++ // reload the number for the next rule
		}
		p = append(p, equal(uint32(r.Number), body))
		for i, c := range r.When {
			left := 3*(len(r.When)-1-i) + 1 // what is left of the conditions, and notify
			test := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: c.Value}
			if c.Not {
				test.Jt = uint8(left)
			} else {
				test.Jf = uint8(left)
			}
			p = append(p,
				load(uint32(offArgs+8*c.Argument)),
				unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.Mask},
				test)
		}
		p = append(p, verdict(unix.SECCOMP_RET_USER_NOTIF))
		if len(r.When) > 0 {
			p = append(p, load(offNumber))
		}
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
