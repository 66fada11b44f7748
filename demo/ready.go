// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// ready starts a command in the background and returns when it has said READY=1, as systemd does for a service with
// Type=notify.
func ready(command []string) error {
	if len(command) == 0 {
		return errors.New("ready: start which command?")
	}
	path := fmt.Sprintf("notify.%d", os.Getpid())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer os.Remove(path)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		cmd.Wait()
		conn.Close()
	}()
	message := make([]byte, 4096)
	for {
		n, err := conn.Read(message)
		if err != nil {
			return fmt.Errorf("%s ended before it was ready: %v", strings.Join(command, " "), cmd.ProcessState)
		}
		if slices.Contains(strings.Split(string(message[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}
