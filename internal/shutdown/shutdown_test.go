// SPDX-License-Identifier: MIT

//go:build linux

package shutdown

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

const patience = 10 * time.Second

// bus stands in for the system bus with logind on it, as far as Watch can see it.
type bus struct {
	t        *testing.T
	listener *net.UnixListener
	delayMax uint64
	taken    chan inhibitor

	mu     sync.Mutex
	conn   *net.UnixConn
	serial uint32
}

// inhibitor is what logind holds of one: it sees its end when the pipe's other end is closed.
type inhibitor struct {
	mode string
	gone chan struct{}
}

func newBus(t *testing.T) *bus {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "bus"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{t: t, listener: listener, delayMax: uint64(time.Minute.Microseconds()), taken: make(chan inhibitor, 16)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conn = conn
			b.mu.Unlock()
			b.serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); b.hangUp(); <-ended })
	return b
}

func (b *bus) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.Close()
	}
}

// serve authenticates (the D-Bus specification, "Authentication Protocol") and answers calls.
func (b *bus) serve(conn *net.UnixConn) {
	in := bufio.NewReader(conn)
	if _, err := in.ReadByte(); err != nil {
		return
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		answer := ""
		switch line = strings.TrimSpace(line); {
		case line == "BEGIN":
			b.answer(conn, in)
			return
		case line == "AUTH":
			answer = "REJECTED EXTERNAL"
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			answer = "OK 0123456789abcdef0123456789abcdef"
		case line == "NEGOTIATE_UNIX_FD":
			answer = "AGREE_UNIX_FD"
		default:
			answer = "ERROR"
		}
		if _, err := io.WriteString(conn, answer+"\r\n"); err != nil {
			return
		}
	}
}

func (b *bus) answer(conn *net.UnixConn, in io.Reader) {
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		var member string
		call.Headers[dbus.FieldMember].Store(&member)
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}}
		switch member {
		case "Hello":
			reply.Body = []any{":1.1"}
		case "AddMatch":
		case "Get":
			reply.Body = []any{dbus.MakeVariant(b.delayMax)}
		case "Inhibit":
			read, write, err := os.Pipe()
			if err != nil {
				b.t.Error(err)
				return
			}
			i := inhibitor{call.Body[3].(string), make(chan struct{})}
			if call.Body[0] != "shutdown" || call.Body[1] != "Holdfast" {
				b.t.Errorf("inhibits %v", call.Body)
			}
			reply.Body = []any{dbus.UnixFD(write.Fd())}
			b.send(conn, reply)
			write.Close()
			go func() {
				defer close(i.gone)
				defer read.Close()
				read.Read(make([]byte, 1))
			}()
			b.taken <- i
			continue
		default:
			b.t.Errorf("the stand-in for the bus does not know %q", member)
			return
		}
		b.send(conn, reply)
	}
}

func (b *bus) send(conn *net.UnixConn, m *dbus.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serial++
	var fds []int
	for _, v := range m.Body {
		if f, ok := v.(dbus.UnixFD); ok {
			fds = append(fds, int(f))
			m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(len(fds)))
		}
	}
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	var out bytes.Buffer
	if _, err := m.EncodeToWithFDs(&out, binary.LittleEndian); err != nil {
		b.t.Error("encoding:", err)
		return
	}
	// The serial number, which only a Conn can give.
	binary.LittleEndian.PutUint32(out.Bytes()[8:], b.serial)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(out.Bytes(), rights, nil); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.EPIPE) {
		b.t.Error("sending:", err)
	}
}

// signal sends what logind does, the newer signal first if there is a type.
func (b *bus) signal(coming bool, kind string) {
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	emit := func(member string, body ...any) {
		b.send(conn, &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/login1")), dbus.FieldInterface: dbus.MakeVariant(manager),
			dbus.FieldMember: dbus.MakeVariant(member), dbus.FieldSender: dbus.MakeVariant(":1.2"),
		}})
	}
	if kind != "" {
		emit("PrepareForShutdownWithMetadata", coming, map[string]dbus.Variant{"type": dbus.MakeVariant(kind)})
	}
	emit("PrepareForShutdown", coming)
}

