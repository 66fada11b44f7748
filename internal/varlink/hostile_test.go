// SPDX-License-Identifier: MIT

//go:build linux

package varlink_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// peer is a client that keeps to no rules.
type peer struct {
	testing.TB
	conn *net.UnixConn
	in   *bufio.Reader
}

func connect(t testing.TB, path string) *peer {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &peer{t, conn, bufio.NewReader(conn)}
}

func (p *peer) send(data string, fds ...int) {
	p.Helper()
	if err := p.trySend(data, fds...); err != nil {
		p.Errorf("sending %.40q: %v", data, err)
	}
}

// trySend is send where the server may hang up before it has read all.
func (p *peer) trySend(data string, fds ...int) error {
	first := 0
	if len(fds) > 0 {
		var err error
		first, _, err = p.conn.WriteMsgUnix([]byte(data), unix.UnixRights(fds...), nil)
		if err != nil || first == len(data) {
			return err
		}
	}
	_, err := p.conn.Write([]byte(data[first:]))
	return err
}

type reply struct {
	Error      string
	Parameters map[string]any
}

func (p *peer) reply() reply {
	p.Helper()
	frame, err := p.in.ReadBytes(0)
	var r reply
	if err == nil {
		err = json.Unmarshal(bytes.TrimSuffix(frame, []byte{0}), &r)
	}
	if err != nil {
		p.Errorf("reading a reply: %v", err)
	}
	return r
}

func (p *peer) wantInvalid(parameter string) {
	p.Helper()
	if r := p.reply(); r.Error != varlink.ErrInvalidParameter || r.Parameters["parameter"] != parameter {
		p.Errorf("got %+v, want InvalidParameter %q", r, parameter)
	}
}

// wantEnd waits for the server to close the connection.
func (p *peer) wantEnd() {
	p.Helper()
	rest, err := io.ReadAll(p.in)
	if len(rest) > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		p.Errorf("got %.40q, %v, want the end of the connection", rest, err)
	}
}

const echo = `{"method":"io.holdfast.Test.Echo","parameters":{"text":"x"}}` + "\x00"

// wantEcho makes a call and wants it to be answered.
func (p *peer) wantEcho() {
	p.Helper()
	p.send(echo)
	if r := p.reply(); r.Error != "" || r.Parameters["text"] != "x" {
		p.Errorf("got %+v", r)
	}
}

// admissions is an Admit that tells when connections are gone.
type admissions struct{ released chan struct{} }

func newAdmissions() *admissions { return &admissions{make(chan struct{}, 10000)} }

func (a *admissions) admit(*net.UnixConn) (any, func(), error) {
	return nil, func() { a.released <- struct{}{} }, nil
}

// bait is a pipe whose writing side is sent away. closed waits until no copy of that is left.
type bait struct {
	t testing.TB
	r *os.File
	w *os.File
}

func newBait(t testing.TB) *bait {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &bait{t, r, w}
}

func (b *bait) fd() int { return int(b.w.Fd()) }

func (b *bait) fds(n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = b.fd()
	}
	return fds
}

func (b *bait) wantClosed() {
	b.t.Helper()
	b.w.Close()
	if rest, err := io.ReadAll(b.r); len(rest) > 0 || err != nil {
		b.t.Errorf("waiting for the descriptor to be closed: %q, %v", rest, err)
	}
}

