// SPDX-License-Identifier: MIT

package liveupdate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/luosim"
)

// Tests made in one boot: the outgoing side.

// needReal is for what can't be had from the emulated kernel.
func needReal(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "1" {
		t.Skipf("needs a real LUO kernel (%s); `make test` runs it in a VM", why)
	}
}

// needKernel is for tests that a kernel without LUO, on purpose, can't do.
func needKernel(t *testing.T) {
	t.Helper()
	if luosim.Boot() == 0 {
		needReal(t, "this one is without")
	}
}

// create makes a session that is closed when the test ends.
func create(t *testing.T, name string) *Session {
	t.Helper()
	s, err := Device{}.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// memfd makes a memfd of the given content that is closed when the test ends.
func memfd(t *testing.T, content string) *os.File {
	t.Helper()
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(raw), "memfd")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func wantDirection(t *testing.T, s *Session, want Direction) {
	t.Helper()
	if d, err := s.Direction(); d != want || err != nil {
		t.Errorf("session %q is %v (%v), want %v", s.Name(), d, err, want)
	}
}

func TestKernelIsReady(t *testing.T) {
	needKernel(t)
	if err := (Device{}).Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
	f, err := Device{}.Features(t.Context())
	if want := (Features{GetName: true, NameMax: 63}); err != nil || f != want {
		t.Errorf("Features: got %+v, %v; Linux 7.2 and later have %+v", f, err, want)
	}
}

func TestOutgoingSession(t *testing.T) {
	needKernel(t)
	s := create(t, "outgoing")
	wantDirection(t, s, Outgoing)
	f := memfd(t, "some memory")
	if err := s.Preserve(1, f); err != nil {
		t.Fatal(err)
	}
	wantDirection(t, s, Outgoing)

	if _, err := f.WriteAt([]byte("SOME"), 0); err != nil {
		t.Errorf("a preserved memfd can't be written: %v", err)
	}
	wantError(t, "resizing a preserved memfd", f.Truncate(1<<20), unix.EPERM)

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 20); err != nil {
		t.Errorf("the memfd is still frozen after its session was closed: %v", err)
	}
	// The name is free, and so is the file.
	if err := create(t, "outgoing").Preserve(1, f); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	needKernel(t)
	odd := "\x01 /:\n%s\\\"\xff\xc3é"
	for _, name := range []string{"x", odd, strings.Repeat("n", MaxLinkName), strings.Repeat("m", MaxName)} {
		s := create(t, name)
		if s.Name() != name {
			t.Errorf("created %q, got %q", name, s.Name())
		}
		err := s.Use(func(raw int) error {
			// Both ways that a descriptor leads to its name.
			if got, err := getName(raw); got != name || err != nil {
				t.Errorf("GET_NAME: got %q, %v; want %q", got, err, name)
			}
			if got, err := linkName(raw); got != name || err != nil {
				t.Errorf("link: got %q, %v; want %q", got, err, name)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		_, err = Device{}.Create(t.Context(), name)
		wantError(t, "creating it twice", err, ErrNameTaken)
		wantError(t, "creating it twice", err, syscall.EEXIST)
	}
}

// What is refused without asking the kernel, the kernel would refuse too.
func TestKernelRefusesInvalidNames(t *testing.T) {
	needKernel(t)
	for what, name := range map[string]string{"empty": "", "not terminated": strings.Repeat("x", nameLength)} {
		raw, _, openErr, callErr := deviceCall(DevicePath, name, ioctlCreateSession)
		if openErr != nil || callErr != unix.EINVAL {
			t.Errorf("%s: got %d, %v, %v; want EINVAL", what, raw, openErr, callErr)
		}
		_, err := Device{}.Create(t.Context(), name)
		wantError(t, what, err, ErrNameInvalid)
	}
}

func TestNothingToRetrieve(t *testing.T) {
	needKernel(t)
	create(t, "made in this kernel")
	for _, name := range []string{"made in this kernel", "never made"} {
		_, err := Device{}.Retrieve(t.Context(), name)
		wantError(t, name, err, ErrNoSuchSession)
	}
}

func TestPreserveRefuses(t *testing.T) {
	needKernel(t)
	s, other := create(t, "preserve"), create(t, "preserve, the other")
	f := memfd(t, "x")
	if err := s.Preserve(0, f); err != nil {
		t.Fatal(err)
	}
	wantError(t, "a token twice", s.Preserve(0, memfd(t, "y")), ErrTokenTaken)
	wantError(t, "a file twice", s.Preserve(1, f), ErrAlreadyPreserved)
	wantError(t, "a file in two sessions", other.Preserve(0, f), ErrAlreadyPreserved)

	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	wantError(t, "a file opened again", other.Preserve(0, again), ErrAlreadyPreserved)

	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	wantError(t, "a character device", s.Preserve(2, null), ErrNotPreservable)
	huge, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(huge)
	wantError(t, "a memfd of huge pages", s.PreserveFD(2, huge), ErrNotPreservable)
	err = other.Use(func(raw int) error { return s.PreserveFD(2, raw) })
	wantError(t, "a session", err, ErrNotPreservable)

	wantError(t, "no descriptor", s.PreserveFD(2, -1), unix.EBADF)
	path, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(path)
	wantError(t, "an O_PATH descriptor", s.PreserveFD(2, path), unix.EBADF)
	closed := memfd(t, "z")
	closed.Close()
	wantError(t, "a closed file", s.Preserve(2, closed), os.ErrClosed)

	// After all that, the token is still free.
	if err := s.Preserve(2, memfd(t, "")); err != nil {
		t.Errorf("an empty memfd: %v", err)
	}
}

func TestIncomingOnly(t *testing.T) {
	needKernel(t)
	s := create(t, "wrong side")
	if err := s.Preserve(1, memfd(t, "x")); err != nil {
		t.Fatal(err)
	}
	for _, token := range []uint64{1, 2} {
		_, err := s.Retrieve(token)
		wantError(t, "Retrieve", err, ErrWrongSide)
		wantError(t, "Retrieve", err, unix.EINVAL)
	}
	wantError(t, "Finish", s.Finish(), ErrWrongSide)
}

// hold opens the device as another program might.
func hold(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(DevicePath, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestBusyDeviceNamesItsHolder(t *testing.T) {
	needKernel(t)
	hold(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Device{}.Create(ctx, "busy")
	wantError(t, "Create", err, ErrBusy)
	wantError(t, "Create", err, syscall.EBUSY)
	wantError(t, "Create", err, context.DeadlineExceeded)
	var busy *BusyError
	if !errors.As(err, &busy) {
		t.Fatalf("%v is no *BusyError", err)
	}
	comm, _ := os.ReadFile("/proc/self/comm")
	self := Holder{PID: os.Getpid(), Comm: strings.TrimSpace(string(comm))}
	if len(busy.Holders) != 1 || busy.Holders[0] != self {
		t.Errorf("held by %+v, want %+v alone", busy.Holders, self)
	}
	if deadline, _ := ctx.Deadline(); time.Now().Before(deadline) || busy.Waited <= 0 {
		t.Errorf("gave up after %v, before the deadline", busy.Waited)
	}
	// Looking at the node is not opening it.
	if err := (Device{}).Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
}

func TestBusyDeviceIsWaitedFor(t *testing.T) {
	needKernel(t)
	device := hold(t)
	start := time.Now()
	time.AfterFunc(100*time.Millisecond, func() { device.Close() })
	create(t, "waited")
	if waited := time.Since(start); waited < 100*time.Millisecond {
		t.Errorf("got a session after %v with the device busy", waited)
	}
}

func TestBusyDeviceCancelled(t *testing.T) {
	needKernel(t)
	hold(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := Device{}.Retrieve(ctx, "busy")
	wantError(t, "Retrieve", err, ErrBusy)
	wantError(t, "Retrieve", err, context.Canceled)
}

// Many who want a session at once all get one; meanwhile children are forked, which must not keep the device.
func TestCrowdAtTheDevice(t *testing.T) {
	needKernel(t)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			s, err := Device{}.Create(t.Context(), fmt.Sprintf("crowd %d", i))
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
		if i%8 == 0 {
			wg.Go(func() {
				if err := exec.Command("/proc/self/exe", "-test.run=^$").Run(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	hold(t)
}

func TestDescriptorFromElsewhere(t *testing.T) {
	needKernel(t)
	s := create(t, "from elsewhere")
	dup, err := s.Dup()
	if err != nil {
		t.Fatal(err)
	}
	f := dup.File()
	defer f.Close()
	if raw := dup.Disown(); raw != -1 {
		t.Errorf("given away twice: %d", raw)
	}

	got, err := FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.Name() != s.Name() {
		t.Errorf("got %q, want %q", got.Name(), s.Name())
	}
	wantDirection(t, got, Outgoing)
	err = got.Use(func(raw int) error {
		flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("the duplicate is not close-on-exec")
		}
		path, pathErr := unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw), unix.O_PATH|unix.O_CLOEXEC, 0)
		if pathErr != nil {
			t.Fatal(pathErr)
		}
		defer unix.Close(path)
		_, pathErr = FromFD(path)
		wantError(t, "an O_PATH descriptor of a session", pathErr, ErrNotASession)
		return err
	})
	if err != nil {
		t.Error(err)
	}

	// One descriptor after the other is closed; the name is taken until the last.
	s.Close()
	f.Close()
	_, err = Device{}.Create(t.Context(), "from elsewhere")
	wantError(t, "with one descriptor left", err, ErrNameTaken)
	raw := got.Disown()
	last, err := FromFD(raw)
	if err != nil {
		t.Fatal(err)
	}
	last.Close()
	create(t, "from elsewhere")
}

func TestClosedSession(t *testing.T) {
	needKernel(t)
	s := create(t, "closed")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	_, retrieveErr := s.Retrieve(1)
	_, directionErr := s.Direction()
	_, dupErr := s.Dup()
	for what, err := range map[string]error{
		"Preserve":   s.Preserve(1, memfd(t, "x")),
		"PreserveFD": s.PreserveFD(1, 0),
		"Retrieve":   retrieveErr,
		"Finish":     s.Finish(),
		"Direction":  directionErr,
		"Dup":        dupErr,
		"Use":        s.Use(func(int) error { return nil }),
	} {
		wantError(t, what, err, os.ErrClosed)
	}
	if s.Name() != "closed" || s.Disown() != -1 || s.File() != nil {
		t.Error("a closed session has its name and nothing else")
	}
}

// Calls under way when the session is closed run to their end; those that come later fail.
func TestCloseDuringCalls(t *testing.T) {
	needKernel(t)
	s := create(t, "race")
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for i := range 4 {
		wg.Go(func() {
			f := memfd(t, strings.Repeat("x", 1<<20))
			started <- struct{}{}
			if err := s.Preserve(uint64(i), f); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			if _, err := s.Direction(); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		})
	}
	<-started
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	create(t, "race")
}

// The device is root's: for others the error says so.
func TestPermission(t *testing.T) {
	needReal(t, "another user must be able to run the test")
	if os.Getuid() != 0 {
		_, err := Device{}.Create(t.Context(), "x")
		wantError(t, "Create", err, fs.ErrPermission)
		wantError(t, "Available", Device{}.Available(), fs.ErrPermission)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestPermission$")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// A node that no driver stands behind, as a container may have one.
func TestNodeWithoutDriver(t *testing.T) {
	needReal(t, "it says that it has the device")
	path := filepath.Join(t.TempDir(), "liveupdate")
	// Misc minor 254 is the last of those that are given out by need; nothing here has it.
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 254))); err != nil {
		t.Fatal(err)
	}
	_, err := Device{path}.Create(t.Context(), "x")
	wantError(t, "Create", err, ErrNoDevice)
	if err == nil || !strings.Contains(err.Error(), "/proc/misc") {
		t.Errorf("%v doesn't say that the kernel has the device", err)
	}
}

// For kernels that have live update not built in, or not turned on; the VM is told which of them it is.
func TestKernelWithout(t *testing.T) {
	want, ok := map[string]error{"no-device": ErrNoDevice, "not-enabled": ErrNotEnabled}[os.Getenv("HOLDFAST_VM")]
	if !ok {
		t.Skip("needs a kernel without LUO, or with it turned off; `make test` runs it in a VM")
	}
	_, err := Device{}.Create(t.Context(), "x")
	t.Log(err)
	wantError(t, "Create", err, want)
	wantError(t, "Available", Device{}.Available(), want)
}

func TestRetrieveOrCreate(t *testing.T) {
	needKernel(t)
	s, direction, err := Device{}.RetrieveOrCreate(t.Context(), "either")
	if err != nil || direction != Outgoing {
		t.Fatalf("nothing came from the previous kernel: %v, %v", direction, err)
	}
	defer s.Close()
	wantDirection(t, s, Outgoing)
	_, _, err = Device{}.RetrieveOrCreate(t.Context(), "either")
	wantError(t, "a name that is taken", err, ErrNameTaken)
}
