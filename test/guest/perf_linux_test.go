// SPDX-License-Identifier: MIT

package guest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// callWatch notes the time before and after each system call that a process makes at one place, by breakpoints of the
// processor. ptrace would stop the process, for far longer than its calls take.
type callWatch struct {
	before, after uint64   // addresses
	rings         [][]byte // struct perf_event_mmap_page and the records
}

// watchedCall is a system call, with times since some start.
type watchedCall struct {
	nr, arg1   uint64
	start, end time.Duration
}

// Bits of PERF_REG_X86_* (arch/x86/include/uapi/asm/perf_regs.h, Linux 7.3), in the order in which records have them.
const regAX, regSI, regIP = 1 << 0, 1 << 4, 1 << 8

// watchCalls watches the calls that return to an address.
func watchCalls(t *testing.T, pid int, after uint64) *callWatch {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Fatal("the registers and the length of a system call's instruction are those of x86")
	}
	const syscallInstruction = 2 // bytes
	w := &callWatch{before: after - syscallInstruction, after: after}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for cpu := range runtime.NumCPU() {
		first := -1
		for _, task := range tasks {
			tid, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				t.Fatal(err)
			}
			for _, address := range []uint64{w.before, w.after} {
				event, err := unix.PerfEventOpen(&unix.PerfEventAttr{
					Type:             unix.PERF_TYPE_BREAKPOINT,
					Size:             uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
					Sample:           1, // each time
					Sample_type:      unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_TIME | unix.PERF_SAMPLE_REGS_USER,
					Sample_regs_user: regAX | regSI | regIP,
					Bits:             unix.PerfBitInherit | unix.PerfBitUseClockID, // by threads that these make
					// The default, the scheduler's clock, stands still within a tick where the machine's TSC isn't steady
					// (sched_clock_local, kernel/sched/clock.c, Linux 7.3), as with an emulated one on a busy host.
					Clockid: unix.CLOCK_MONOTONIC,
					Bp_type: 4, // HW_BREAKPOINT_X, include/uapi/linux/hw_breakpoint.h
					Ext1:    address,
					Ext2:    uint64(unsafe.Sizeof(uintptr(0))),
				}, tid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
				if err != nil {
					t.Fatalf("a breakpoint at %#x of thread %d: %v", address, tid, err)
				}
				t.Cleanup(func() { unix.Close(event) })
				if first >= 0 {
					if err := unix.IoctlSetInt(event, unix.PERF_EVENT_IOC_SET_OUTPUT, first); err != nil {
						t.Fatal(err)
					}
					continue
				}
				first = event
				ring, err := unix.Mmap(event, 0, 65*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Munmap(ring) })
				w.rings = append(w.rings, ring)
			}
		}
	}
	return w
}

// read returns the calls by thread, in the order in which they were made.
func (w *callWatch) read(t *testing.T) map[uint32][]watchedCall {
	t.Helper()
	type hit struct {
		tid        uint32
		at         time.Duration
		ax, si, ip uint64
	}
	var hits []hit
	for _, ring := range w.rings {
		page := (*unix.PerfEventMmapPage)(unsafe.Pointer(&ring[0]))
		if page.Data_head > page.Data_size {
			t.Fatal("there were more calls than there is room for")
		}
		u64 := binary.NativeEndian.Uint64
		for records := ring[page.Data_offset : page.Data_offset+page.Data_head]; len(records) > 0; {
			// struct perf_event_header (type, misc, size); pid, tid; time; abi; registers
			size := binary.NativeEndian.Uint16(records[6:])
			r := records[:size]
			records = records[size:]
			switch kind := binary.NativeEndian.Uint32(r); kind {
			case unix.PERF_RECORD_SAMPLE:
				hits = append(hits, hit{binary.NativeEndian.Uint32(r[12:]), time.Duration(u64(r[16:])), u64(r[32:]), u64(r[40:]), u64(r[48:])})
			case unix.PERF_RECORD_LOST:
				t.Fatal("records were lost")
			}
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int { return cmp.Compare(a.at, b.at) })
	calls := map[uint32][]watchedCall{}
	for _, h := range hits {
		thread := calls[h.tid]
		switch {
		case h.ip == w.before:
			calls[h.tid] = append(thread, watchedCall{nr: h.ax, arg1: h.si, start: h.at})
		case len(thread) > 0:
			thread[len(thread)-1].end = h.at
		}
	}
	return calls
}
