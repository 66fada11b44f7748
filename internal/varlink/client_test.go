// SPDX-License-Identifier: MIT

//go:build linux

package varlink_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// scripted listens, and answers what comes in on each connection with the next of replies, and fds. After the
// last it hangs up.
func scripted(t testing.TB, fds []int, replies ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 4096)
				for _, reply := range replies {
					if _, err := conn.Read(b); err != nil {
						return
					}
					p := &peer{TB: t, conn: conn}
					p.trySend(reply, fds...)
				}
				io.Copy(io.Discard, conn) // what is unread would be an ECONNRESET
			}()
		}
	}()
	return path
}

func TestBrokenReplies(t *testing.T) {
	b := newBait(t)
	for _, tt := range []struct{ reply, says string }{
		{"[]\x00", "not a JSON object"},
		{"{\x00", "not a JSON object"},
		{"\x00", "not a JSON object"},
		{`{"error":1}` + "\x00", "cannot unmarshal"},
		{`{"parameters":{},"continues":true}` + "\x00", "one of many"},
		{strings.Repeat("x", 2<<20), "longer than 1048576 bytes"},
	} {
		c := dial(t, scripted(t, b.fds(3), tt.reply))
		_, err := c.Call(t.Context(), "a.B", nil, nil, nil)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%.40q: %v, want %q", tt.reply, err, tt.says)
		}
		if _, err := c.Call(t.Context(), "a.B", nil, nil, nil); err == nil || !strings.Contains(err.Error(), "connect again") {
			t.Errorf("a call after that: %v", err)
		}
	}
	b.wantClosed()
}

func TestHangUpInsteadOfAReply(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, sent := range []string{"", `{"parameters":`} {
		c := dial(t, path)
		conn, err := ln.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		called := make(chan error, 1)
		go func() {
			_, err := c.Call(t.Context(), "a.B", nil, nil, nil)
			called <- err
		}()
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(sent))
		conn.Close()
		if err := <-called; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %q: %v", sent, err)
		}
	}
	// One that was dropped between calls.
	c := dial(t, path)
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := c.Call(t.Context(), "a.B", nil, nil, nil); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("on a connection that had ended: %v", err)
	}
}

// What the client doesn't know in a reply, it ignores.
func TestRepliesFromTheFuture(t *testing.T) {
	c := dial(t, scripted(t, nil, `{"colour":"red","parameters":{"text":"x","depth":[{}]}}`+"\x00", `{}`+"\x00"))
	var out struct {
		Text string `json:"text"`
	}
	for range 2 {
		if _, err := c.Call(t.Context(), "a.B", nil, nil, &out); err != nil || out.Text != "x" {
			t.Errorf("%q, %v", out.Text, err)
		}
	}
}

// Errors that come after the whole reply leave the connection usable, and no descriptor open.
func TestErrorsThatDontBreakTheConnection(t *testing.T) {
	b := newBait(t)
	c := dial(t, scripted(t, b.fds(2), `{"error":"a.Failed","parameters":{"reason":"<r>"}}`+"\x00", `{"error":"a.Bare"}`+"\x00",
		`{"parameters":{"text":1}}`+"\x00", `{"parameters":{"text":"x"}}`+"\x00"))

	_, err := c.Call(t.Context(), "a.B", nil, nil, nil)
	wantError(t, err, "a.Failed", "reason", "<r>")
	_, err = c.Call(t.Context(), "a.B", nil, nil, nil)
	wantError(t, err, "a.Bare", "", "")
	if err.Error() != "a.Bare" {
		t.Errorf("the error's text is %q", err)
	}
	var out struct {
		Text string `json:"text"`
	}
	if _, err := c.Call(t.Context(), "a.B", nil, nil, &out); err == nil || !strings.Contains(err.Error(), "decoding the reply") {
		t.Errorf("a reply of the wrong type: %v", err)
	}
	if _, err := c.Call(t.Context(), "a.B", nil, make([]int, varlink.MaxFDs+1), nil); err == nil || !strings.Contains(err.Error(), "254") {
		t.Errorf("too many descriptors: %v", err)
	}
	if _, err := c.Call(t.Context(), "a.B", func() {}, nil, nil); err == nil {
		t.Error("parameters that can't be JSON were sent")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Call(ctx, "a.B", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	fds, err := c.Call(t.Context(), "a.B", nil, nil, &out)
	if err != nil || len(fds) != 2 || out.Text != "x" {
		t.Errorf("%d descriptors, %q, %v", len(fds), out.Text, err)
	}
	fd.CloseAll(fds)
	b.wantClosed()
}

func TestDescriptorThatIsNotOpen(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	if _, err := dial(t, path).Call(t.Context(), "io.holdfast.Test.Echo", nil, []int{1 << 20}, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("got %v, want EBADF", err)
	}
}

func TestCancelledCallBreaksTheClient(t *testing.T) {
	w := newWaiter()
	path, _ := serve(t, &varlink.Server{}, w.varlink())
	c := dial(t, path)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go func() {
		<-w.running
		cancel(cause)
	}()
	if _, err := c.Call(ctx, "io.holdfast.Wait.Wait", nil, nil, nil); !errors.Is(err, cause) {
		t.Errorf("the cancelled call: %v", err)
	}
	if _, err := c.Call(t.Context(), "io.holdfast.Test.Echo", nil, nil, nil); !errors.Is(err, cause) || !strings.Contains(err.Error(), "connect again") {
		t.Errorf("a call after that: %v", err)
	}
	if err := <-w.ended; err == nil {
		t.Error("the server has not noticed")
	}
}

func TestDeadline(t *testing.T) {
	w := newWaiter()
	path, _ := serve(t, &varlink.Server{}, w.varlink())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c := dial(t, path)
	if _, err := c.Call(ctx, "io.holdfast.Wait.Wait", nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	<-w.ended
}

// A context that ends while a call comes through does no harm to the next one.
func TestCancelAfterTheReply(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	err := c.CallMore(ctx, "io.holdfast.Test.Echo", map[string]any{"text": "x"}, nil, func(json.RawMessage, []*fd.FD) error {
		cancel()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := c.Call(t.Context(), "io.holdfast.Test.Echo", map[string]any{"text": "x"}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWaitForAnEarlierCall(t *testing.T) {
	w := newWaiter()
	path, _ := serve(t, &varlink.Server{}, w.varlink())
	c := dial(t, path)
	first := make(chan error, 1)
	go func() {
		fds, err := c.Call(t.Context(), "io.holdfast.Wait.Wait", nil, nil, nil)
		fd.CloseAll(fds)
		first <- err
	}()
	<-w.running
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, "io.holdfast.Test.Echo", nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second call: %v", err)
	}
	close(w.goOn)
	if err := <-first; err != nil {
		t.Errorf("the first call: %v", err)
	}
}

func TestCloseDuringACall(t *testing.T) {
	w := newWaiter()
	path, _ := serve(t, &varlink.Server{}, w.varlink())
	c := dial(t, path)
	go func() {
		<-w.running
		c.Close()
	}()
	if _, err := c.Call(t.Context(), "io.holdfast.Wait.Wait", nil, nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the call: %v", err)
	}
	if _, err := c.Call(t.Context(), "io.holdfast.Test.Echo", nil, nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a call after that: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	<-w.ended
}

func TestStopReceivingReplies(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	enough := errors.New("enough")
	err := c.CallMore(t.Context(), "io.holdfast.Test.Count", map[string]any{"to": 1000000}, nil, func(_ json.RawMessage, fds []*fd.FD) error {
		fd.CloseAll(fds)
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	if _, err := varlink.Dial(t.Context(), path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}