// A message that is none, or not a call, is answered, and ends the connection.
func TestMessagesThatEndTheConnection(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	for _, tt := range []struct{ message, parameter string }{
		{"", "message"},
		{"{", "message"},
		{"null", "message"},
		{"[]", "message"},
		{`"io.holdfast.Test.Echo"`, "message"},
		{"{}{}", "message"},
		{`{"method":"io.holdfast.Test.Echo","parameters":{"text":"` + "\xff" + `"}}`, "message"},
		{strings.Repeat("[", 60000), "message"},
		{`{"method":"io.holdfast.Test.Echo","parameters":` + strings.Repeat(`{"a":`, 5000), "message"},
		{strings.Repeat("x", 65537), "message"},
		{"{}", "method"},
		{`{"Method":"io.holdfast.Test.Echo"}`, "Method"},
		{`{"method":1}`, "method"},
		{`{"":1}`, ""},
		{`{"method":"a.b","method":"a.b"}`, "method"},
		{`{"method":"a.b","extra":1}`, "extra"},
		{`{"method":"a.b","oneway":1}`, "oneway"},
		{`{"method":"a.b","more":"yes"}`, "more"},
	} {
		b := newBait(t)
		p := connect(t, path)
		p.trySend(tt.message+"\x00"+echo, b.fds(3)...)
		p.wantInvalid(tt.parameter)
		p.wantEnd()
		b.wantClosed()
	}
	connect(t, path).wantEcho()
}

func TestTheLongestMessage(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	longest := strings.TrimSuffix(echo, "\x00")
	longest += strings.Repeat(" ", 64<<10-len(longest)) + "\x00"
	for range 3 {
		p.send(longest)
		if r := p.reply(); r.Parameters["text"] != "x" {
			t.Errorf("got %+v", r)
		}
	}
}

// The server does not read on, and what it answered can be read all the same.
func TestSixteenMegabytes(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	sent := make(chan error, 1)
	go func() {
		_, err := p.conn.Write(bytes.Repeat([]byte("["), 16<<20))
		sent <- err
	}()
	p.wantInvalid("message")
	if err := <-sent; !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("sending 16 MiB: %v, want it to be broken off", err)
	}
	_, err := dial(t, path).Call(t.Context(), "io.holdfast.Test.Echo", map[string]any{"text": strings.Repeat("x", 16<<20)}, nil, nil)
	wantError(t, err, varlink.ErrInvalidParameter, "parameter", "message")
}

func TestUpgradeIsRefused(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	p.send(`{"method":"io.holdfast.Test.Echo","parameters":{"text":"x"},"upgrade":true}` + "\x00")
	p.wantInvalid("upgrade")
	p.wantEcho()
}

func TestFlagsThatAreNotSet(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	p.send(`{"parameters":{"text":"x"},"method":"io.holdfast.Test.Echo","upgrade":false,"oneway":null,"more":true}` + "\x00")
	if r := p.reply(); r.Parameters["text"] != "x" {
		t.Errorf("got %+v", r)
	}
	p.send(`{"method":"org.varlink.service.GetInfo","parameters":null}` + "\x00")
	if r := p.reply(); r.Parameters["vendor"] != "Holdfast" {
		t.Errorf("got %+v", r)
	}
}

func TestOnewayHasNoReply(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	b := newBait(t)
	p.send(`{"method":"io.holdfast.Test.Open","parameters":{"content":"x"},"oneway":true}`+"\x00", b.fd())
	p.send(`{"method":"io.holdfast.Test.Open","oneway":true}` + "\x00")
	p.send(`{"method":"io.holdfast.Test.Nothing","oneway":true}` + "\x00")
	p.send(`{"method":"io.holdfast.Test.Count","parameters":{"to":3},"oneway":true,"more":true}` + "\x00")
	p.wantEcho()
	b.wantClosed()
}

// The kernel's most in one message, and one with each byte: the first two are kept, all are closed in the end.
func TestFloodOfDescriptors(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	const read = `{"method":"io.holdfast.Test.Read","parameters":{"fileDescriptor":%d}}` + "\x00"

	p := connect(t, path)
	for index, ok := range []bool{true, true, false} {
		r, err := pipeWith("x")
		if err != nil {
			t.Fatal(err)
		}
		b := newBait(t)
		fds := b.fds(varlink.MaxFDs)
		fds[index] = r.Raw()
		p.send(fmt.Sprintf(read, index), fds...)
		if got := p.reply(); (got.Parameters["content"] == "x") != ok {
			t.Errorf("descriptor %d: %+v", index, got)
		}
		b.wantClosed()
		r.Close()
	}

	for index, ok := range []bool{true, true, false} {
		b := newBait(t)
		for i, c := range []byte(fmt.Sprintf(read, index)) {
			if i != index {
				p.send(string(c), b.fd())
				continue
			}
			r, err := pipeWith("x")
			if err != nil {
				t.Fatal(err)
			}
			p.send(string(c), r.Raw())
			r.Close()
		}
		if got := p.reply(); (got.Parameters["content"] == "x") != ok {
			t.Errorf("descriptor %d, one with each byte: %+v", index, got)
		}
		b.wantClosed()
	}
}

