// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/test/fuse"
)

// What a client may send, and what it gets. After each the daemon has no more open than before, and serves others.
func TestBadInput(t *testing.T) {
	d, others := serve(t)
	before := d.descriptors(t)
	try := func(what string, test func(t *testing.T, c *connection)) {
		t.Run(what, func(t *testing.T) {
			c := dial(t)
			test(t, c)
			c.close()
			d.back(t, others, before)
		})
	}

	// Names.
	nameInvalid := func(name, reason string) string {
		return fmt.Sprintf(`{"error":"io.holdfast.Sessions.NameInvalid","parameters":{"name":%s,"reason":%q}}`, name, reason)
	}
	start := "it must start with a letter or a digit"
	try("names", func(t *testing.T, c *connection) {
		for _, n := range []struct{ name, reason string }{ // as JSON
			{`""`, "it is empty"},
			{`"` + strings.Repeat("a", 44) + `"`, "it has 44 bytes, the longest here is 43"},
			{`"../x"`, start},
			{`"a/../x"`, "byte 1 is none of A-Z a-z 0-9 _ . @ -"},
			{`"\u0000"`, start},
			{`"ram\u0000"`, "byte 3 is none of A-Z a-z 0-9 _ . @ -"},
			{`"é"`, start},
			{`"raméo"`, "byte 3 is none of A-Z a-z 0-9 _ . @ -"},
			{`"-"`, start},
			{`"a b"`, "byte 1 is none of A-Z a-z 0-9 _ . @ -"},
		} {
			c.sessions(t, "Acquire", `{"name":`+n.name+`}`).is(t, nameInvalid(n.name, n.reason))
		}
		c.acquire(t, here.me.owner, strings.Repeat("a", 43)).Close()
	})
	try("a-name-that-is-taken", func(t *testing.T, c *connection) {
		s := c.acquire(t, here.me.owner, "ram")
		c.sessions(t, "Acquire", `{"name":"ram"}`).is(t, taken("ram"))
		others.sessions(t, "Acquire", `{"name":"ram"}`).is(t, taken("ram"))
		s.Close()
		// Now it's free, at once and by any connection.
		for range 50 {
			others.acquire(t, here.me.owner, "ram").Close()
			c.acquire(t, here.me.owner, "ram").Close()
		}
	})

	// Parameters.
	try("parameters", func(t *testing.T, c *connection) {
		for _, p := range []struct{ method, parameters, wrong string }{
			{"Acquire", `{}`, "name"},
			{"Acquire", `{"name":null}`, "name"},
			{"Acquire", `{"name":1}`, "name"},
			{"Acquire", `{"name":"ram","name":"rom"}`, "name"},
			{"Acquire", `{"name":"ram","Name":"rom"}`, "Name"},
			{"Acquire", `{"name":"ram","bogus":1}`, "bogus"},
			{"Acquire", `{"name":"ram","timeoutUSec":-1}`, "timeoutUSec"},
			{"Acquire", `{"name":"ram","timeoutUSec":1.5}`, "timeoutUSec"},
			{"Acquire", `{"name":"ram","timeoutUSec":9223372036854775808}`, "timeoutUSec"},
			{"Acquire", `{"name":"ram","subject":{"bogus":1}}`, "subject.bogus"},
			{"Acquire", `[]`, "parameters"},
			{"Describe", `{"bogus":1}`, "bogus"},
			{"Identify", `{}`, "sessionFileDescriptor"},
			{"Identify", `{"sessionFileDescriptor":0}`, "sessionFileDescriptor"},
			{"Identify", `{"sessionFileDescriptor":-1}`, "sessionFileDescriptor"},
			{"Identify", `{"sessionFileDescriptor":"0"}`, "sessionFileDescriptor"},
			{"Identify", `{"sessionFileDescriptor":4294967296}`, "sessionFileDescriptor"},
		} {
			c.sessions(t, p.method, p.parameters).is(t, invalid(p.wrong))
		}
		// With a descriptor, and not that one.
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		for _, index := range []string{"1", "-1", "2147483647"} {
			c.sessions(t, "Identify", `{"sessionFileDescriptor":`+index+`}`, int(null.Fd())).is(t, invalid("sessionFileDescriptor"))
		}
	})
	try("for-somebody-else", func(t *testing.T, c *connection) {
		for _, subject := range []struct{ subject, want string }{
			{`{}`, invalid("subject")},
			{`{"owner":"/other.service","pidFileDescriptor":0}`, invalid("subject")},
			{`{"owner":""}`, invalid("subject.owner")},
			{`{"owner":"/other.service/"}`, invalid("subject.owner")},
			{`{"pidFileDescriptor":1}`, invalid("subject.pidFileDescriptor")},
			{`{"pidFileDescriptor":-1}`, invalid("subject.pidFileDescriptor")},
			{`{"pidFileDescriptor":0}`, invalid("subject.pidFileDescriptor")}, // it is a file
			{`{"owner":"/other.service"}`, notPermittedBy(here.rule, "the rule does not let "+here.me.owner+" act for /other.service")},
		} {
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			c.sessions(t, "Acquire", `{"name":"ram","subject":`+subject.subject+`}`, int(null.Fd())).is(t, subject.want)
			c.sessions(t, "Park", `{"sessionFileDescriptor":1,"subject":`+subject.subject+`}`, int(null.Fd())).is(t, subject.want)
			c.sessions(t, "Reclaim", `{"name":"ram","subject":`+subject.subject+`}`, int(null.Fd())).is(t, subject.want)
			c.sessions(t, "Release", `{"name":"ram","subject":`+subject.subject+`}`, int(null.Fd())).is(t, subject.want)
			c.sessions(t, "Identify", `{"sessionFileDescriptor":1,"subject":`+subject.subject+`}`, int(null.Fd())).is(t, subject.want)
			null.Close()
		}
	})
	try("methods", func(t *testing.T, c *connection) {
		c.sessions(t, "Steal", `{}`).is(t, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"io.holdfast.Sessions.Steal"}}`)
		c.call(t, "io.holdfast.Nothing.Acquire", `{}`).is(t, `{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"io.holdfast.Nothing"}}`)
		c.call(t, "Acquire", `{}`).is(t, invalid("method"))
	})
	try("nobody-waits-for-the-session", func(t *testing.T, c *connection) {
		if err := c.send(`{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"ram"},"oneway":true}`); err != nil {
			t.Fatal(err)
		}
		c.acquire(t, here.me.owner, "ram").Close()
	})

	// Messages. Who sends one that is none has lost the connection.
	for what, message := range map[string]struct{ text, wrong string }{
		"invalid-UTF-8":      {"{\"method\":\"io.holdfast.Sessions.Acquire\",\"parameters\":{\"name\":\"\xff\xfe\"}}", "message"},
		"no-JSON":            {`{"method":`, "message"},
		"no-object":          {`["io.holdfast.Sessions.Describe"]`, "message"},
		"nothing":            {``, "message"},
		"deep-JSON":          {`{"method":"io.holdfast.Sessions.Describe","parameters":` + strings.Repeat(`[`, 10000) + strings.Repeat(`]`, 10000) + `}`, "message"},
		"an-unknown-field":   {`{"method":"io.holdfast.Sessions.Describe","bogus":1}`, "bogus"},
		"no-method":          {`{"parameters":{}}`, "method"},
		"a-method-twice":     {`{"method":"a.b","method":"io.holdfast.Sessions.Describe"}`, "method"},
		"16-MiB-of-JSON":     {`{"method":"io.holdfast.Sessions.Describe","parameters":{"x":"` + strings.Repeat("x", 16<<20) + `"}}`, "message"},
		"16-MiB-of-nothing":  {strings.Repeat(" ", 16<<20), "message"},
		"a-NUL-in-a-message": {"{\"method\":\"io.holdfast.Sessions.Acquire\",\"parameters\":{\"name\":\"ram\x00\"}}", "message"},
	} {
		try(what, func(t *testing.T, c *connection) {
			sent := make(chan error, 1)
			go func() { sent <- c.send(message.text) }()
			r, err := c.receive()
			if err != nil {
				t.Fatal(err)
			}
			r.is(t, invalid(message.wrong))
			c.closed(t)
			if err := <-sent; err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
				t.Error(err)
			}
		})
	}
	try("half-a-message", func(t *testing.T, c *connection) {
		pipe := newPipe(t)
		began := time.Now()
		if err := c.write([]byte(`{"method":"io.holdfast.Sessions.Describe",`), pipe.give()...); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := c.receive()
			ended <- err
		}()
		served := 0
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for waiting := true; waiting; {
			select {
			case err := <-ended:
				if err != io.EOF {
					t.Errorf("the connection: got %v, want it closed", err)
				}
				waiting = false
			case <-pace.C:
				others.acquire(t, here.me.owner, "ram").Close()
				served++
			}
		}
		if took := time.Since(began); took < 4*time.Second || took > 15*time.Second || served < 10 {
			t.Errorf("the connection was closed after %v, while %d others were served; want that after 5 s", took, served)
		}
		pipe.closed(t)
	})

	// Clients that disconnect.
	acquire := `{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"ram"}}`
	for what, leave := range map[string]func(t *testing.T, c *connection){
		"in-a-message": func(t *testing.T, c *connection) {
			pipe := newPipe(t)
			if err := c.write([]byte(acquire[:20]), pipe.give()...); err != nil {
				t.Fatal(err)
			}
			c.close()
			pipe.closed(t)
		},
		"in-a-call": func(t *testing.T, c *connection) {
			if err := c.send(acquire); err != nil {
				t.Fatal(err)
			}
		},
		"in-a-busy-call": func(t *testing.T, c *connection) {
			device := holdDevice(t)
			defer device.Close()
			if err := c.send(acquire); err != nil {
				t.Fatal(err)
			}
			c.taken(t)
			c.close()
			d.back(t, others, before) // while the device is still busy
		},
		"in-a-reply": func(t *testing.T, c *connection) {
			// The kernel holds a few hundred kilobytes of replies that are not read; then the daemon waits.
			many := strings.Repeat(`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.holdfast.Sessions"}}`+"\x00", 500)
			if err := c.write([]byte(many + acquire + "\x00")); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		},
		"with-descriptors-in-flight": func(t *testing.T, c *connection) {
			pipe := newPipe(t)
			message := `{"method":"io.holdfast.Sessions.Identify","parameters":{"sessionFileDescriptor":0}}`
			if err := c.send(message, pipe.give()...); err != nil {
				t.Fatal(err)
			}
			c.close()
			pipe.closed(t)
		},
		"with-its-session-in-flight": func(t *testing.T, c *connection) {
			if err := c.send(acquire); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err != nil { // the first byte has the descriptor, which is dropped so
				t.Fatal(err)
			}
		},
	} {
		try("it-disconnects-"+what, func(t *testing.T, c *connection) {
			leave(t, c)
			c.close()
			d.back(t, others, before)
			others.acquire(t, here.me.owner, "ram").Close()
		})
	}

	// Descriptors.
	try("253-descriptors", func(t *testing.T, c *connection) {
		pipe := newPipe(t)
		c.sessions(t, "Describe", `{}`)
		connected := d.descriptors(t)
		fds := pipe.give()
		for len(fds) < 253 {
			fds = append(fds, fds[0])
		}
		if err := c.send(`{"method":"io.holdfast.Sessions.Describe"}`, fds...); err != nil {
			t.Fatal(err)
		}
		r, err := c.receive()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(r.text), `"nameMax":43`) || len(r.fds) > 0 {
			t.Errorf("Describe: got %s", r)
		}
		pipe.closed(t)
		d.back(t, others, connected)
	})
	for what, open := range map[string]func() (int, error){
		"a-pipe": func() (int, error) {
			fds := make([]int, 2)
			err := unix.Pipe2(fds, unix.O_CLOEXEC)
			unix.Close(fds[1])
			return fds[0], err
		},
		"a-socket": func() (int, error) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			unix.Close(fds[1])
			return fds[0], err
		},
		"a-memfd":   func() (int, error) { return unix.MemfdCreate("[luo_session] ram", unix.MFD_CLOEXEC) },
		"/dev/null": func() (int, error) { return unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0) },
		"a-directory": func() (int, error) {
			return unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		},
		"an-epoll":   func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) },
		"an-eventfd": func() (int, error) { return unix.Eventfd(0, unix.EFD_CLOEXEC) },
		"a-pidfd":    func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) },
		"an-O_PATH":  func() (int, error) { return unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0) },
		"an-O_PATH-of-a-session": func() (int, error) {
			s := others.acquire(t, here.me.owner, "path")
			defer s.Close()
			raw := s.File()
			defer raw.Close()
			return unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
		},
		"a-file-called-as-a-session": func() (int, error) {
			return unix.Open(t.TempDir()+"/anon_inode:[luo_session] ram", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		},
	} {
		try("not-a-session:"+strings.TrimPrefix(what, "/"), func(t *testing.T, c *connection) {
			raw, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(raw)
			c.sessions(t, "Identify", `{"sessionFileDescriptor":0}`, raw).is(t, notASession)
			c.sessions(t, "Park", `{"sessionFileDescriptor":0}`, raw).is(t, notASession)
		})
	}
	try("not-a-session:a-socket-that-lingers", func(t *testing.T, c *connection) {
		socket, peer := lingering(t)
		message := `{"method":"io.holdfast.Sessions.Identify","parameters":{"sessionFileDescriptor":0}}`
		if err := c.write([]byte(message), socket); err != nil {
			t.Fatal(err)
		}
		unix.Close(socket) // there is one left, on its way: it's the daemon that closes it last
		if err := c.send(""); err != nil {
			t.Fatal(err)
		}
		r, err := c.receive()
		if err != nil {
			t.Fatal(err)
		}
		r.is(t, notASession)
		// That takes a minute, unless the peer goes away. Neither this client nor others wait.
		began := time.Now()
		c.sessions(t, "Describe", `{}`)
		others.acquire(t, here.me.owner, "ram").Close()
		if took := time.Since(began); took > patience {
			t.Errorf("others were served after %v", took)
		}
		peer.Close()
	})
	try("not-a-session:a-FUSE-file", func(t *testing.T, c *connection) {
		file := openFUSE(t, fuse.Flush)
		c.sessions(t, "Identify", `{"sessionFileDescriptor":0}`, int(file.Fd())).is(t, notASession)
		if !file.Asked(fuse.Flush, patience) { // the daemon closes it, and will wait for an answer
			t.Fatal("nobody asks")
		}
		c.sessions(t, "Describe", `{}`)
		others.acquire(t, here.me.owner, "ram").Close()
		file.End()
	})
	try("not-a-session:a-FUSE-file-that-says-nothing", func(t *testing.T, c *connection) {
		file := openFUSE(t, fuse.Flush, fuse.Statfs)
		if err := c.send(`{"method":"io.holdfast.Sessions.Identify","parameters":{"sessionFileDescriptor":0}}`, int(file.Fd())); err != nil {
			t.Fatal(err)
		}
		if !file.Asked(fuse.Statfs, patience) { // the daemon asks what it is
			t.Fatal("nobody asks")
		}
		others.acquire(t, here.me.owner, "ram").Close()
		file.End()
		r, err := c.receive()
		if err != nil {
			t.Fatal(err)
		}
		r.is(t, notASession)
	})
}

// pipe tells whether others have closed what they were given.
type pipe struct{ read, write *os.File }

func newPipe(t *testing.T) *pipe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return &pipe{r, w}
}

// give returns what to send along.
func (p *pipe) give() []int { return []int{int(p.write.Fd())} }

// closed waits until nobody else has it open.
func (p *pipe) closed(t *testing.T) {
	t.Helper()
	p.write.Close()
	p.read.SetReadDeadline(time.Now().Add(patience))
	if _, err := p.read.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor that was sent along is still open: %v", err)
	}
}

// lingering is a TCP socket with data that its peer does not read: to close it takes a minute.
func lingering(t *testing.T) (raw int, peer net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	raw, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	address := &unix.SockaddrInet4{Port: listener.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(raw, address); err != nil {
		t.Fatal(err)
	}
	if peer, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	if err := unix.SetsockoptLinger(raw, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 60}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = unix.SendmsgN(raw, make([]byte, 1<<16), nil, nil, unix.MSG_DONTWAIT)
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	return raw, peer
}
