// SPDX-License-Identifier: MIT

package systemd

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// dialPrivate connects to PID 1's own socket.
//
// The authentication is sent in one piece, as libsystemd does. A client that sends BEGIN by itself, as godbus does, and
// its first message right after it, has both read at once by the server, which then sees the message only when
// another one arrives, and hangs up if a descriptor came with it (bus_socket_read_auth,
// src/libsystemd/sd-bus/bus-socket.c, systemd 262).
func dialPrivate(ctx context.Context) (*dbus.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/run/systemd/private")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	bus, err := authenticate(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("/run/systemd/private: %w", err)
	}
	return bus, nil
}

func authenticate(conn net.Conn) (*dbus.Conn, error) {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := io.WriteString(conn, "\x00AUTH EXTERNAL "+uid+"\r\nBEGIN\r\n"); err != nil {
		return nil, err
	}
	// The server says nothing more before it is spoken to, so the reader takes nothing that isn't its own.
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(answer, "OK ") {
		return nil, fmt.Errorf("PID 1 does not let uid %d in: %s", os.Geteuid(), strings.TrimSpace(answer))
	}
	bus, err := dbus.NewConn(&authenticated{Conn: conn, answers: []string{"REJECTED EXTERNAL\r\n", answer}})
	if err != nil {
		return nil, err
	}
	return bus, bus.Auth([]dbus.Auth{done{}})
}

// authenticated plays the authentication that is over already to godbus, which insists on its own.
type authenticated struct {
	net.Conn
	answers []string
	begun   bool
}

func (a *authenticated) Read(p []byte) (int, error) {
	if len(a.answers) == 0 {
		return a.Conn.Read(p)
	}
	n := copy(p, a.answers[0])
	if a.answers[0] = a.answers[0][n:]; a.answers[0] == "" {
		a.answers = a.answers[1:]
	}
	return n, nil
}

func (a *authenticated) Write(p []byte) (int, error) {
	if !a.begun {
		a.begun = string(p) == "BEGIN\r\n"
		return len(p), nil
	}
	return a.Conn.Write(p)
}

// done is the mechanism of an authentication that is over.
type done struct{}

func (done) FirstData() ([]byte, []byte, dbus.AuthStatus) {
	return []byte("EXTERNAL"), nil, dbus.AuthOk
}
func (done) HandleData([]byte) ([]byte, dbus.AuthStatus) { return nil, dbus.AuthError }