func TestUnwantedDescriptorsOfManyCalls(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	b := newBait(t)
	for range 1000 {
		p.send(echo, b.fds(2)...)
		if r := p.reply(); r.Parameters["text"] != "x" {
			t.Fatalf("got %+v", r)
		}
	}
	b.wantClosed()
}

// Half a message, with a descriptor, and silence. Others are served, and clients that only wait between their
// calls stay.
func TestHalfAMessageThenSilence(t *testing.T) {
	path, _ := serve(t, &varlink.Server{MessageTimeout: 50 * time.Millisecond})
	patient := connect(t, path)
	patient.wantEcho()

	for _, begin := range []string{"{", echo[:len(echo)-1], echo + "{"} {
		p := connect(t, path)
		b := newBait(t)
		start := time.Now()
		p.send(begin, b.fd())
		for range 10 {
			connect(t, path).wantEcho()
			patient.wantEcho()
		}
		if begin == echo+"{" {
			p.reply()
		}
		p.wantEnd()
		b.wantClosed()
		if took := time.Since(start); took < 50*time.Millisecond {
			t.Errorf("%q: the connection was closed after %v", begin, took)
		}
	}
	patient.wantEcho()
}

// One byte at a time does not stretch the time for a message.
func TestDribble(t *testing.T) {
	path, _ := serve(t, &varlink.Server{MessageTimeout: 50 * time.Millisecond})
	p := connect(t, path)
	start := time.Now()
	for {
		if _, err := p.conn.Write([]byte(" ")); err != nil {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("the connection is still open")
		}
		connect(t, path).wantEcho()
	}
}

func TestHangUpInTheMiddleOfAMessage(t *testing.T) {
	a := newAdmissions()
	path, _ := serve(t, &varlink.Server{Admit: a.admit})
	for _, data := range []string{"{", echo[:10], echo + "{", echo + echo} {
		b := newBait(t)
		p := connect(t, path)
		p.send(data, b.fds(2)...)
		p.conn.Close()
		b.wantClosed()
		<-a.released
	}
}

// lingering is a socket whose last close blocks until end is called: it has unsent data, a long linger, and a peer
// that does not read.
func lingering(t testing.TB) (socket *os.File, end func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(s uintptr) {
		for err == nil {
			_, err = unix.SendmsgN(int(s), make([]byte, 1<<16), nil, nil, unix.MSG_DONTWAIT)
		}
		if err == unix.EAGAIN {
			err = unix.SetsockoptLinger(int(s), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 60})
		}
		if err == nil {
			var n int
			n, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3)
			socket = os.NewFile(uintptr(n), "lingering")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	end = func() {
		other.(*net.TCPConn).SetLinger(0) // a reset
		other.Close()
	}
	t.Cleanup(end)
	return socket, end
}

// sendLast has the server own the only copy of socket. It gets to see the message once it has answered another.
func (p *peer) sendLast(w *waiter, message string, fds []int, socket *os.File) {
	p.Helper()
	p.send(wait)
	<-w.running
	p.send(message, append(fds, int(socket.Fd()))...)
	socket.Close()
	w.goOn <- struct{}{}
	p.reply()
}

