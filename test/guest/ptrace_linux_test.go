// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trace follows the system calls of all of a process's threads.
type trace struct {
	pid int
	// at is called at each stop, from the tracer's thread, while the thread in question stands still.
	at func(stop *syscallStop) verdict

	finish atomic.Bool
	ended  chan struct{} // closed when err says how it went
	err    error
}

// verdict is what becomes of a thread that stands still.
type verdict int

const (
	goOn  verdict = iota
	stay          // until the trace ends
	letGo         // all of the process: the trace ends
)

// syscallStop is struct ptrace_syscall_info (include/uapi/linux/ptrace.h, Linux 7.3), with whom it is about. The
// union in it is read as that of an entry.
type syscallStop struct {
	op   uint8
	_    [7]byte
	ip   uint64 // after the instruction that makes the call
	_    uint64
	nr   uint64
	args [6]uint64
	_    uint64
	tid  int
}

func (s *syscallStop) entry() bool { return s.op == unix.PTRACE_SYSCALL_INFO_ENTRY }

// The main thread stays with the main goroutine, which runs no test: a tracer's thread has to end, for what is traced
// to be let go, and Go never ends the main thread.
func init() { runtime.LockOSThread() }

// startTrace returns once all threads of the process are traced.
func startTrace(t *testing.T, pid int, at func(*syscallStop) verdict) *trace {
	t.Helper()
	tr := &trace{pid: pid, at: at, ended: make(chan struct{})}
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
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.end(t) })
	return tr
}

// end lets the process go, unless that has been done.
func (tr *trace) end(t *testing.T) {
	t.Helper()
	select {
	case <-tr.ended:
		return
	default:
	}
	tr.finish.Store(true)
	// A signal that the Go runtime takes for nothing, and that wakes the tracer.
	if err := unix.Kill(tr.pid, unix.SIGURG); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
	tr.wait(t)
}

// wait returns when the tracing is over.
func (tr *trace) wait(t *testing.T) {
	t.Helper()
	<-tr.ended
	if tr.err != nil {
		t.Fatal(tr.err)
	}
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

// run serves the stops. It doesn't reap the process: see [daemon.wait].
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
			stop := &syscallStop{tid: tid}
			err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Offsetof(stop.tid), uintptr(unsafe.Pointer(stop)))
			runtime.KeepAlive(stop)
			if err != nil {
				break
			}
			switch tr.at(stop) {
			case stay:
				continue
			case letGo:
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

// text reads a string of a traced thread's, as an argument of a system call.
func text(tid int, address uint64) string {
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
