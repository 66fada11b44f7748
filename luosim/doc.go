// SPDX-License-Identifier: MIT

// Package luosim runs programs, and tests of Go programs, under an emulated Live Update Orchestrator (LUO): with
// /dev/liveupdate, sessions, and a kexec that hands them over, without a special kernel, a virtual machine or
// privileges. The program under it makes the real system calls; they are caught (seccomp user notification) and
// answered as Linux 7.2 does. It needs Linux 5.19 or newer.
//
// A test of its own that goes over updates is a function for each boot:
//
//	func TestMemoryComesBack(t *testing.T) {
//		luosim.Run(t, luosim.Machine{},
//			func(t *testing.T) { /* first boot: make a session, preserve a memfd, keep both open */ },
//			func(t *testing.T) { /* after the update: retrieve, compare */ })
//	}
//
// [Machine.Run] does the same with any other program. From a shell, `luosim run -- COMMAND` does, and
// `go test -exec 'luosim run --' ./...` gives existing tests a device.
//
// What is emulated, and what is not, is in docs/luosim.md.
package luosim