// The server goes on while it can't get rid of a descriptor, but for the connection: that stays accounted for.
func TestDescriptorsThatCantBeClosed(t *testing.T) {
	a, w := newAdmissions(), newWaiter()
	path, _ := serve(t, &varlink.Server{Admit: a.admit, Grace: time.Minute}, w.varlink())
	for _, tt := range []struct {
		name, message string
		replies       int
	}{
		{"not taken", echo, 1},
		{"taken and dropped", `{"method":"io.holdfast.Test.Read","parameters":{"fileDescriptor":0}}` + "\x00", 1},
		{"of an unfinished message", "{", 0},
		{"of a message that ends the connection", "{}\x00", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket, end := lingering(t)
			p := connect(t, path)
			p.sendLast(w, tt.message, nil, socket)
			for range tt.replies {
				p.reply()
			}
			if tt.message == echo {
				p.wantEcho()
			}
			for range 100 {
				other := connect(t, path)
				other.wantEcho()
				other.conn.Close()
				<-a.released
			}
			p.conn.Close()
			select {
			case <-a.released:
				t.Error("the connection is gone before its descriptor was closed")
			case <-time.After(50 * time.Millisecond):
			}
			end()
			<-a.released
		})
	}
}

// What exceeds the limit is closed by the kernel inside recvmsg. It holds up who sent it, and nobody else.
func TestDescriptorsThatCantBeClosedBeyondTheLimit(t *testing.T) {
	a, w := newAdmissions(), newWaiter()
	path, _ := serve(t, &varlink.Server{Admit: a.admit, Grace: time.Minute}, w.varlink())
	var ends []func()
	b := newBait(t)
	var peers []*peer
	for range 20 {
		socket, end := lingering(t)
		ends = append(ends, end)
		p := connect(t, path)
		p.sendLast(w, echo, b.fds(2), socket)
		peers = append(peers, p)
	}
	for range 100 {
		other := connect(t, path)
		other.wantEcho()
		other.conn.Close()
		<-a.released
	}
	for _, end := range ends {
		end()
	}
	for _, p := range peers {
		if r := p.reply(); r.Parameters["text"] != "x" {
			t.Errorf("got %+v", r)
		}
		p.conn.Close()
		<-a.released
	}
	b.wantClosed()
}

// An out-of-band byte is no part of a message, and what comes with it is closed.
func TestOutOfBandByte(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	p := connect(t, path)
	raw, err := p.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, before := range []string{"", echo[:10]} {
		b := newBait(t)
		if before != "" {
			p.send(before)
		}
		var sent error
		raw.Control(func(s uintptr) {
			sent = unix.Sendmsg(int(s), []byte("!"), unix.UnixRights(b.fd()), nil, unix.MSG_OOB)
		})
		if sent == unix.EOPNOTSUPP {
			t.Skip("the kernel has no CONFIG_AF_UNIX_OOB")
		} else if sent != nil {
			t.Fatal(sent)
		}
		p.send(echo[len(before):])
		if r := p.reply(); r.Parameters["text"] != "x" {
			t.Errorf("after %q: %+v", before, r)
		}
		b.wantClosed()
	}
}

// A client that does not read its replies is hung up on, and what was to be sent to it is closed.
func TestStalledReader(t *testing.T) {
	a := newAdmissions()
	path, _ := serve(t, &varlink.Server{Admit: a.admit, WriteTimeout: 50 * time.Millisecond})
	p := connect(t, path)
	flooded := make(chan error, 1)
	go func() {
		call := []byte(`{"method":"io.holdfast.Test.Open","parameters":{"content":"x"}}` + "\x00")
		for {
			if _, err := p.conn.Write(call); err != nil {
				flooded <- err
				return
			}
		}
	}()
	for stalled := true; stalled; {
		other := connect(t, path)
		other.wantEcho()
		other.conn.Close()
		<-a.released
		select {
		case <-flooded:
			stalled = false
		default:
		}
	}
	<-a.released
}

