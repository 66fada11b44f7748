// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestStoredNames(t *testing.T) {
	const kernelName = "h1-ok2ohkddat64npei.ram"
	prefix, err := storePrefix(kernelName)
	if err != nil {
		t.Fatal(err)
	}
	for stored, file := range map[string]string{prefix: "", prefix + "/data": "data", manifestName(prefix, 7): ".manifest-7"} {
		if got, ok := fdname.Parse(stored); !ok || got.Session() != prefix || got.KernelName != kernelName || got.File != file {
			t.Errorf("%s: %+v, %v", stored, got, ok)
		}
	}
	for _, other := range []string{
		"", "stored", "varlink", kernelName, "b0123456-" + kernelName, "b0123456G-" + kernelName, "b01234567-systemd",
		"b01234567-" + kernelName + "/", "x01234567-" + kernelName,
	} {
		if got, ok := fdname.Parse(other); ok {
			t.Errorf("%s was taken for %+v", other, got)
		}
	}
	// The longest there can be is an FDNAME that systemd takes.
	longest := manifestName("b01234567-"+strings.Repeat("k", 63), 1<<64-1)
	if file := "b01234567-" + strings.Repeat("k", 63) + "/" + strings.Repeat("f", fileNameMax); len(file) > 255 || len(longest) > 255 {
		t.Errorf("%d and %d bytes", len(file), len(longest))
	}
}

