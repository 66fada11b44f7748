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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// MaxFDs is how many descriptors Linux takes with one sendmsg (SCM_MAX_FD, include/net/scm.h).
const MaxFDs = 253

// initialBuffer is the size of a connection's buffer, but for the length of a message that needs more.
const initialBuffer = 4096

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// message is a frame and the descriptors that came with it.
type message struct {
	data []byte // without the NUL; valid until the next receive
	files
}

// files are descriptors on their way in.
type files struct {
	fds []*fd.FD
	// cut: there were more than the limit, or the kernel could not install them all.
	cut bool
}

// wire is a connection as a sequence of messages. One goroutine may receive while another one sends.
type wire struct {
	conn       *net.UnixConn
	raw        syscall.RawConn
	maxMessage int // bytes, without the NUL
	maxFDs     int // a message
	// messageTime is how long a message may take from when its first byte is seen; 0 is for ever.
	messageTime time.Duration
	// drop takes descriptors beyond maxFDs, to close them.
	drop func([]*fd.FD)
	// stopped makes receive fail, from now on.
	stopped atomic.Bool

	buf                 []byte
	start, scanned, end int // what is unread, and up to where it has no NUL
	timed               bool
	// head are the descriptors of the message that begins at start, tail those of the message that contains
	// the last byte before end.
	head, tail files

	control []byte

	// What raw.Read and raw.Write call, with its arguments and results, so that nothing is allocated.
	recvmsg func(uintptr) bool
	in      struct {
		space   []byte
		n, oobn int
		flags   int
		err     error
	}
	sendmsg func(uintptr) bool
	out     struct {
		frame, rights []byte // what is left to send
		wait          bool
		err           error
	}
}