// A reply that is longer than the socket's buffer, to a client that takes its time.
func TestSlowReader(t *testing.T) {
	path, _ := serve(t, &varlink.Server{MaxMessage: 1 << 20})
	p := connect(t, path)
	text := strings.Repeat("x", 900<<10)
	go p.send(`{"method":"io.holdfast.Test.Echo","parameters":{"text":"` + text + `"}}` + "\x00")
	p.in = bufio.NewReaderSize(p.conn, 16)
	if r := p.reply(); r.Parameters["text"] != text {
		t.Errorf("%s, %d bytes", r.Error, len(fmt.Sprint(r.Parameters["text"])))
	}
}

func TestPanic(t *testing.T) {
	path, _ := serve(t, &varlink.Server{}, varlink.Interface{
		Name:        "io.holdfast.Panic",
		Description: "interface io.holdfast.Panic\nmethod Panic() -> ()\n",
		Methods: map[string]varlink.Method{"Panic": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
			panic("overboard")
		}},
	})
	other := connect(t, path)
	p := connect(t, path)
	b := newBait(t)
	p.send(`{"method":"io.holdfast.Panic.Panic"}`+"\x00"+echo, b.fds(2)...)
	p.wantEnd()
	b.wantClosed()
	other.wantEcho()
}

func TestUnforeseenErrors(t *testing.T) {
	path, _ := serve(t, &varlink.Server{}, varlink.Interface{
		Name:        "io.holdfast.Wrong",
		Description: "interface io.holdfast.Wrong\nmethod Errno() -> ()\nmethod Other() -> ()\nmethod Nil() -> ()\n",
		Methods: map[string]varlink.Method{
			"Errno": func(context.Context, *varlink.Call) (*varlink.Reply, error) {
				return nil, fmt.Errorf("opening the device: %w", unix.EBUSY)
			},
			"Other": func(context.Context, *varlink.Call) (*varlink.Reply, error) { return nil, errors.New("secret") },
			"Nil":   func(context.Context, *varlink.Call) (*varlink.Reply, error) { return nil, nil },
		},
	})
	c := dial(t, path)
	_, err := c.Call(t.Context(), "io.holdfast.Wrong.Errno", nil, nil, nil)
	wantError(t, err, "io.systemd.System", "errnoName", "EBUSY")
	_, err = c.Call(t.Context(), "io.holdfast.Wrong.Other", nil, nil, nil)
	wantError(t, err, "io.systemd.System", "errnoName", "EIO")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the client sees %v", err)
	}
	if _, err = c.Call(t.Context(), "io.holdfast.Wrong.Nil", nil, nil, nil); err != nil {
		t.Error(err)
	}
}

// waiter is an interface whose method Wait says that it runs, and waits for its context or for the test.
type waiter struct {
	running, goOn chan struct{}
	ended         chan error
}

func newWaiter() *waiter {
	return &waiter{make(chan struct{}, 100), make(chan struct{}), make(chan error, 100)}
}

func (w *waiter) varlink() varlink.Interface {
	return varlink.Interface{
		Name:        "io.holdfast.Wait",
		Description: "interface io.holdfast.Wait\nmethod Wait() -> (fileDescriptor: int)\n",
		Methods: map[string]varlink.Method{"Wait": func(ctx context.Context, _ *varlink.Call) (*varlink.Reply, error) {
			w.running <- struct{}{}
			r, err := pipeWith("")
			select {
			case <-w.goOn:
			case <-ctx.Done():
			}
			w.ended <- ctx.Err()
			return &varlink.Reply{FDs: []*fd.FD{r}}, err
		}},
	}
}

const wait = `{"method":"io.holdfast.Wait.Wait"}` + "\x00"

