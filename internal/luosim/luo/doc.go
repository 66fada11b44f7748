// SPDX-License-Identifier: MIT

// Package luo is the Live Update Orchestrator of the emulated machine: the checks, and their order, of the kernel's
// kernel/liveupdate/luo_core.c, luo_session.c and luo_file.c and of mm/memfd_luo.c in Linux 7.2.13 (7.3.4 has the
// same ones). It knows system calls' arguments and open files, but not how they were caught.
//
// It isn't safe for concurrent use. Its calls are short, as a kernel's under one big lock.
package luo
