// SPDX-License-Identifier: MIT

package main

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/test/trace"
)

// killer counts the system calls of all of a process's threads, and kills it before the n-th.
type killer struct {
	*trace.Trace
	counting atomic.Bool
	calls    atomic.Int64
	killed   chan struct{} // closed once it has
}

// startKiller returns once all threads of the process are traced. They are counted from when counting is set; with all, calls too
// that nobody outside the process could tell. also is called once it was killed.
func startKiller(pid, n int, all bool, also func()) (*killer, error) {
	k := &killer{killed: make(chan struct{})}
	var err error
	k.Trace, err = trace.Start(pid, func(stop *trace.Stop) trace.Verdict {
		if !k.counting.Load() || !stop.Entry() || !all && private[stop.Nr] || k.calls.Add(1) != int64(n) {
			return trace.GoOn
		}
		unix.Kill(pid, unix.SIGKILL)
		also()
		close(k.killed)
		return trace.LetGo
	})
	return k, err
}

// private are the calls by which Go's runtime looks after its own memory, threads, signals and time. Nobody outside the
// process can tell whether it died before or after one, so the call that counts next stands for them.
var private = map[uint64]bool{
	unix.SYS_FUTEX: true, unix.SYS_NANOSLEEP: true, unix.SYS_CLOCK_NANOSLEEP: true, unix.SYS_SCHED_YIELD: true,
	unix.SYS_MMAP: true, unix.SYS_MUNMAP: true, unix.SYS_MADVISE: true, unix.SYS_MPROTECT: true, unix.SYS_BRK: true,
	unix.SYS_RT_SIGPROCMASK: true, unix.SYS_RT_SIGACTION: true, unix.SYS_RT_SIGRETURN: true, unix.SYS_SIGALTSTACK: true,
	unix.SYS_GETTID: true, unix.SYS_GETPID: true, unix.SYS_TGKILL: true, unix.SYS_CLONE: true, unix.SYS_CLONE3: true,
	unix.SYS_SET_ROBUST_LIST: true, unix.SYS_RSEQ: true, unix.SYS_GETRANDOM: true, unix.SYS_CLOCK_GETTIME: true,
	unix.SYS_SCHED_GETAFFINITY: true, unix.SYS_PRCTL: true, unix.SYS_PRLIMIT64: true,
	unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_CTL: true, unix.SYS_EPOLL_CREATE1: true, unix.SYS_EVENTFD2: true,
	unix.SYS_TIMER_CREATE: true, unix.SYS_TIMER_SETTIME: true, unix.SYS_TIMER_DELETE: true, unix.SYS_SETITIMER: true,
	unix.SYS_RESTART_SYSCALL: true,
}
