// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/test/trace"
)

// createSession is LIVEUPDATE_IOCTL_CREATE_SESSION.
const createSession = 0xBA00

// holdDevice opens the device, so that nobody else can.
func holdDevice(t *testing.T) *os.File {
	t.Helper()
	for start := time.Now(); ; {
		device, err := os.OpenFile(liveupdate.DevicePath, os.O_RDWR, 0)
		if err == nil {
			t.Cleanup(func() { device.Close() })
			return device
		}
		if pathError, ok := err.(*os.PathError); !ok || pathError.Err != unix.EBUSY || time.Since(start) > patience {
			t.Fatal(err)
		}
	}
}

// taken waits until the daemon has received all that was sent to it.
func (c *connection) taken(t *testing.T) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	unread := -1
	for start := time.Now(); unread != 0; {
		if time.Since(start) > patience {
			t.Fatalf("the daemon has left %d bytes unread", unread)
		}
		var outqErr error
		if err := raw.Control(func(s uintptr) { unread, outqErr = unix.IoctlGetInt(int(s), unix.SIOCOUTQ) }); err != nil {
			t.Fatal(err)
		}
		if outqErr != nil {
			t.Fatal(outqErr)
		}
	}
}

// A device that somebody else has open is waited for, as long as the caller says.
func TestBusyDevice(t *testing.T) {
	_, c := serve(t)

	briefly := holdDevice(t)
	start := time.Now()
	time.AfterFunc(300*time.Millisecond, func() { briefly.Close() })
	c.acquire(t, here.me.owner, "ram").Close()
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("got a session after %v, and the device was busy for 300 ms", took)
	}

	device := holdDevice(t)
	defer device.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	busy := fmt.Sprintf(`{"error":"io.holdfast.Sessions.DeviceBusy","parameters":{"holder":"process %d (%s)"}}`, os.Getpid(), comm[:len(comm)-1])
	for _, wait := range []time.Duration{0, time.Microsecond, 500 * time.Millisecond} {
		start = time.Now()
		c.sessions(t, "Acquire", fmt.Sprintf(`{"name":"ram","timeoutUSec":%d}`, wait.Microseconds())).is(t, busy)
		if took := time.Since(start); took < wait || took > wait+3*time.Second {
			t.Errorf("DeviceBusy came after %v, and not after %v", took, wait)
		}
	}
	device.Close()
	// Not to wait is not to give up before the first try.
	s, err := c.sessions(t, "Acquire", `{"name":"ram","timeoutUSec":0}`).session(here.me.owner, "ram")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// While somebody opens and closes the device all the time, as units with LUOSession= do when they start, everybody gets
// a session.
func TestContendedDevice(t *testing.T) {
	serve(t)
	const clients, rounds = 8, 25
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		opened := 0
		for {
			select {
			case <-stop:
				stopped <- opened
				return
			default:
			}
			if device, err := unix.Open(liveupdate.DevicePath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(device)
				opened++
			}
		}
	}()
	connections := make([]*connection, clients)
	for i := range connections {
		connections[i] = dial(t)
	}
	start := time.Now()
	var all sync.WaitGroup
	for i, c := range connections {
		all.Go(func() {
			n := fmt.Sprintf("ram%d", i)
			for range rounds {
				if err := c.send(fmt.Sprintf(`{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":%q}}`, n)); err != nil {
					t.Error(err)
					return
				}
				r, err := c.receive()
				if err != nil {
					t.Error(err)
					return
				}
				s, err := r.session(here.me.owner, n)
				if err != nil {
					t.Error(err)
					return
				}
				s.Close()
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	close(stop)
	t.Logf("%d sessions for %d clients in %.1f s, while the device was opened %d times by somebody else", clients*rounds, clients, took.Seconds(), <-stopped)
}

// The daemon has the device open for so small a part of the time that PID 1, which doesn't try again, hardly ever finds
// it busy.
func TestShareOfTheTimeWithTheDeviceOpen(t *testing.T) {
	needsVM(t, "a real device, and breakpoints of the processor")
	d, c := serve(t)

	// Where in the program the device is opened, and so where that call's ioctl and close are made too.
	var at atomic.Uint64
	tr := traced(t, d.pid(), func(stop *trace.Stop) trace.Verdict {
		if stop.Entry() && stop.Nr == unix.SYS_OPENAT && trace.Text(stop.TID, stop.Args[1]) == liveupdate.DevicePath {
			at.Store(stop.IP)
		}
		return trace.GoOn
	})
	c.acquire(t, here.me.owner, "ram").Close()
	ended(t, tr)
	if at.Load() == 0 {
		t.Fatal("the daemon did not open the device")
	}

	const handOuts, each = 100, 100 * time.Millisecond
	for range handOuts {
		c.acquire(t, here.me.owner, "ram").Close() // the emulated processor is slow with what is new to it
	}
	calls := watchCalls(t, d.pid(), at.Load())
	start := time.Now()
	pace := time.NewTicker(each)
	defer pace.Stop()
	for range handOuts {
		<-pace.C
		c.acquire(t, here.me.owner, "ram").Close()
	}
	elapsed := time.Since(start)

	var times []time.Duration
	var all time.Duration
	for _, thread := range calls.read(t) {
		for i, call := range thread {
			if call.nr != unix.SYS_IOCTL || call.arg1 != createSession {
				continue
			}
			if i == 0 || i+1 == len(thread) || thread[i-1].nr != unix.SYS_OPENAT || thread[i+1].nr != unix.SYS_CLOSE {
				t.Fatalf("the daemon does not open, ask and close in one go: %v", thread[max(0, i-1):min(i+2, len(thread))])
			}
			// To have opened it is the last that openat does, after it has found it.
			took := thread[i+1].end - thread[i-1].end
			times = append(times, took)
			all += took
		}
	}
	if len(times) != handOuts {
		t.Fatalf("the device was opened %d times for %d hand-outs", len(times), handOuts)
	}
	// The median, since the host of an emulated machine takes its processors away for milliseconds at a time.
	slices.Sort(times)
	median, percent := times[handOuts/2], 100/elapsed.Seconds()
	share := percent * handOuts * median.Seconds()
	fmt.Printf("at 10 hand-outs a second holdfastd has the device open for %.2f %% of the time by the median, %v each (on average %.2f %%; %v at most)\n",
		share, median.Round(time.Microsecond), percent*all.Seconds(), times[handOuts-1].Round(time.Microsecond))
	if share >= 1 {
		t.Errorf("that is not under 1 %%")
	}
}
