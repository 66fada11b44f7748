// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// connection is a plain varlink client's: it sends what it is told to, and tries nothing twice.
type connection struct {
	*net.UnixConn
	unread []byte
	fds    []*fd.FD // came, and belong to the next reply
}

// dial connects as this process, which is [place.me].
func dial(t *testing.T) *connection {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: here.address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return newConnection(t, conn)
}

func newConnection(t *testing.T, conn *net.UnixConn) *connection {
	c := &connection{UnixConn: conn}
	t.Cleanup(c.close)
	return c
}

func (c *connection) close() {
	c.Close()
	fd.CloseAll(c.fds)
	c.fds = nil
}

// reply is an answer as it came.
type reply struct {
	text []byte
	fds  []*fd.FD
}

func (r *reply) String() string { return fmt.Sprintf("%s with %d descriptors", r.text, len(r.fds)) }

// write sends bytes, and descriptors with the first of them.
func (c *connection) write(text []byte, fds ...int) error {
	c.SetWriteDeadline(time.Now().Add(patience))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(text, rights, nil)
	if err == nil && n < len(text) {
		_, err = c.Write(text[n:])
	}
	return err
}

// send sends a message.
func (c *connection) send(text string, fds ...int) error {
	return c.write(append([]byte(text), 0), fds...)
}

// receive returns the next reply. The error is [io.EOF] if the daemon has closed the connection before it, in
// whatever manner; a daemon that lets its client wait is an [os.ErrDeadlineExceeded].
func (c *connection) receive() (*reply, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	buffer, control := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(253*4))
	for {
		if text, rest, ok := bytes.Cut(c.unread, []byte{0}); ok {
			r := &reply{text, c.fds}
			c.unread, c.fds = rest, nil
			return r, nil
		}
		n, oobn, flags, _, err := c.ReadMsgUnix(buffer, control)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || n == 0 && err == nil {
			err = io.EOF
		}
		if err == io.EOF && len(c.unread) > 0 {
			err = fmt.Errorf("half a reply: %s", c.unread)
		}
		if err != nil {
			return nil, err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return nil, errors.New("a reply with descriptors that could not be received")
		}
		c.unread = append(c.unread, buffer[:n]...)
		messages, err := unix.ParseSocketControlMessage(control[:oobn])
		if err != nil {
			return nil, err
		}
		for i := range messages {
			rights, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, err
			}
			for _, raw := range rights {
				c.fds = append(c.fds, fd.New(raw))
			}
		}
	}
}

// ask sends a message and returns the reply to it.
func (c *connection) ask(t *testing.T, text string, fds ...int) *reply {
	t.Helper()
	if err := c.send(text, fds...); err != nil {
		t.Fatalf("sending %.200s: %v", text, err)
	}
	r, err := c.receive()
	if err != nil {
		t.Fatalf("the reply to %.200s: %v", text, err)
	}
	t.Cleanup(func() { fd.CloseAll(r.fds) })
	return r
}

// call calls a method and returns the reply to it.
func (c *connection) call(t *testing.T, method, parameters string, fds ...int) *reply {
	t.Helper()
	return c.ask(t, fmt.Sprintf(`{"method":%q,"parameters":%s}`, method, parameters), fds...)
}

func (c *connection) sessions(t *testing.T, method, parameters string, fds ...int) *reply {
	t.Helper()
	return c.call(t, "io.holdfast.Sessions."+method, parameters, fds...)
}

// closed asserts that the daemon has closed the connection.
func (c *connection) closed(t *testing.T) {
	t.Helper()
	if r, err := c.receive(); err != io.EOF {
		t.Errorf("the connection: got %v, %v; want it closed", r, err)
	}
}

// is asserts that a reply has exactly this JSON, and no descriptors.
func (r *reply) is(t *testing.T, want string) {
	t.Helper()
	var got, wanted any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatalf("%s: %v", want, err)
	}
	if err := json.Unmarshal(r.text, &got); err != nil || !reflect.DeepEqual(got, wanted) || len(r.fds) > 0 {
		t.Errorf("got  %s\nwant %s", r, want)
	}
}

// invalid is the error for a wrong parameter.
func invalid(parameter string) string {
	return fmt.Sprintf(`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":%q}}`, parameter)
}

const (
	notASession = `{"error":"io.holdfast.Sessions.NotASession","parameters":{}}`
	gone        = `{"error":"io.holdfast.Sessions.NotPermitted","parameters":{"reason":"the process that opened this connection has ended"}}`
)

func taken(n string) string {
	return fmt.Sprintf(`{"error":"io.holdfast.Sessions.NameTaken","parameters":{"name":%q}}`, n)
}

// session takes the session out of a reply to Acquire. The caller closes it. It is a session of that owner and name
// and nothing else, as the kernel itself says.
func (r *reply) session(owner, n string) (*liveupdate.Session, error) {
	var got, want any
	err := json.Unmarshal(r.text, &got)
	if err == nil {
		err = json.Unmarshal(fmt.Appendf(nil, `{"parameters":{"session":{"name":%q,"owner":%q,"kernelName":%q,"direction":"outgoing",
			"parked":false,"foreign":false},"sessionFileDescriptor":0}}`, n, owner, name.Kernel(owner, n)), &want)
	}
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(got, want) || len(r.fds) != 1 {
		return nil, fmt.Errorf("got %s, want a session %q of %s", r, n, owner)
	}
	s, err := liveupdate.FromFD(r.fds[0].Raw())
	if err != nil {
		return nil, err
	}
	r.fds[0].Disown()
	if s.Name() != name.Kernel(owner, n) {
		s.Close()
		return nil, fmt.Errorf("the reply is %s, and its descriptor is of session %q", r.text, s.Name())
	}
	return s, nil
}

// acquire gets a session of that name for an owner, whose connection this is.
func (c *connection) acquire(t *testing.T, owner, n string) *liveupdate.Session {
	t.Helper()
	s, err := c.sessions(t, "Acquire", fmt.Sprintf(`{"name":%q}`, n)).session(owner, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// client is a process that has connected to the daemon and does nothing more. What the daemon sees on its connection
// is the process's, so the tests can speak for it.
type client struct {
	*connection
	cmd     *exec.Cmd
	control *os.File
}

// startClient starts a client.
func startClient(t *testing.T, who subject) *client {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	c := &client{control: os.NewFile(uintptr(pair[0]), "control")}
	t.Cleanup(func() { c.end(t) })
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = []string{connectVariable + "=" + here.address}
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stderr = os.Stderr
	who.start(t, c.cmd)
	theirs.Close()

	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		t.Fatalf("the client %+v did not connect: %v", who, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		t.Fatal(err)
	}
	rights, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(rights[0]), "connection")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	c.connection = newConnection(t, conn.(*net.UnixConn))
	return c
}

// end ends the process and reaps it. The connection stays.
func (c *client) end(t *testing.T) {
	t.Helper()
	c.control.Close()
	if c.cmd == nil || c.cmd.Process == nil || c.cmd.ProcessState != nil {
		return
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("a client: %v", err)
	}
}

// lendConnection connects, passes the connection on over descriptor 3, and stays until that is closed.
func lendConnection(path string) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("connecting to %s: %w", path, err)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(s), nil, 0); err != nil {
		return err
	}
	unix.Close(s)
	_, err = unix.Read(3, make([]byte, 1))
	return err
}
