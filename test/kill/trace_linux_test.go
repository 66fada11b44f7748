// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The main thread stays with the main goroutine: a tracer's thread has to end, for what is traced to be let go, and Go
// never ends the main thread.
func init() { runtime.LockOSThread() }

// trace counts the system calls of all of a process's threads, and calls kill before the n-th.
type trace struct {
	pid, n   int
	all      bool // calls too that nobody outside the process could tell
	kill     func()
	counting atomic.Bool
	calls    atomic.Int64

	finish atomic.Bool
	killed chan struct{} // closed once kill was called
	ended  chan struct{} // closed when the tracing is over, and err says how it went
	err    error
}

// startTrace returns once all threads of the process are traced. They are counted from when counting is set.
func startTrace(pid, n int, all bool, kill func()) (*trace, error) {
	tr := &trace{pid: pid, n: n, all: all, kill: kill, killed: make(chan struct{}), ended: make(chan struct{})}
	attached := make(chan error)
	go func() {
		// The thread ends with this goroutine, and with it the tracing.
		runtime.LockOSThread()
		err := tr.attach()
		attached <- err
		if err == nil {
			tr.err = tr.run()
			close(tr.ended)
		}
	}()
	return tr, <-attached
}

// end lets the process go, unless that has been done, and tells how the tracing went.
func (tr *trace) end() error {
	select {
	case <-tr.ended:
		return tr.err
	default:
	}
	tr.finish.Store(true)
	// A signal that the Go runtime takes for nothing, and that wakes the tracer.
	if err := unix.Kill(tr.pid, unix.SIGURG); err != nil && err != unix.ESRCH {
		return err
	}
	<-tr.ended
	return tr.err
}

func (tr *trace) attach() error {
	seized := map[int]bool{}
	for {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tr.pid))
		if err != nil {
			return err
		}
		before := len(seized)
		for _, entry := range entries {
			tid, err := strconv.Atoi(entry.Name())
			if err != nil {
				return err
			}
			if seized[tid] {
				continue
			}
			// Threads that these make are traced from their start on.
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACESYSGOOD)
			if err == unix.EPERM && len(seized) > 0 {
				seized[tid] = true // that is such a thread
				continue
			}
			if err == nil {
				err = ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
			}
			if err != nil && err != unix.ESRCH {
				return fmt.Errorf("tracing thread %d: %w", tid, err)
			}
			seized[tid] = true
		}
		if len(seized) == before {
			return nil
		}
	}
}

// run serves the stops, until the process was killed or is to be let go. It doesn't reap the process: see [pid1.reap].
func (tr *trace) run() error {
	for {
		info := struct {
			signo, errno, code, _ int32
			pid, uid              int32
			status                int32
			_                     [100]byte
		}{}
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WSTOPPED|unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD && tr.finish.Load():
			return nil // there's nothing left to trace
		case err != nil:
			return fmt.Errorf("waiting for a traced thread: %w", err)
		}
		tid, status, signal := int(info.pid), info.status, 0
		switch {
		case status == int32(unix.SIGTRAP)|0x80:
			if tr.counting.Load() && tr.counts(tid) && tr.calls.Add(1) == int64(tr.n) {
				unix.Kill(tr.pid, unix.SIGKILL)
				tr.kill()
				close(tr.killed)
				return nil
			}
		case status>>8 == 0:
			signal = int(status)
		}
		if tr.finish.Load() {
			return nil
		}
		if err := ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(signal)); err != nil && err != unix.ESRCH {
			return fmt.Errorf("resuming traced thread %d: %w", tid, err)
		}
	}
}

// counts tells whether the thread is about to make a system call that counts.
func (tr *trace) counts(tid int) bool {
	// struct ptrace_syscall_info (include/uapi/linux/ptrace.h, Linux 7.3).
	var info struct {
		op uint8
		_  [7]byte
		_  [2]uint64
		nr uint64
		_  [7]uint64
	}
	if err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info))); err != nil {
		return false
	}
	runtime.KeepAlive(&info)
	return info.op == unix.PTRACE_SYSCALL_INFO_ENTRY && (tr.all || !private[info.nr])
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

func ptrace(request, tid int, address, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), address, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