func TestWhatIsInTheStoreIsToldByTheFile(t *testing.T) {
	f, err := sealedFile("a", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other, err := sealedFile("b", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	info, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", f.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	const now, before = "b11111111-h1-ok2ohkddat64npei.ram", "b00000000-h1-ok2ohkddat64npei.ram"
	link := liveupdate.LinkPrefix + "h1-ok2ohkddat64npei.ram"
	for name, c := range map[string]struct {
		item  item
		entry systemd.Entry
		want  bool
	}{
		"file":                 {item{fdname: now + "/a", fd: f}, systemd.Entry{Name: now + "/a"}, true},
		"file of another boot": {item{fdname: now + "/a", fd: f}, systemd.Entry{Name: before + "/a"}, true},
		"another file":         {item{fdname: now + "/a", fd: other}, systemd.Entry{Name: now + "/a"}, false},
		"another name":         {item{fdname: now + "/b", fd: f}, systemd.Entry{Name: now + "/a"}, false},
		"session":              {item{fdname: now, fd: f, link: link}, systemd.Entry{Name: now, Path: link}, true},
		"session without link": {item{fdname: now, fd: f, link: link}, systemd.Entry{Name: now}, true},
		"another session":      {item{fdname: now, fd: f, link: link}, systemd.Entry{Name: now, Path: link + "2"}, false},
		"session before":       {item{fdname: now, fd: f, link: link}, systemd.Entry{Name: before, Path: link}, false},
	} {
		c.entry.Dev, c.entry.Inode = info.Sys().(*syscall.Stat_t).Dev, info.Sys().(*syscall.Stat_t).Ino
		if in, err := c.item.in([]systemd.Entry{c.entry}); in != c.want || err != nil {
			t.Errorf("%s: %v, %v", name, in, err)
		}
	}
}

func TestSealedFile(t *testing.T) {
	f, err := sealedFile("manifest", []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if data, err := readSealed(f); string(data) != "text" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	dup, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	file := dup.File("manifest")
	defer file.Close()
	if _, err := file.WriteAt([]byte("T"), 0); err == nil {
		t.Error("it could be written")
	}
	plain, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	unsealed, err := own(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer unsealed.Close()
	if _, err := readSealed(unsealed); err == nil {
		t.Error("/dev/null passed for a manifest")
	}
}

func TestNoStoreOutsideServices(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	_, err := openStore(context.Background())
	var none *NoStoreError
	if !errors.As(err, &none) || !strings.Contains(err.Error(), "wasn't started by systemd") {
		t.Error(err)
	}
}

// orchestrator answers Acquire and Reclaim.
func orchestrator(t *testing.T, method varlink.Method) {
	path := filepath.Join(t.TempDir(), "io.holdfast")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&varlink.Server{Interfaces: []varlink.Interface{{
			Name: "io.holdfast.Sessions", Description: api.Sessions,
			Methods: map[string]varlink.Method{"Acquire": method, "Reclaim": method},
		}}}).Serve(ctx, listener)
	}()
	t.Cleanup(func() { cancel(); <-done; listener.Close() })
	t.Setenv("HOLDFAST_ADDRESS", path)
}

func TestRefusals(t *testing.T) {
	for kind, c := range map[string]struct {
		parameters map[string]any
		is         error
		text       string
	}{
		"NameTaken":      {map[string]any{"name": "ram"}, ErrNameTaken, ` "ram": a session "ram" exists already`},
		"NoOwner":        {map[string]any{"cgroup": "/x"}, ErrNoOwner, `the cgroup "/x" names no unit`},
		"NotPermitted":   {map[string]any{"reason": "because", "rule": "built-in"}, ErrNotPermitted, "not permitted: because (rule: built-in)"},
		"DeviceBusy":     {map[string]any{"holder": "process 7 (x)"}, ErrDeviceBusy, "process 7 (x)"},
		"KernelNotReady": {map[string]any{"problem": "notEnabled", "hint": "do this"}, ErrKernelNotReady, "live update is not enabled on this kernel's command line; do this"},
		"NoSuchSession":  {map[string]any{"name": "ram"}, ErrNoSuchSession, `there is no session "ram"`},
		"KernelError":    {map[string]any{"operation": "retrieve session", "errno": 22}, liveupdate.ErrAlreadyRetrieved, "somebody has the session already"},
		"SomethingNewer": {map[string]any{"unknown": []int{1}}, nil, "io.holdfast.Sessions.SomethingNewer"},
	} {
		t.Run(kind, func(t *testing.T) {
			orchestrator(t, func(context.Context, *varlink.Call) (*varlink.Reply, error) {
				return nil, &varlink.Error{Name: "io.holdfast.Sessions." + kind, Parameters: c.parameters}
			})
			client, err := Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_, acquireErr := client.Acquire(t.Context(), "ram")
			_, reclaimErr := client.Reclaim(t.Context(), "ram")
			for _, err := range []error{acquireErr, reclaimErr} {
				if err == nil || !strings.Contains(err.Error(), c.text) || c.is != nil && !errors.Is(err, c.is) || errors.Is(err, ErrNotASession) {
					t.Errorf("%v", err)
				}
			}
			if kind == "KernelError" && !errors.Is(reclaimErr, ErrKernel) {
				t.Errorf("%v", reclaimErr)
			}
		})
	}
}

// An answer that has no descriptor, or one that is no session, comes from no orchestrator.
func TestAnswersThatCantBe(t *testing.T) {
	for _, fds := range [][]int{nil, {0}} {
		orchestrator(t, func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			reply := &varlink.Reply{Parameters: map[string]any{"session": map[string]any{"kernelName": "x"}, "sessionFileDescriptor": 0}}
			for range fds {
				f, err := sealedFile("none", nil)
				if err != nil {
					return nil, err
				}
				reply.FDs = append(reply.FDs, f)
			}
			return reply, nil
		})
		client, err := Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s, err := client.Acquire(t.Context(), "ram"); err == nil {
			t.Errorf("%d descriptors: %+v", len(fds), s)
		}
		if c, err := client.Reclaim(t.Context(), "ram"); err == nil || errors.Is(err, ErrNoSuchSession) {
			t.Errorf("%d descriptors: %+v, %v", len(fds), c, err)
		}
		client.Close()
	}
}

// The answer to Reclaim is the only way to the session: whoever asked takes it, though it has no time any more.
func TestReclaimIsNotBrokenOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	orchestrator(t, func(context.Context, *varlink.Call) (*varlink.Reply, error) {
		cancel()
		return nil, &varlink.Error{Name: "io.holdfast.Sessions.NoSuchSession", Parameters: map[string]any{"name": "ram"}}
	})
	client, err := Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if c, err := client.Reclaim(ctx, "ram"); !errors.Is(err, ErrNoSuchSession) {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := client.Reclaim(ctx, "ram"); !errors.Is(err, context.Canceled) {
		t.Errorf("with no time from the start: %v, %v", c, err)
	}
}

func TestDialSaysWhatToDo(t *testing.T) {
	t.Setenv("HOLDFAST_ADDRESS", filepath.Join(t.TempDir(), "nobody"))
	if _, err := Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "systemctl enable --now holdfastd.socket") {
		t.Error(err)
	}
}
