// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What goes over the wire has the size of a call of Acquire and of its answer.
const (
	rawCall   = `{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"bench"}}` + "\x00"
	rawAnswer = `{"parameters":{"session":{"name":"bench","owner":"/hfvm.service","kernelName":"h1-ok2ohkddat64npei.bench","direction":"outgoing","parked":false,"foreign":false},"sessionFileDescriptor":0}}` + "\x00"
)

// rawServer answers the connection on descriptor 3 as plainly as Go can.
func rawServer() error {
	conn, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	rights := unix.UnixRights(null)
	buf, control := make([]byte, 4096), make([]byte, 64)
	for {
		if _, _, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(buf, control); err != nil {
			return nil // the client is done
		}
		if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte(rawAnswer), rights, nil); err != nil {
			return err
		}
	}
}

// dialRaw starts a rawServer. once gets a descriptor from it and closes it.
func dialRaw() (once func() error, stop func(), err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	address := &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	conn, err := net.DialUnix("unix", nil, address)
	if err != nil {
		return nil, nil, err
	}
	accepted, err := listener.AcceptUnix()
	if err != nil {
		return nil, nil, err
	}
	defer accepted.Close()
	file, err := accepted.File()
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	server := exec.Command("/proc/self/exe", "raw-server")
	server.ExtraFiles, server.Stderr = []*os.File{file}, os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	buf, control := make([]byte, 4096), make([]byte, 64)
	once = func() error {
		if _, _, err := conn.WriteMsgUnix([]byte(rawCall), nil, nil); err != nil {
			return err
		}
		_, n, _, _, err := conn.ReadMsgUnix(buf, control)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil || len(messages) != 1 {
			return fmt.Errorf("%d control messages came: %w", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		return unix.Close(fds[0])
	}
	return once, func() { conn.Close(); server.Wait() }, nil
}
