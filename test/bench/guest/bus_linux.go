// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	busName   = "io.holdfast.Bench"
	busPath   = "/io/holdfast/Bench"
	busMethod = busName + ".Get"
)

// busConfig is a bus for whoever reaches its socket.
const busConfig = `<busconfig>
  <type>session</type>
  <listen>unix:dir=%s</listen>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
`

type busService struct{ null dbus.UnixFD }

func (s busService) Get() (dbus.UnixFD, *dbus.Error) { return s.null, nil }

// busServer serves the bus at $DBUS_SESSION_BUS_ADDRESS until standard input ends.
func busServer() error {
	conn, err := dbus.ConnectSessionBus()
	if err != nil {
		return err
	}
	defer conn.Close()
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := conn.Export(busService{dbus.UnixFD(null)}, busPath, busName); err != nil {
		return err
	}
	if _, err := conn.RequestName(busName, dbus.NameFlagDoNotQueue); err != nil {
		return err
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return nil
}

// dialBus starts a bus of its own with a busServer on it. once gets a descriptor from it and closes it.
func dialBus() (once func() error, stop func(), err error) {
	dir, err := os.MkdirTemp("", "bench-bus-")
	if err != nil {
		return nil, nil, err
	}
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, dir), 0o600); err != nil {
		return nil, nil, err
	}
	daemon := exec.Command("dbus-daemon", "--nofork", "--print-address", "--config-file", config)
	address, err := startAndRead(daemon)
	if err != nil {
		return nil, nil, err
	}
	server := exec.Command("/proc/self/exe", "bus-server")
	server.Env = append(os.Environ(), "DBUS_SESSION_BUS_ADDRESS="+address)
	stdin, err := server.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if _, err := startAndRead(server); err != nil {
		return nil, nil, err
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		return nil, nil, err
	}
	object := conn.Object(busName, busPath)
	once = func() error {
		var fd dbus.UnixFD
		if err := object.Call(busMethod, 0).Store(&fd); err != nil {
			return err
		}
		return unix.Close(int(fd))
	}
	return once, func() {
		conn.Close()
		stdin.Close()
		server.Wait()
		daemon.Process.Kill()
		daemon.Wait()
		os.RemoveAll(dir)
	}, nil
}

// startAndRead starts a program and waits for its first line.
func startAndRead(cmd *exec.Cmd) (string, error) {
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s said nothing: %w", cmd, err)
	}
	return strings.TrimSpace(line), nil
}
