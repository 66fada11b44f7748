// SPDX-License-Identifier: MIT

package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// manager is the other end of a notify socket.
func manager(t *testing.T) *net.UnixConn {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// receive returns a message and its descriptors.
func receive(t *testing.T, conn *net.UnixConn) (string, []int) {
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		rights, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, rights...)
	}
	return string(data[:n]), fds
}

func TestNotifyWithDescriptor(t *testing.T) {
	conn := manager(t)
	if err := (&Store{}).Send("name", 0); err != nil {
		t.Fatal(err)
	}
	state, fds := receive(t, conn)
	if state != "FDSTORE=1\nFDPOLL=0\nFDNAME=name" || len(fds) != 1 {
		t.Errorf("%q with %d descriptors", state, len(fds))
	}
	for _, f := range fds {
		unix.Close(f)
	}
}

func TestBarrierEndsWhenTheManagerClosesIt(t *testing.T) {
	conn := manager(t)
	done := make(chan error, 1)
	go func() { done <- Barrier(context.Background()) }()
	state, fds := receive(t, conn)
	if state != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("%q with %d descriptors", state, len(fds))
	}
	select {
	case err := <-done:
		t.Fatalf("ended before it was closed: %v", err)
	default:
	}
	unix.Close(fds[0])
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBarrierEndsWithItsContext(t *testing.T) {
	conn := manager(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_, fds := receive(t, conn)
	unix.Close(fds[0])
}

func TestNoNotifySocket(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	os.Unsetenv("NOTIFY_SOCKET")
	if err := Notify("READY=1"); !errors.Is(err, ErrNoNotifySocket) {
		t.Error(err)
	}
}

func TestListenFDsAreForThisProcessOnly(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", "1")
	if got := ListenFDs(); got != nil {
		t.Errorf("%v", got)
	}
}
