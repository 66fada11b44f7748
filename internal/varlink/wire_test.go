// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// socketPair returns a wire and the raw other end of its connection.
func socketPair(t testing.TB, maxMessage, maxFDs int) (*wire, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, raw := range fds {
		file := os.NewFile(uintptr(raw), "socket")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	w := newWire(conns[0], maxMessage, maxFDs)
	t.Cleanup(func() {
		w.close()
		conns[1].Close()
	})
	return w, conns[1]
}

// numbered makes a descriptor that can be told from others by its number.
func numbered(t testing.TB, number int) *fd.FD {
	t.Helper()
	raw, err := unix.Eventfd(uint(number), unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	return fd.New(raw)
}

func numbers(t testing.TB, fds []*fd.FD) []int {
	t.Helper()
	var ns []int
	for _, f := range fds {
		b := make([]byte, 8)
		if _, err := unix.Read(f.Raw(), b); err != nil {
			t.Fatal(err)
		}
		ns = append(ns, int(binary.NativeEndian.Uint64(b)))
	}
	return ns
}

// sendRaw does one sendmsg, with numbered descriptors.
func sendRaw(t testing.TB, conn *net.UnixConn, data []byte, with ...int) {
	t.Helper()
	var rights []int
	for _, number := range with {
		f := numbered(t, number)
		defer f.Close()
		rights = append(rights, f.Raw())
	}
	var oob []byte
	if rights != nil {
		oob = unix.UnixRights(rights...)
	}
	if n, _, err := conn.WriteMsgUnix(data, oob, nil); err != nil || n < len(data) {
		t.Errorf("sendmsg: %d of %d bytes, %v", n, len(data), err)
	}
}

// Messages of 0, 1 and 2 descriptors, in each order, and in each of the ways that a sender may cut the stream.
func TestDescriptorsBelongToTheirMessage(t *testing.T) {
	type sender func(t testing.TB, conn *net.UnixConn, frame []byte, with []int)
	senders := []struct {
		name string
		send sender
	}{
		{"whole", func(t testing.TB, conn *net.UnixConn, frame []byte, with []int) {
			sendRaw(t, conn, frame, with...)
		}},
		{"byte by byte", func(t testing.TB, conn *net.UnixConn, frame []byte, with []int) {
			sendRaw(t, conn, frame[:1], with...)
			for _, b := range frame[1:] {
				sendRaw(t, conn, []byte{b})
			}
		}},
		{"halves", func(t testing.TB, conn *net.UnixConn, frame []byte, with []int) {
			sendRaw(t, conn, frame[:len(frame)/2], with...)
			sendRaw(t, conn, frame[len(frame)/2:])
		}},
		{"last byte with the descriptors", func(t testing.TB, conn *net.UnixConn, frame []byte, with []int) {
			sendRaw(t, conn, frame[:len(frame)-1])
			sendRaw(t, conn, frame[len(frame)-1:], with...)
		}},
		{"a descriptor a byte", func(t testing.TB, conn *net.UnixConn, frame []byte, with []int) {
			for i := range frame {
				sendRaw(t, conn, frame[i:i+1], with[min(i, len(with)):min(i+1, len(with))]...)
			}
		}},
	}
	for _, s := range senders {
		for _, readAfterEach := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/read after each %v", s.name, readAfterEach), func(t *testing.T) {
				for order := range 3 * 3 * 3 * 3 {
					w, conn := socketPair(t, 1<<16, 2)
					receive := func(i, n int) {
						m, err := w.receive()
						if err != nil {
							t.Fatal(err)
						}
						defer fd.CloseAll(m.fds)
						want := []int{10*i + 1, 10*i + 2}[:n]
						if got := numbers(t, m.fds); !slices.Equal(got, want) || m.cut || string(m.data) != message4(i) {
							t.Errorf("order %d, message %d: descriptors %v, want %v; cut %v; %q", order, i, got, want, m.cut, m.data)
						}
					}
					for i, rest := 0, order; i < 4; i, rest = i+1, rest/3 {
						s.send(t, conn, []byte(message4(i)+"\x00"), []int{10*i + 1, 10*i + 2}[:rest%3])
						if readAfterEach {
							receive(i, rest%3)
						}
					}
					for i, rest := 0, order; i < 4 && !readAfterEach; i, rest = i+1, rest/3 {
						receive(i, rest%3)
					}
					w.close()
					conn.Close()
				}
			})
		}
	}
}