func newWire(conn *net.UnixConn, maxMessage, maxFDs int) *wire {
	raw, err := conn.SyscallConn()
	if err != nil {
		panic(err) // only of a nil connection
	}
	w := &wire{
		conn: conn, raw: raw, maxMessage: maxMessage, maxFDs: maxFDs, drop: fd.CloseAll,
		// CmsgLen, not CmsgSpace: the kernel would use the padding for one descriptor more.
		control: make([]byte, unix.CmsgLen(4*maxFDs)),
	}
	w.recvmsg = func(s uintptr) bool {
		for {
			w.in.n, w.in.oobn, w.in.flags, _, w.in.err = unix.Recvmsg(int(s), w.in.space, w.control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if w.in.err != unix.EINTR {
				return w.in.err != unix.EAGAIN
			}
		}
	}
	w.sendmsg = func(s uintptr) bool {
		for {
			var n int
			n, w.out.err = unix.SendmsgN(int(s), w.out.frame, w.out.rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			switch w.out.err {
			case nil:
				w.out.frame, w.out.rights = w.out.frame[n:], nil
				if len(w.out.frame) == 0 {
					return true
				}
			case unix.EAGAIN:
				return !w.out.wait
			case unix.EINTR:
			default:
				return true
			}
		}
	}
	return w
}

var (
	errTooLarge = errors.New("message too large")
	errStopped  = errors.New("connection stopped")
)

// receive returns the next message. Its descriptors are the caller's. The error is io.EOF where the peer has
// closed the connection between messages.
func (w *wire) receive() (message, error) {
	for {
		if i := bytes.IndexByte(w.buf[w.scanned:w.end], 0); i >= 0 {
			return w.next(w.scanned + i), nil
		}
		w.scanned = w.end
		// All that is buffered is one unfinished message, and so whose the descriptors are.
		w.claim(&w.head)
		if err := w.makeRoom(); err != nil {
			return message{}, err
		}
		if err := w.read(); err != nil {
			return message{}, err
		}
	}
}

// next takes the message that ends with the NUL at the index end.
func (w *wire) next(end int) message {
	m := message{data: w.buf[w.start:end], files: w.head}
	w.head = files{}
	w.start, w.scanned = end+1, end+1
	if w.start == w.end {
		w.claim(&m.files)
	}
	if w.timed {
		w.timed = false
		w.setReadDeadline(time.Time{})
	}
	return m
}

// claim adds the last descriptors that were received to those of a message, up to the limit.
func (w *wire) claim(to *files) {
	to.cut = to.cut || w.tail.cut
	if room := w.maxFDs - len(to.fds); len(w.tail.fds) > room {
		to.cut = true
		w.drop(w.tail.fds[room:])
		w.tail.fds = w.tail.fds[:room]
	}
	to.fds = append(to.fds, w.tail.fds...)
	w.tail = files{}
}

func (w *wire) makeRoom() error {
	switch unread := w.end - w.start; {
	case unread == 0 && len(w.buf) != min(initialBuffer, w.maxMessage+1):
		// The first time, or after a large message: its memory goes back.
		w.buf = make([]byte, min(initialBuffer, w.maxMessage+1))
		w.start, w.end = 0, 0
	case w.start > 0:
		copy(w.buf, w.buf[w.start:w.end])
		w.start, w.end = 0, unread
	case w.end < len(w.buf):
	case unread > w.maxMessage:
		return errTooLarge
	default:
		larger := make([]byte, min(2*len(w.buf), w.maxMessage+1))
		copy(larger, w.buf)
		w.buf = larger
	}
	w.scanned = w.end
	return nil
}

// read does one recvmsg.
func (w *wire) read() error {
	if w.end > w.start && w.messageTime > 0 && !w.timed {
		w.timed = true
		w.setReadDeadline(time.Now().Add(w.messageTime))
	}
	w.in.space = w.buf[w.end:]
	err := w.raw.Read(w.recvmsg)
	w.in.space = nil
	switch {
	case err == nil && w.in.err != nil:
		err = os.NewSyscallError("recvmsg", w.in.err)
	case w.stopped.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		err = errStopped
	}
	if err != nil {
		return err
	}
	w.tail = w.received()
	w.end += w.in.n
	switch {
	case w.in.n > 0:
		return nil
	case w.end > w.start:
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

// received takes the descriptors out of the control messages of the last recvmsg.
func (w *wire) received() files {
	f := files{cut: w.in.flags&unix.MSG_CTRUNC != 0}
	for rest := w.control[:w.in.oobn]; len(rest) >= unix.CmsgLen(0); {
		header, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break // can't be: the kernel wrote it
		}
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_RIGHTS {
			for ; len(data) >= 4; data = data[4:] {
				f.fds = append(f.fds, fd.New(int(int32(binary.NativeEndian.Uint32(data)))))
			}
		}
		rest = next
	}
	return f
}

// send writes a frame, and with its first byte the descriptors, which stay the caller's. timeout 0 is for ever.
func (w *wire) send(frame []byte, fds []int, timeout time.Duration) error {
	w.out.frame, w.out.rights, w.out.wait = frame, nil, false
	if len(fds) > 0 {
		w.out.rights = unix.UnixRights(fds...)
	}
	err := w.raw.Write(w.sendmsg)
	if err == nil && w.out.err == unix.EAGAIN {
		// Only now does time matter. A timer costs more than most replies.
		if timeout > 0 {
			w.conn.SetWriteDeadline(time.Now().Add(timeout))
			defer w.conn.SetWriteDeadline(time.Time{})
		}
		w.out.wait = true
		err = w.raw.Write(w.sendmsg)
	}
	w.out.frame, w.out.rights = nil, nil
	if err == nil {
		err = os.NewSyscallError("sendmsg", w.out.err)
	}
	return err
}

func (w *wire) setReadDeadline(t time.Time) {
	w.conn.SetReadDeadline(t)
	if w.stopped.Load() {
		w.conn.SetReadDeadline(past)
	}
}

// stop makes receive fail as soon as it would wait.
func (w *wire) stop() {
	w.stopped.Store(true)
	w.conn.SetReadDeadline(past)
}

// close closes the connection and gives the descriptors that nobody received to drop.
func (w *wire) close() error {
	err := w.conn.Close()
	w.drop(w.head.fds)
	w.drop(w.tail.fds)
	w.head, w.tail = files{}, files{}
	if err != nil {
		return fmt.Errorf("closing the connection: %w", err)
	}
	return nil
}
