// SPDX-License-Identifier: MIT

//go:build linux

package fd_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func pipe(t *testing.T) (r, w *fd.FD) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = fd.New(p[0]), fd.New(p[1])
	t.Cleanup(func() { fd.CloseAll([]*fd.FD{r, w}) })
	return r, w
}

func isOpen(raw int) bool {
	_, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
	return err == nil
}

func TestClose(t *testing.T) {
	r, _ := pipe(t)
	raw := r.Raw()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if isOpen(raw) {
		t.Errorf("descriptor %d is open after Close", raw)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if r.Raw() != -1 || r.Disown() != -1 || r.File("x") != nil {
		t.Error("a closed FD still gives a descriptor away")
	}
	if err := r.Use(func(int) error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Use after Close: %v, want os.ErrClosed", err)
	}
	if _, err := r.Dup(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Dup after Close: %v, want os.ErrClosed", err)
	}
}

func TestCloseReportsTheKernelsError(t *testing.T) {
	r, _ := pipe(t)
	raw := r.Disown()
	unix.Close(raw)
	if err := fd.New(raw).Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Close of a number that isn't open: %v, want EBADF", err)
	}
}

func TestCloseWaitsForUse(t *testing.T) {
	r, _ := pipe(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := r.Use(func(raw int) error {
			close(inside)
			<-goOn
			if !isOpen(raw) {
				return errors.New("closed while in use")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	wg.Go(func() { r.Close() })
	close(goOn)
	wg.Wait()
}

func TestDup(t *testing.T) {
	r, w := pipe(t)
	dup, err := w.Dup()
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(dup.Raw()), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 || dup.Raw() < 3 {
		t.Errorf("Dup: descriptor %d, flags %#x, %v", dup.Raw(), flags, err)
	}
	w.Close()
	if _, err := unix.Write(dup.Raw(), []byte("x")); err != nil {
		t.Errorf("the copy does not work after the original's Close: %v", err)
	}
	dup.Close()
	b, err := io.ReadAll(r.File("pipe"))
	if string(b) != "x" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestNewRefusesNegative(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New(-1) did not panic")
		}
	}()
	fd.New(-1)
}

// TestLeak is run in a process of its own, which must fail for the leak that its name says.
func TestLeak(t *testing.T) {
	switch os.Getenv("FD_TEST_LEAK") {
	case "fd":
		fd.New(leakPipe(t))
		return
	case "raw":
		leakPipe(t)
		return
	case "none":
		return
	}
	for _, tt := range []struct{ leak, says string }{
		{"fd", "fd_test.TestLeak"},
		{"raw", "was not open before the tests"},
		{"none", ""},
	} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeak$")
		cmd.Env = append(os.Environ(), "FD_TEST_LEAK="+tt.leak)
		out, err := cmd.CombinedOutput()
		if failed := err != nil; failed != (tt.leak != "none") || !strings.Contains(string(out), tt.says) {
			t.Errorf("leak %q: %v, output:\n%s", tt.leak, err, out)
		}
	}
}

func leakPipe(t *testing.T) int {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	return p[0]
}