func message4(i int) string { return strings.Repeat(string(rune('a'+i)), 3+i) }

// sd-varlink may put an earlier message into the sendmsg of one that has descriptors.
func TestDescriptorsBelongToTheLastMessageOfASendmsg(t *testing.T) {
	w, conn := socketPair(t, 1<<16, 2)
	sendRaw(t, conn, []byte("zero\x00"))
	sendRaw(t, conn, []byte("one\x00two\x00"), 7)
	sendRaw(t, conn, []byte("three\x00"), 8)
	for i, want := range []struct {
		data string
		fds  []int
	}{{"zero", nil}, {"one", nil}, {"two", []int{7}}, {"three", []int{8}}} {
		m, err := w.receive()
		if err != nil {
			t.Fatal(err)
		}
		if got := numbers(t, m.fds); string(m.data) != want.data || !slices.Equal(got, want.fds) {
			t.Errorf("message %d: %q %v, want %v", i, m.data, got, want)
		}
		fd.CloseAll(m.fds)
	}
}

// A message that is longer than the buffer, and than what the socket holds, in both directions.
func TestLargeMessageWithDescriptors(t *testing.T) {
	for _, size := range []int{initialBuffer - 1, initialBuffer, initialBuffer + 1, 1 << 20} {
		from, conn := socketPair(t, 1<<20, 2)
		to := newWire(conn, 1<<20, 2)
		frame := append(bytes.Repeat([]byte("x"), size), 0)
		one, two := numbered(t, 1), numbered(t, 2)
		sent := make(chan error, 1)
		go func() {
			err := from.send([]byte("first\x00"), nil, 0)
			if err == nil {
				err = from.send(frame, []int{one.Raw(), two.Raw()}, 0)
			}
			if err == nil {
				err = from.send([]byte("last\x00"), nil, 0)
			}
			sent <- err
		}()
		for _, want := range []struct {
			data string
			fds  []int
		}{{"first", nil}, {string(frame[:size]), []int{1, 2}}, {"last", nil}} {
			m, err := to.receive()
			if err != nil {
				t.Fatal(err)
			}
			if got := numbers(t, m.fds); string(m.data) != want.data || !slices.Equal(got, want.fds) {
				t.Errorf("%d bytes with descriptors %v, want %d with %v", len(m.data), got, len(want.data), want.fds)
			}
			fd.CloseAll(m.fds)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		// The next wait for a message gives the memory back.
		conn.CloseWrite()
		from.conn.CloseWrite()
		if _, err := to.receive(); err != io.EOF || cap(to.buf) != initialBuffer {
			t.Errorf("%v, and a buffer of %d bytes is kept", err, cap(to.buf))
		}
		fd.CloseAll([]*fd.FD{one, two})
	}
}

func TestMoreDescriptorsThanTheLimit(t *testing.T) {
	for _, limit := range []int{1, 2, 3} {
		w, conn := socketPair(t, 100, limit)
		sendRaw(t, conn, []byte("one\x00"), 1, 2, 3, 4)
		sendRaw(t, conn, []byte("t"), 5)
		sendRaw(t, conn, []byte("w"), 6, 7)
		sendRaw(t, conn, []byte("o\x00"), 8)
		sendRaw(t, conn, []byte("three\x00"), 9)
		for _, want := range [][]int{{1, 2, 3, 4}, {5, 6, 7, 8}, {9}} {
			m, err := w.receive()
			if err != nil {
				t.Fatal(err)
			}
			got := numbers(t, m.fds)
			if !slices.Equal(got, want[:min(limit, len(want))]) || m.cut != (len(want) > limit) {
				t.Errorf("limit %d: %q: descriptors %v of %v, cut %v", limit, m.data, got, want, m.cut)
			}
			fd.CloseAll(m.fds)
		}
	}
}

func TestReceiveEnds(t *testing.T) {
	for _, tt := range []struct {
		sent string
		err  error
	}{
		{"", io.EOF},
		{"half", io.ErrUnexpectedEOF},
		{strings.Repeat("x", 10), io.ErrUnexpectedEOF},
		{strings.Repeat("x", 11), errTooLarge},
		{strings.Repeat("x", 11) + "\x00", errTooLarge},
	} {
		for _, before := range []string{"", "one\x00", "0123456789\x00", "one\x000123456789\x00"} {
			w, conn := socketPair(t, 10, 2)
			if before != "" {
				sendRaw(t, conn, []byte(before))
			}
			if tt.sent != "" {
				sendRaw(t, conn, []byte(tt.sent), 1)
			}
			conn.Close()
			for range strings.Count(before, "\x00") {
				if _, err := w.receive(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.receive(); err != tt.err {
				t.Errorf("%q after %q: %v, want %v", tt.sent, before, err, tt.err)
			}
		}
	}
}

// FuzzReceive cuts a stream into pieces, each in a sendmsg of its own and some with descriptors. lengths holds a
// byte a piece: five bits of length, three of how many descriptors.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("one\x00two\x00"), []byte{3<<3 | 1, 1 << 3, 4<<3 | 2})
	f.Add([]byte("\x00\x00\x00"), []byte{1, 1<<3 | 7, 2})
	f.Add([]byte("0123456789012345678901234567890123456789\x00x"), []byte{31<<3 | 2})
	f.Add([]byte("01234567890123456789012345678901\x0001234567890123456789012345678901\x00half"), []byte{31<<3 | 1, 31<<3 | 1, 7<<3 | 3})
	const maxMessage, maxFDs = 32, 2
	f.Fuzz(func(t *testing.T, stream, lengths []byte) {
		stream = stream[:min(len(stream), 4096)]
		w, conn := socketPair(t, maxMessage, maxFDs)
		// number -> the piece of the stream that it came with
		type piece struct{ from, to int }
		pieces := map[int]piece{}
		for at, sent := 0, 0; at < len(stream); sent++ {
			length, count := len(stream)-at, 0
			// Nobody reads yet, and a socket's buffer (net.core.wmem_default) holds some 270 pieces.
			if len(lengths) > 0 && sent < 200 {
				length, count = min(length, 1+int(lengths[0]>>3)), int(lengths[0]&7)
				lengths = lengths[1:]
			}
			var with []int
			for range count {
				number := len(pieces) + 1
				pieces[number] = piece{at, at + length}
				with = append(with, number)
			}
			sendRaw(t, conn, stream[at:at+length], with...)
			at += length
		}
		conn.Close()

		last := 0
		for at := 0; ; {
			end := bytes.IndexByte(stream[at:], 0)
			m, err := w.receive()
			switch rest := len(stream) - at; {
			case end > maxMessage, end < 0 && rest > maxMessage:
				if err != errTooLarge {
					t.Fatalf("at %d: %v, want errTooLarge", at, err)
				}
			case end < 0 && rest > 0:
				if err != io.ErrUnexpectedEOF {
					t.Fatalf("at %d: %v, want io.ErrUnexpectedEOF", at, err)
				}
			case rest == 0:
				if err != io.EOF {
					t.Fatalf("at the end: %v, want io.EOF", err)
				}
			case err != nil || !bytes.Equal(m.data, stream[at:at+end]):
				t.Fatalf("at %d: %q, %v, want %q", at, m.data, err, stream[at:at+end])
			}
			if err != nil {
				return
			}
			if len(m.fds) > maxFDs {
				t.Fatalf("at %d: %d descriptors", at, len(m.fds))
			}
			// Each descriptor has come with a part of the message, in the order in which they were sent.
			for _, number := range numbers(t, m.fds) {
				if p := pieces[number]; p.to <= at || p.from > at+end || number <= last {
					t.Fatalf("message %d to %d has the descriptor %d after %d, which came with %v", at, at+end, number, last, p)
				}
				last = number
			}
			fd.CloseAll(m.fds)
			at += end + 1
		}
	})
}

func TestSendFailsWhereNobodyReads(t *testing.T) {
	w, conn := socketPair(t, 100, 2)
	conn.Close()
	if err := w.send([]byte("x\x00"), nil, 0); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want EPIPE", err)
	}
}
