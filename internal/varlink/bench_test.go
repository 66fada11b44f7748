// SPDX-License-Identifier: MIT

//go:build linux

package varlink_test

import (
	"context"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const benchReply = `{"parameters":{"session":{"name":"ram","owner":"/vmm.service","kernelName":"h1-ok2ohkddat64npei.ram","direction":"outgoing","parked":false,"foreign":false},"sessionFileDescriptor":0}}` + "\x00"

const benchCall = `{"method":"io.holdfast.Bench.Acquire","parameters":{"name":"ram"}}` + "\x00"

// BenchmarkRawEcho is the floor: the same bytes and one descriptor, without varlink.
func BenchmarkRawEcho(b *testing.B) {
	path := filepath.Join(b.TempDir(), "socket")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	sent := benchFD(b)
	go func() {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		buf, oob := make([]byte, 4096), make([]byte, 64)
		rights := syscall.UnixRights(sent.Raw())
		for {
			if _, _, _, _, err := conn.ReadMsgUnix(buf, oob); err != nil {
				return
			}
			if _, _, err := conn.WriteMsgUnix([]byte(benchReply), rights, nil); err != nil {
				return
			}
		}
	}()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := conn.WriteMsgUnix([]byte(benchCall), nil, nil); err != nil {
			b.Fatal(err)
		}
		_, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			b.Fatal(err)
		}
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			b.Fatal(err)
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil {
			b.Fatal(err)
		}
		syscall.Close(fds[0])
	}
}

func BenchmarkCall(b *testing.B) {
	type session struct {
		Name       *string `json:"name,omitempty"`
		Owner      *string `json:"owner,omitempty"`
		KernelName string  `json:"kernelName"`
		Direction  string  `json:"direction"`
		Parked     bool    `json:"parked"`
		Foreign    bool    `json:"foreign"`
	}
	type reply struct {
		Session               session `json:"session"`
		SessionFileDescriptor int     `json:"sessionFileDescriptor"`
	}
	sent := benchFD(b)
	acquire := func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
		var in struct {
			Name        string `json:"name"`
			Fresh       *bool  `json:"fresh"`
			TimeoutUSec *int64 `json:"timeoutUSec"`
		}
		if err := call.Parameters(&in); err != nil {
			return nil, err
		}
		f, err := sent.Dup()
		if err != nil {
			return nil, err
		}
		owner := "/vmm.service"
		return &varlink.Reply{
			Parameters: reply{Session: session{Name: &in.Name, Owner: &owner, KernelName: "h1-ok2ohkddat64npei.ram", Direction: "outgoing"}},
			FDs:        []*fd.FD{f},
		}, nil
	}
	path, _ := serve(b, &varlink.Server{}, varlink.Interface{
		Name:        "io.holdfast.Bench",
		Description: "interface io.holdfast.Bench\nmethod Acquire(name: string) -> (session: object, sessionFileDescriptor: int)\n",
		Methods:     map[string]varlink.Method{"Acquire": acquire},
	})
	c := dial(b, path)
	type params struct {
		Name string `json:"name"`
	}
	b.ReportAllocs()
	for b.Loop() {
		var out reply
		fds, err := c.Call(context.Background(), "io.holdfast.Bench.Acquire", params{"ram"}, nil, &out)
		if err != nil {
			b.Fatal(err)
		}
		fd.CloseAll(fds)
	}
}

func benchFD(b *testing.B) *fd.FD {
	f, err := pipeWith("")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}