func TestHangUpEndsACallsContext(t *testing.T) {
	a, w := newAdmissions(), newWaiter()
	path, _ := serve(t, &varlink.Server{Admit: a.admit}, w.varlink())

	// One that still wants its reply, and has another call waiting.
	half := connect(t, path)
	half.send(wait)
	half.send(echo)
	half.conn.CloseWrite()
	<-w.running

	for _, more := range []string{"", echo, "{"} {
		p := connect(t, path)
		p.send(wait + more)
		<-w.running
		p.conn.Close()
		if err := <-w.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a call whose client hung up: %v", err)
		}
		<-a.released
	}

	close(w.goOn)
	if err := <-w.ended; err != nil {
		t.Errorf("a call whose client only finished sending: %v", err)
	}
	half.reply()
	if r := half.reply(); r.Parameters["text"] != "x" {
		t.Errorf("got %+v", r)
	}
	half.wantEnd()
}

// A call that took long leaves the connection as good as before.
func TestCallsAfterALongOne(t *testing.T) {
	w := newWaiter()
	path, _ := serve(t, &varlink.Server{}, w.varlink())
	long, gone := connect(t, path), connect(t, path)
	long.send(wait)
	<-w.running
	// The other's hang-up is noticed after the first one has come to be watched.
	gone.send(wait)
	<-w.running
	gone.conn.Close()
	<-w.ended
	w.goOn <- struct{}{}
	long.reply()
	for range 10 {
		long.wantEcho()
	}
}

func TestStopLetsCallsFinish(t *testing.T) {
	w := newWaiter()
	path, stop := serve(t, &varlink.Server{Grace: time.Minute}, w.varlink())
	idle, half, busy := connect(t, path), connect(t, path), connect(t, path)
	idle.wantEcho()
	half.send("{")
	busy.send(wait + echo)
	<-w.running
	var stopped sync.WaitGroup
	stopped.Go(stop)
	idle.wantEnd()
	half.wantEnd()
	close(w.goOn)
	if r := busy.reply(); r.Error != "" {
		t.Errorf("got %+v", r)
	}
	busy.wantEnd()
	stopped.Wait()
}

func TestStopCancelsCallsAfterTheGrace(t *testing.T) {
	w := newWaiter()
	path, stop := serve(t, &varlink.Server{Grace: 10 * time.Millisecond}, w.varlink())
	p := connect(t, path)
	p.send(wait)
	<-w.running
	stop()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestMoreConnectionsThanPlaces(t *testing.T) {
	path, _ := serve(t, &varlink.Server{MaxConnections: 2})
	one, two := connect(t, path), connect(t, path)
	one.wantEcho()
	two.wantEcho()
	three := connect(t, path)
	three.send(echo)
	two.wantEcho()
	one.conn.Close()
	if r := three.reply(); r.Parameters["text"] != "x" {
		t.Errorf("got %+v", r)
	}
}

func TestAdmit(t *testing.T) {
	a := newAdmissions()
	refusals := make(chan error, 1)
	s := &varlink.Server{Admit: func(conn *net.UnixConn) (any, func(), error) {
		_, release, _ := a.admit(conn)
		return "the peer", release, <-refusals
	}}
	path, _ := serve(t, s, varlink.Interface{
		Name:        "io.holdfast.Who",
		Description: "interface io.holdfast.Who\nmethod Who() -> (who: string)\n",
		Methods: map[string]varlink.Method{"Who": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			return &varlink.Reply{Parameters: map[string]any{"who": call.Peer}}, nil
		}},
	})
	refusals <- nil
	c := dial(t, path)
	var out struct{ Who string }
	if _, err := c.Call(t.Context(), "io.holdfast.Who.Who", nil, nil, &out); err != nil || out.Who != "the peer" {
		t.Errorf("%q, %v", out.Who, err)
	}
	c.Close()
	<-a.released

	refusals <- errors.New("no")
	if _, err := dial(t, path).Call(t.Context(), "io.holdfast.Who.Who", nil, nil, nil); err == nil {
		t.Error("a call on a connection that was not admitted")
	}
	<-a.released

	refusals <- &varlink.Error{Name: varlink.ErrPermissionDenied}
	_, err := dial(t, path).Call(t.Context(), "io.holdfast.Who.Who", nil, nil, nil)
	wantError(t, err, varlink.ErrPermissionDenied, "", "")
	<-a.released
}
