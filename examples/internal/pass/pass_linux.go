// SPDX-License-Identifier: MIT

// Package pass gives files from a manager to a machine that it starts, with their names.
package pass

import (
	"encoding/json"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Pair is two ends of a connection that keeps messages apart.
func Pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	there := os.NewFile(uintptr(fds[1]), "machine")
	here, err := Conn(os.NewFile(uintptr(fds[0]), "manager"))
	if err != nil {
		there.Close()
		return nil, nil, err
	}
	return here, there, nil
}

// Conn is a socket's connection. The file is closed.
func Conn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("what was inherited is no unix socket; it is the manager that starts machines")
	}
	return unixConn, nil
}

// Send passes files on, in one message with their names. There may be none.
func Send(conn *net.UnixConn, files []*os.File) error {
	var names []string
	var fds []int
	for _, f := range files {
		names = append(names, f.Name())
		fds = append(fds, int(f.Fd()))
	}
	data, err := json.Marshal(names)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(data, rights, nil)
	return err
}

// Receive gets what Send has sent. The files are the caller's to close.
func Receive(conn *net.UnixConn) ([]*os.File, error) {
	data, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*253)) // SCM_MAX_FD of include/net/scm.h
	n, controls, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("the manager has ended")
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err == nil && len(messages) == 1 {
		var fds []int
		fds, err = unix.ParseUnixRights(&messages[0])
		var names []string
		err = errors.Join(err, json.Unmarshal(data[:n], &names))
		for i, fd := range fds {
			name := ""
			if i < len(names) {
				name = names[i]
			}
			files = append(files, os.NewFile(uintptr(fd), name))
		}
	}
	if err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
