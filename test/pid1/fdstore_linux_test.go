// SPDX-License-Identifier: MIT

package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// The tests are the fd store as holdfastd's keeper, with a PID 1 that breaks off, is silent or slow in the middle of it.

const inside = "HOLDFAST_TEST_PID1"

// TestMain runs the tests where PID 1's sockets can be anybody's: in a user and mount namespace.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := OwnRun(); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			os.Exit(1)
		}
		os.Setenv("NOTIFY_SOCKET", NotifyPath)
		fdtest.Main(m)
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		if _, ran := errors.AsType[*exec.ExitError](err); !ran {
			fmt.Fprintln(os.Stderr, "FAIL: it takes a user namespace (kernel.unprivileged_userns_clone, user.max_user_namespaces):", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// patience is what the tests' stores have with PID 1; enough is more than anything takes.
const (
	patience = 500 * time.Millisecond
	enough   = 30 * time.Second
)

// machine has a PID 1 and a store there.
type machine struct {
	*PID1
	store *custody.FDStore

	mu     sync.Mutex
	before func(what string) bool
}

func start(t *testing.T) *machine {
	t.Helper()
	m := &machine{store: &custody.FDStore{Patience: patience}}
	m.PID1 = &PID1{Unit: "holdfastd.service", Max: 64, Fail: t.Errorf, Before: func(what string) bool {
		m.mu.Lock()
		before := m.before
		m.mu.Unlock()
		return before == nil || before(what)
	}}
	if err := m.Listen(); err != nil {
		t.Fatal(err)
	}
	m.SetMain(os.Getpid())
	t.Cleanup(func() {
		m.does(nil)
		m.settles(t)
		m.Close()
	})
	return m
}

// does has PID 1 behave so from now on.
func (m *machine) does(before func(what string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = before
}

// settles waits until the store has nothing under way, and nothing left that counts as not kept.
func (m *machine) settles(t *testing.T) {
	t.Helper()
	m.until(t, m.store.Settled, "the store doesn't settle")
}

func (m *machine) until(t *testing.T, is func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(enough); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s; there is %q", what, m.names())
		}
	}
}

func (m *machine) names() (names []string) {
	for _, s := range m.Store() {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

func (m *machine) keep(names ...string) error {
	var items []custody.Item
	for _, n := range names {
		raw, err := unix.MemfdCreate(n, unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		items = append(items, custody.Item{Name: n, FD: fd.New(raw)})
	}
	defer func() {
		for _, i := range items {
			i.FD.Close()
		}
	}()
	return m.store.Keep(context.Background(), items, custody.Room{})
}

func (m *machine) has(t *testing.T, want ...string) {
	t.Helper()
	if got := m.names(); !slices.Equal(got, want) {
		t.Errorf("PID 1 has %q, want %q", got, want)
	}
}

// nth is true but for the nth time of something.
func nth(what string, n int) func(string) bool {
	var mu sync.Mutex
	return func(got string) bool {
		mu.Lock()
		defer mu.Unlock()
		if got == what {
			n--
		}
		return got != what || n != 0
	}
}

// TestPID1HangsUpOnce is what an upgrade of systemd does: nothing is lost by it, at whatever moment.
func TestPID1HangsUpOnce(t *testing.T) {
	m := start(t)
	if err := m.keep("first"); err != nil {
		t.Fatal(err)
	}
	want := []string{"first"}
	for i, n := range []int{1, 2} { // the look before, and the one that makes sure
		m.does(nth("DumpUnitFileDescriptorStore", n))
		name := fmt.Sprintf("again-%d", i)
		if err := m.keep(name, name+"-b"); err != nil {
			t.Errorf("broken off at look %d: %v", n, err)
		}
		want = append(want, name, name+"-b")
		slices.Sort(want)
		m.has(t, want...)
	}
	m.does(nil)
	m.HangUp() // between two requests
	if err := m.keep("last"); err != nil {
		t.Error(err)
	}
	m.has(t, append(want, "last")...)
}

// TestPID1BreaksOffAndStaysAway: what was sent counts as not kept, and goes once PID 1 is there again. What was kept stays.
func TestPID1BreaksOffAndStaysAway(t *testing.T) {
	m := start(t)
	if err := m.keep("first"); err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	m.does(func(what string) bool {
		if what == "BARRIER" {
			away.Store(true)
		}
		return !away.Load() || !strings.HasPrefix(what, "Dump") && what != "GetUnitByPID"
	})
	if err := m.keep("a", "b"); err == nil {
		t.Error("nobody has made sure that it is kept, and there is no error")
	}
	m.has(t, "a", "b", "first") // nobody knows
	m.does(nil)
	m.settles(t)
	m.has(t, "first")
	if err := m.keep("a"); err != nil {
		t.Error(err)
	}
	m.has(t, "a", "first")
}

// TestPID1LosesAMessage: the barrier is answered, and there is an entry less.
func TestPID1LosesAMessage(t *testing.T) {
	m := start(t)
	m.does(nth("FDSTORE", 2))
	if err := m.keep("a", "b", "c"); err == nil || !strings.Contains(err.Error(), `PID 1 did not keep "b"`) {
		t.Errorf("%v", err)
	}
	m.settles(t)
	m.has(t)
}

// TestPID1IsSilent has several wait for a PID 1 that takes messages no longer: none waits for ever, none is told that
// anything is kept, and when PID 1 goes on nothing of it stays.
func TestPID1IsSilent(t *testing.T) {
	m := start(t)
	if err := m.keep("first"); err != nil {
		t.Fatal(err)
	}
	silent, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.does(func(what string) bool {
		if what == "BARRIER" {
			once.Do(func() { close(silent) })
			<-goOn
		}
		return true
	})
	errs := make(chan error, 4)
	go func() { errs <- m.keep("a") }()
	<-silent
	for _, n := range []string{"b", "c"} { // a batch that waits for the first
		go func() { errs <- m.keep(n) }()
	}
	go func() { errs <- m.store.Drop(context.Background(), []string{"first"}) }()
	for range 4 {
		select {
		case err := <-errs:
			if err == nil || !strings.Contains(err.Error(), "PID 1 has not answered within 500ms") {
				t.Errorf("%v", err)
			}
		case <-time.After(enough):
			t.Fatal("somebody still waits")
		}
	}
	m.does(nil)
	close(goOn)
	m.settles(t)
	// It may have been dropped or not; the rest was never acknowledged.
	if got := m.names(); len(got) > 1 || len(got) == 1 && got[0] != "first" {
		t.Errorf("PID 1 has %q", got)
	}
	if err := m.keep("b"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestCloseWaitsForPID1: a holdfastd that is stopped doesn't go before what it was given is there.
func TestCloseWaitsForPID1(t *testing.T) {
	m := start(t)
	m.store.Patience = enough
	c, err := custody.New(liveupdate.Device{}, m.store, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	slow, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.does(func(what string) bool {
		if what == "FDSTORE" {
			once.Do(func() { close(slow) })
			<-goOn
		}
		return true
	})
	kept := make(chan error, 1)
	go func() { kept <- m.keep("a", "b") }()
	<-slow
	if c.Empty() {
		t.Error("there is something under way, and it says that there is nothing")
	}
	closed := make(chan struct{})
	go func() { defer close(closed); c.Close() }()
	select {
	case <-closed:
		t.Error("it did not wait")
	case <-time.After(50 * time.Millisecond): // if it is to go wrong, then at once
	}
	close(goOn)
	select {
	case <-closed:
	case <-time.After(enough):
		t.Fatal("it waits for ever")
	}
	m.has(t, "a", "b")
	if err := <-kept; err != nil {
		t.Error(err)
	}
}