// inhibited waits for an inhibitor of that mode.
func (b *bus) inhibited(mode string) inhibitor {
	b.t.Helper()
	select {
	case i := <-b.taken:
		if i.mode != mode {
			b.t.Fatalf("a %s inhibitor, not a %s one", i.mode, mode)
		}
		return i
	case <-time.After(patience):
		b.t.Fatalf("no %s inhibitor", mode)
		return inhibitor{}
	}
}

func (i inhibitor) held() bool {
	select {
	case <-i.gone:
		return false
	default:
		return true
	}
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("not there yet: " + what)
	}
}

// run runs a Watch until the end of the test.
func run(t *testing.T, w *Watch, b *bus) {
	t.Helper()
	w.Address, w.Log = "unix:path="+b.listener.Addr().String(), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { w.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func TestAKexecIsHeldUp(t *testing.T) {
	b := newBus(t)
	asked, ready := make(chan time.Duration, 1), make(chan struct{})
	run(t, &Watch{Prepare: func(ctx context.Context) {
		end, _ := ctx.Deadline()
		asked <- time.Until(end)
		<-ready
	}}, b)
	delay := b.inhibited("delay")
	b.signal(true, "kexec")
	select {
	case most := <-asked:
		if most > time.Minute || most < time.Minute-patience {
			t.Errorf("there is time for %v", most)
		}
	case <-time.After(patience):
		t.Fatal("nobody was asked")
	}
	if !delay.held() {
		t.Error("the host is stopped before everybody is ready")
	}
	close(ready)
	await(t, "the end of the delay", delay.gone)
}

func TestOtherShutdownsAreNot(t *testing.T) {
	for _, kind := range []string{"reboot", "poweroff", "soft-reboot", ""} {
		b := newBus(t)
		run(t, &Watch{Prepare: func(context.Context) { t.Error("asked at", kind) }}, b)
		delay := b.inhibited("delay")
		b.signal(true, kind)
		await(t, "the end of the delay at "+kind, delay.gone)
		// It was called off: the next one is held up again.
		b.signal(false, kind)
		b.inhibited("delay")
	}
}

func TestAKexecIsCalledOff(t *testing.T) {
	b := newBus(t)
	asked, told := make(chan struct{}, 2), make(chan struct{}, 2)
	run(t, &Watch{Prepare: func(ctx context.Context) {
		asked <- struct{}{}
		<-ctx.Done()
		told <- struct{}{}
	}}, b)
	delay := b.inhibited("delay")
	for range 2 {
		b.signal(true, "kexec")
		await(t, "preparing", asked)
		b.signal(false, "kexec")
		await(t, "that it is off", told)
	}
	if !delay.held() {
		t.Error("the next kexec isn't held up")
	}
}

func TestLogindWaitsNoLonger(t *testing.T) {
	b := newBus(t)
	b.delayMax = uint64((50 * time.Millisecond).Microseconds())
	told := make(chan struct{})
	run(t, &Watch{Prepare: func(ctx context.Context) {
		<-ctx.Done()
		close(told)
	}}, b)
	delay := b.inhibited("delay")
	b.signal(true, "kexec")
	await(t, "the end of the time", told)
	await(t, "the end of the delay", delay.gone)
}

func TestBlock(t *testing.T) {
	b := newBus(t)
	run(t, &Watch{Block: true, Prepare: func(context.Context) {}}, b)
	delay, block := b.inhibited("delay"), b.inhibited("block")
	// With --ignore-inhibitors.
	b.signal(true, "kexec")
	await(t, "the end of the delay", delay.gone)
	if !block.held() {
		t.Error("shutdowns aren't blocked any more")
	}
}

func TestTheBusIsStartedAgain(t *testing.T) {
	b := newBus(t)
	run(t, &Watch{Prepare: func(context.Context) {}}, b)
	delay := b.inhibited("delay")
	b.hangUp()
	await(t, "the end of the delay", delay.gone)
	b.inhibited("delay")
}
