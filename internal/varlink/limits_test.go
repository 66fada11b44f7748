// SPDX-License-Identifier: MIT

//go:build linux

package varlink_test

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// A thousand clients with large messages: their memory is given back when they wait, and when they are gone.
func TestMemoryIsGivenBack(t *testing.T) {
	const clients, length = 1000, 30 << 10
	a := newAdmissions()
	path, _ := serve(t, &varlink.Server{Admit: a.admit})
	connect(t, path).wantEcho()
	before := heap()

	call := `{"method":"io.holdfast.Test.Echo","parameters":{"text":"x"}` + strings.Repeat(" ", length) + "}\x00"
	var peers []*peer
	for range clients {
		p := connect(t, path)
		p.send(call)
		if r := p.reply(); r.Parameters["text"] != "x" {
			t.Fatalf("got %+v", r)
		}
		peers = append(peers, p)
	}
	// Of that, 4 KiB are each client's reader.
	if each := (heap() - before) / clients; each > 20<<10 {
		t.Errorf("%d bytes are kept for each idle client", each)
	}
	for _, p := range peers {
		p.conn.Close()
		p.in = nil
		<-a.released
	}
	if kept := heap() - before; kept > 4<<20 {
		t.Errorf("%d bytes are kept after %d clients have gone", kept, clients)
	}
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// errorLog is a log that says when an error is logged.
type errorLog struct{ logged chan string }

func (l errorLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (l errorLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l errorLog) WithGroup(string) slog.Handler                    { return l }
func (l errorLog) Handle(_ context.Context, r slog.Record) error {
	select {
	case l.logged <- r.Message:
	default:
	}
	return nil
}

// exhaust leaves this process n free descriptors, until restore.
func exhaust(t *testing.T, n int) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// The limit is for the number, so what is free below the highest one in use has to be taken.
	var taken []int
	restore = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		for _, raw := range taken {
			unix.Close(raw)
		}
		taken = nil
	}
	t.Cleanup(restore)
	highest := 0
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for {
		raw, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, raw)
		if highest = raw; raw > len(entries)+200 {
			break
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest + 1), Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	for range n {
		unix.Close(taken[len(taken)-1])
		taken = taken[:len(taken)-1]
	}
	return restore
}

func TestNoDescriptorForAConnection(t *testing.T) {
	log := errorLog{make(chan string, 1)}
	path, _ := serve(t, &varlink.Server{Log: slog.New(log)})
	before := connect(t, path)
	before.wantEcho()

	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	restore := exhaust(t, 0)
	if err := unix.Connect(socket, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	<-log.logged
	before.wantEcho()
	restore()

	if _, err := unix.Write(socket, []byte(echo)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := unix.Read(socket, b); err != nil || !strings.Contains(string(b[:n]), `"text":"x"`) {
		t.Errorf("%q, %v", b[:max(n, 0)], err)
	}
}

// Where the process has no room for what comes with a message, the message is there and the descriptors aren't.
func TestNoRoomForDescriptors(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	p.wantEcho()
	c := dial(t, path)
	if _, err := c.Call(t.Context(), "org.varlink.service.GetInfo", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	bait := newBait(t)

	restore := exhaust(t, 1)
	p.send(`{"method":"io.holdfast.Test.Read","parameters":{"fileDescriptor":1}}`+"\x00", bait.fds(2)...)
	p.wantInvalid("fileDescriptor")
	p.wantEcho()
	restore()
	bait.wantClosed()

	// The reply's pipe takes two, of which one is closed again.
	restore = exhaust(t, 2)
	fds, err := c.Call(t.Context(), "io.holdfast.Test.Open", map[string]any{"content": "x"}, nil, nil)
	restore()
	if err != nil || len(fds) != 1 {
		t.Errorf("with room for it: %d descriptors, %v", len(fds), err)
	}
	fd.CloseAll(fds)
}

func TestManyClientsAtOnce(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	done := make(chan error)
	const clients = 50
	for range clients {
		go func() {
			done <- func() error {
				c, err := varlink.Dial(context.Background(), path)
				if err != nil {
					return err
				}
				defer c.Close()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				for range 50 {
					fds, err := c.Call(ctx, "io.holdfast.Test.Open", map[string]any{"content": "x"}, nil, nil)
					if err != nil {
						return err
					}
					_, err = c.Call(ctx, "io.holdfast.Test.Read", map[string]any{"fileDescriptor": 0}, []int{fds[0].Raw()}, nil)
					fd.CloseAll(fds)
					if err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
