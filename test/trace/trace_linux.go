// SPDX-License-Identifier: MIT

// Package trace follows the system calls of a process from outside, for tests that end it or stop it at one of them.
package trace

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Trace follows the system calls of all of a process's threads.
type Trace struct {
	PID int
	at  func(*Stop) Verdict

	finish atomic.Bool
	ended  chan struct{} // closed when err says how it went
	err    error
}

// Verdict is what becomes of a thread that stands still.
type Verdict int

const (
	GoOn  Verdict = iota
	Stay          // until the trace ends
	LetGo         // all of the process: the trace ends
)

// Stop is struct ptrace_syscall_info (include/uapi/linux/ptrace.h, Linux 7.3), with whom it is about. The union in it is
// read as that of an entry.
type Stop struct {
	op   uint8
	_    [7]byte
	IP   uint64 // after the instruction that makes the call
	_    uint64
	Nr   uint64
	Args [6]uint64
	_    uint64
	TID  int
}

// Entry tells whether the thread is about to make a system call, and hasn't just made it.
func (s *Stop) Entry() bool { return s.op == unix.PTRACE_SYSCALL_INFO_ENTRY }

// The main thread stays with the main goroutine, which runs no test: a tracer's thread has to end, for what is traced
// to be let go, and Go never ends the main thread.
func init() { runtime.LockOSThread() }

// Start returns once all threads of the process are traced. at is called at each stop, from the tracer's thread, while the
// thread in question stands still.
func Start(pid int, at func(*Stop) Verdict) (*Trace, error) {
	tr := &Trace{PID: pid, at: at, ended: make(chan struct{})}
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

// End lets the process go, unless that has been done, and tells how the tracing went.
func (tr *Trace) End() error {
	select {
	case <-tr.ended:
		return tr.err
	default:
	}
	tr.finish.Store(true)
	// A signal that the Go runtime takes for nothing, and that wakes the tracer.
	if err := unix.Kill(tr.PID, unix.SIGURG); err != nil && err != unix.ESRCH {
		return err
	}
	return tr.Wait()
}

// Wait returns when the tracing is over.
func (tr *Trace) Wait() error {
	<-tr.ended
	return tr.err
}

func (tr *Trace) attach() error {
	seized := map[int]bool{}
	for {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tr.PID))
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

// run serves the stops. It doesn't reap the process, which is its parent's part.
func (tr *Trace) run() error {
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
			stop := &Stop{TID: tid}
			err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Offsetof(stop.TID), uintptr(unsafe.Pointer(stop)))
			runtime.KeepAlive(stop)
			if err != nil {
				break
			}
			switch tr.at(stop) {
			case Stay:
				continue
			case LetGo:
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

// Text reads a string of a traced thread's, as an argument of a system call.
func Text(tid int, address uint64) string {
	b := make([]byte, 32)
	if n, err := unix.PtracePeekData(tid, uintptr(address), b); err != nil || n < len(b) {
		return ""
	}
	return unix.ByteSliceToString(b)
}

func ptrace(request, tid int, address, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), address, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
