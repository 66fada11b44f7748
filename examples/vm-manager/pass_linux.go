// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketPair is two ends of a connection that keeps messages apart.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	there := os.NewFile(uintptr(fds[1]), "guest")
	here, err := connOf(os.NewFile(uintptr(fds[0]), "manager"))
	if err != nil {
		there.Close()
		return nil, nil, err
	}
	return here, there, nil
}

// connOf is a socket's connection. The file is closed.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("descriptor 3 is no unix socket; it is the manager that starts guests")
	}
	return unixConn, nil
}

// send passes files on, in one message with their names.
func send(conn *net.UnixConn, files []*os.File) error {
	var names []string
	var fds []int
	for _, f := range files {
		names = append(names, f.Name())
		fds = append(fds, int(f.Fd()))
	}
	data, err := json.Marshal(names)
	if err == nil {
		_, _, err = conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	}
	return err
}

// receive gets what send has sent. The files are the caller's to close.
func receive(conn *net.UnixConn) ([]*os.File, error) {
	data, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*253)) // SCM_MAX_FD of include/net/scm.h
	n, controls, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return nil, err
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
	if err == nil && len(files) == 0 {
		err = errors.New("the manager passed nothing on")
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
