// SPDX-License-Identifier: MIT

//go:build unix

package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// standIn greets as QEMU 7.2 does, and answers each command by the function; an empty answer is none.
func standIn(t *testing.T, answer func(name string, arguments json.RawMessage) string) *net.UnixConn {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "monitor"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer there.Close()
		fmt.Fprintln(there, `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`)
		lines := bufio.NewScanner(there)
		for lines.Scan() {
			var c struct {
				Execute   string          `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
				ID        uint64          `json:"id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("%q: %v", lines.Text(), err)
				return
			}
			said := `"return": {}`
			if c.Execute != "qmp_capabilities" {
				said = answer(c.Execute, c.Arguments)
			}
			if said != "" {
				fmt.Fprintf(there, "{%s, \"id\": %d}\r\n", said, c.ID)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn.(*net.UnixConn)
}

func TestDo(t *testing.T) {
	conn := standIn(t, func(name string, arguments json.RawMessage) string {
		switch name {
		case "query-status":
			// Events may come at any time, also between a command and its answer.
			return `"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n" + `{"return": {"status": "paused", "running": false}`
		case "migrate":
			if string(arguments) != `{"uri":"fd:state"}` {
				t.Errorf("the arguments of migrate are %s", arguments)
			}
			return `"error": {"class": "GenericError", "desc": "State blocked"}`
		}
		return `"error": {"class": "CommandNotFound", "desc": "what"}`
	})
	client, err := New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var status struct{ Status string }
	if err := client.Do(t.Context(), "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	err = client.Do(t.Context(), "migrate", map[string]string{"uri": "fd:state"}, nil)
	var refused *Error
	if !errors.As(err, &refused) || refused.Class != "GenericError" || !strings.Contains(err.Error(), "migrate: State blocked") {
		t.Errorf("migrate: %v", err)
	}
}

func TestSilence(t *testing.T) {
	client, err := New(t.Context(), standIn(t, func(string, json.RawMessage) string { return "" }))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := client.Do(ctx, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
}

func TestNoQEMU(t *testing.T) {
	for said, want := range map[string]string{
		"":                      io.EOF.Error(),
		"QEMU 7.2.22 monitor\n": "invalid character",
		"{\"return\": {}}\n":    "mode=control",
	} {
		fds := pair(t)
		if _, err := fds[1].WriteString(said); err != nil {
			t.Fatal(err)
		}
		fds[1].Close()
		conn, err := net.FileConn(fds[0])
		if err != nil {
			t.Fatal(err)
		}
		fds[0].Close()
		if _, err := New(t.Context(), conn.(*net.UnixConn)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("after %q: %v", said, err)
		}
		conn.Close()
	}
}

func pair(t *testing.T) [2]*os.File {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	return [2]*os.File{os.NewFile(uintptr(fds[0]), "here"), os.NewFile(uintptr(fds[1]), "there")}
}
