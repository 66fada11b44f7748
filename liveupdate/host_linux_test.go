// SPDX-License-Identifier: MIT

package liveupdate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/luosim"
)

// TestMain runs the tests on the emulated kernel, twice, with an update in between; or on a real one, if $HOLDFAST_VM
// says that it is there.
func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST_VM") == "" {
		luosim.Enter(luosim.Machine{})
	}
	fdtest.Main(m)
}

// The sizes and offsets of the structs in include/uapi/linux/liveupdate.h.
func TestABI(t *testing.T) {
	for what, n := range map[string][2]uintptr{
		"deviceArg":       {unsafe.Sizeof(deviceArg{}), 72},
		"deviceArg.name":  {unsafe.Offsetof(deviceArg{}.name), 8},
		"fileArg":         {unsafe.Sizeof(fileArg{}), 16},
		"fileArg.token":   {unsafe.Offsetof(fileArg{}.token), 8},
		"finishArg":       {unsafe.Sizeof(finishArg{}), 8},
		"nameArg":         {unsafe.Sizeof(nameArg{}), 72},
		"nameArg.name":    {unsafe.Offsetof(nameArg{}.name), 8},
		"CREATE_SESSION":  {ioctlCreateSession, 0xBA << 8},
		"RETRIEVE_FINISH": {ioctlFinish, 0xBA<<8 | 0x42},
	} {
		if n[0] != n[1] {
			t.Errorf("%s: got %d, the kernel has %d", what, n[0], n[1])
		}
	}
	// 64 bytes hold the prefix, 38 bytes of name, and the NUL.
	if MaxLinkName != 38 {
		t.Errorf("MaxLinkName is %d", MaxLinkName)
	}
}

func TestNoDevice(t *testing.T) {
	d := Device{Path: filepath.Join(t.TempDir(), "liveupdate")}
	s, err := d.Create(t.Context(), "ram")
	if err == nil {
		s.Close()
		t.Fatal("made a session without a device")
	}
	for what, err := range map[string]error{"Create": err, "Available": d.Available()} {
		if !errors.Is(err, ErrNoDevice) && !errors.Is(err, ErrNotEnabled) {
			t.Errorf("%s: got %v, want ErrNoDevice or, on a kernel with LUO turned off, ErrNotEnabled", what, err)
		}
		if !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s: %v is not an ENOENT", what, err)
		}
	}
}

func TestNotTheDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []Device{{path}, {os.DevNull}} {
		if _, err := d.Retrieve(t.Context(), "ram"); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), d.Path) {
			t.Errorf("Retrieve from %s: got %v, want ErrNotSupported", d.Path, err)
		}
	}
	if err := (Device{path}).Available(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Available: got %v, want ErrNoDevice", err)
	}
}

func TestContextOverBeforeTheStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Device{}.Create(ctx, "ram")
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want context.Canceled alone", err)
	}
}

func TestNotASession(t *testing.T) {
	descriptor := func(raw int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(raw) })
		return raw
	}
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	memfd := descriptor(unix.MemfdCreate("[luo_session] x", unix.MFD_CLOEXEC))
	eventfd := descriptor(unix.Eventfd(0, unix.EFD_CLOEXEC))
	for what, raw := range map[string]int{
		"memfd":     memfd,
		"eventfd":   eventfd,
		"epoll":     descriptor(unix.EpollCreate1(unix.EPOLL_CLOEXEC)),
		"pipe":      descriptor(pipe[0], nil),
		"pipe's w":  descriptor(pipe[1], nil),
		"socket":    descriptor(pair[0], nil),
		"socket's":  descriptor(pair[1], nil),
		"directory": descriptor(unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)),
		"O_PATH":    descriptor(unix.Open(fmt.Sprintf("/proc/self/fd/%d", eventfd), unix.O_PATH|unix.O_CLOEXEC, 0)),
		"a file called as a session is": descriptor(unix.Open(filepath.Join(t.TempDir(), "anon_inode:[luo_session] x"),
			unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)),
	} {
		if s, err := FromFD(raw); !errors.Is(err, ErrNotASession) {
			t.Errorf("%s: got %v, %v; want ErrNotASession", what, s, err)
		}
		if _, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0); err != nil {
			t.Errorf("%s: refused, but closed: %v", what, err)
		}
	}
	if _, err := FromFD(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("descriptor -1: got %v, want EBADF", err)
	}

	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromFile(f); !errors.Is(err, ErrNotASession) {
		t.Errorf("FromFile: got %v, want ErrNotASession", err)
	}
	f.Close()
	if _, err := FromFile(f); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("FromFile of a closed file: got %v, want ErrClosed", err)
	}
}

func TestWhyThereIsNoDevice(t *testing.T) {
	if !hasDriver(strings.NewReader("122 rfkill\n121 liveupdate\n144 nvram\n")) {
		t.Error("driver not found in /proc/misc")
	}
	if hasDriver(strings.NewReader("122 rfkill\n183 liveupdate_other\n")) {
		t.Error("driver found in a /proc/misc without it")
	}
	if !hasSymbols(strings.NewReader("0000000000000000 T kho_is_enabled\n0000000000000000 T luo_session_create\n")) {
		t.Error("code not found in /proc/kallsyms")
	}
	if hasSymbols(strings.NewReader("0000000000000000 T kho_is_enabled\n0000000000000000 t fluo_session_x\n")) {
		t.Error("code found in a /proc/kallsyms without it")
	}
	for cmdline, want := range map[string]bool{
		"":                                     false,
		"root=/dev/vda kho=on liveupdate=on\n": true,
		"kho=1 liveupdate=yes":                 true,
		"kho=on":                               false,
		"liveupdate=on":                        false,
		"kho=on liveupdate=on liveupdate=off":  false,
		"kho=on liveupdate":                    false,
		"kho=enable liveupdate=E":              true,
		"kho=on liveupdate=on kho=disable":     false,
		"kho=on liveupdate=on liveupdate=D":    false,
		"kho=on -- liveupdate=on":              false,
		"kho=on liveupdate=on -- kho=off":      true,
		`"kho=on" liveupdate="on"`:             true,
	} {
		if got := enabled(cmdline); got != want {
			t.Errorf("enabled(%q) = %v", cmdline, got)
		}
	}
}

// Anybody can be seen holding a device; /dev/null stands for one here.
func TestHoldersOfADevice(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, h := range holders(os.DevNull) {
		if h.PID == os.Getpid() {
			if h.Comm == "" {
				t.Error("the holder has no name")
			}
			return
		}
	}
	t.Error("this process is not among the holders")
}
