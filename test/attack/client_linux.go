// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const address = "/run/holdfast/io.holdfast"

// patience is how long anybody waits for an answer: longer than a bystander may have to.
const patience = 11 * time.Second

// conn is a connection to holdfastd, without the good manners of the client library.
type conn struct {
	c   *net.UnixConn
	buf []byte
	fds []int
}

func dial() *conn {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // while the queue is full
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
			must(err)
			return &conn{c: c}
		}
	}
}

// connOf is the connection that a descriptor is of.
func connOf(raw int) *conn {
	f := os.NewFile(uintptr(raw), "connection")
	defer f.Close()
	c, err := net.FileConn(f)
	must(err)
	return &conn{c: c.(*net.UnixConn)}
}

func (c *conn) close() {
	c.c.Close()
	closeFDs(c.fds)
}

func closeFDs(fds []int) {
	for _, raw := range fds {
		unix.Close(raw)
	}
}

func (c *conn) write(data []byte, fds ...int) error {
	c.c.SetWriteDeadline(time.Now().Add(patience))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.c.WriteMsgUnix(data, rights, nil)
	if err == nil && n < len(data) {
		_, err = c.c.Write(data[n:])
	}
	return err
}

// object is a JSON object.
type object = map[string]any

// message is a call.
func message(method string, parameters object) []byte {
	data, err := json.Marshal(object{"method": "io.holdfast.Sessions." + method, "parameters": parameters})
	must(err)
	return append(data, 0)
}

// reply is an answer.
type reply struct {
	Error      string
	Parameters struct {
		Session               struct{ KernelName string }
		SessionFileDescriptor int
		Files                 []struct {
			Name           string
			FileDescriptor int
		}
		Sessions []struct{ KernelName string }
		Yours    bool
	}
	text string
	fds  []int
}

func (c *conn) receive() (*reply, error) {
	c.c.SetReadDeadline(time.Now().Add(patience))
	for {
		if i := bytes.IndexByte(c.buf, 0); i >= 0 {
			r := &reply{text: string(c.buf[:i]), fds: c.fds}
			c.buf, c.fds = c.buf[i+1:], nil
			return r, json.Unmarshal([]byte(r.text), r)
		}
		data, control := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4*253))
		n, oobn, _, _, err := c.c.ReadMsgUnix(data, control)
		if err != nil {
			return nil, err
		}
		if n == 0 && oobn == 0 {
			return nil, fmt.Errorf("holdfastd has hung up")
		}
		messages, err := unix.ParseSocketControlMessage(control[:oobn])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if fds, err := unix.ParseUnixRights(&m); err == nil {
				c.fds = append(c.fds, fds...)
			}
		}
		c.buf = append(c.buf, data[:n]...)
	}
}

// try is call, with the connection's failure as an error.
func (c *conn) try(method string, parameters object, fds ...int) (*reply, error) {
	if err := c.write(message(method, parameters), fds...); err != nil {
		return nil, err
	}
	return c.receive()
}

func (c *conn) call(method string, parameters object, fds ...int) *reply {
	r, err := c.try(method, parameters, fds...)
	if err != nil {
		panic(wrong("%s: %v", method, err))
	}
	return r
}

// is tells whether the answer is one of these errors of the interface.
func (r *reply) is(errors ...string) bool {
	short := r.Error[strings.LastIndexByte(r.Error, '.')+1:]
	return r.Error != "" && slices.Contains(errors, short)
}

// ok panics where the answer is an error.
func (r *reply) ok() *reply {
	if r.Error != "" {
		panic(wrong("got %s", r.text))
	}
	return r
}

// unless is the verdict of an attempt that has succeeded if the answer isn't one of these errors.
func (r *reply) unless(errors ...string) verdict {
	switch {
	case r.Error == "":
		return got("%s", r.text)
	case r.is(errors...):
		return not("%s", r.text)
	}
	return wrong("expected %s, got %s", strings.Join(errors, " or "), r.text)
}

// unlessMemory is the same for an attempt to get the memory of somebody.
func (r *reply) unlessMemory(owner string, errors ...string) verdict {
	if r.Error != "" {
		return r.unless(errors...)
	}
	content, err := r.file(memoryName)
	if err != nil {
		return wrong("got %s, and not the memory: %v", r.text, err)
	}
	if !strings.HasPrefix(content, secret(owner)) {
		return wrong("got %s with memory that is not that of %s", r.text, owner)
	}
	return got("has read %q", secret(owner))
}

// session is the descriptor of the session that came with the answer.
func (r *reply) session() int { return r.fds[r.ok().Parameters.SessionFileDescriptor] }

// file is what is in a file that came with the answer.
func (r *reply) file(name string) (string, error) {
	for _, f := range r.Parameters.Files {
		if f.Name == name {
			content := make([]byte, memorySize)
			n, err := unix.Pread(r.fds[f.FileDescriptor], content, 0)
			return string(content[:max(n, 0)]), err
		}
	}
	return "", fmt.Errorf("no file %q came with %s", name, r.text)
}

// memory is a memfd with this in it.
func memory(content string) int {
	raw := must1(unix.MemfdCreate("memory", unix.MFD_CLOEXEC))
	must(unix.Ftruncate(raw, memorySize))
	must1(unix.Pwrite(raw, []byte(content), 0))
	return raw
}

// park has a session of one's own parked, with these files from index 1 on.
func (c *conn) park(session int, names []string, fds ...int) *reply {
	return c.call("Park", object{"sessionFileDescriptor": 0, "files": files(names)}, append([]int{session}, fds...)...)
}

func files(names []string) []object {
	list := []object{}
	for i, n := range names {
		list = append(list, object{"name": n, "fileDescriptor": i + 1})
	}
	return list
}
