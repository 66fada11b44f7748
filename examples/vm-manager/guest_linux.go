// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/examples/internal/pass"
)

// size is that of a machine's memory, in bytes.
const size = 8 << 20

// parkTimeout is less than what systemd gives a scope to stop (DefaultTimeoutStopSec=, 90 s).
const parkTimeout = time.Minute

// machine is one while it runs. It has a session of this kernel, or one that came from before and is to be renewed.
type machine struct {
	client    *holdfast.Client
	memory    *os.File
	session   *holdfast.Session
	committed *holdfast.Committed
}

func guest(ctx context.Context) error {
	conn, err := pass.Conn(os.NewFile(3, "manager"))
	if err != nil {
		return err
	}
	defer conn.Close()
	m, came, err := newMachine(ctx, conn)
	if err != nil {
		fmt.Fprintf(conn, "error %v", err)
		return err
	}
	defer m.client.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(m.memory, 0, size)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "%s %x", came, sum.Sum(nil)); err != nil {
		return err
	}
	<-ctx.Done()

	// The processors stand still. A machine would write the state of its devices now, into a file of the session.
	stopping, cancel := context.WithTimeout(context.Background(), parkTimeout)
	defer cancel()
	return m.park(stopping)
}

// newMachine waits for what the manager passes on, and says where it came from.
func newMachine(ctx context.Context, conn *net.UnixConn) (*machine, string, error) {
	files, err := pass.Receive(conn)
	if err != nil {
		return nil, "", err
	}
	defer pass.CloseAll(files)
	// Not earlier: the orchestrator goes by the cgroup, and by now that is the scope.
	m := &machine{}
	if m.client, err = holdfast.Dial(ctx); err != nil {
		return nil, "", err
	}
	m.committed, err = m.client.TakeOver(ctx, files)
	if errors.Is(err, holdfast.ErrNoSuchSession) {
		if m.session, err = m.client.Adopt(ctx, files[0]); err != nil {
			return nil, "", err
		}
		if m.memory, err = newMemory(); err != nil {
			return nil, "", err
		}
		// Now, as it takes its time: the machine has yet to start.
		return m, "fresh", m.session.Preserve(fileName, m.memory)
	}
	if err != nil {
		return nil, "", err
	}
	came := "parked"
	if m.committed.Incoming() {
		came = "update"
	}
	memory, err := m.committed.Retrieve() // in this cgroup, which pays
	if err != nil {
		return nil, "", err
	}
	m.memory = memory[fileName]
	return m, came, nil
}

// newMemory has random bytes: what an operating system would make of it in time.
func newMemory() (*os.File, error) {
	raw, err := unix.MemfdCreate(fileName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(raw), fileName)
	_, err = io.CopyN(memory, rand.Reader, size)
	return memory, err
}

func (m *machine) park(ctx context.Context) error {
	if m.session != nil {
		return m.session.Park(ctx, m.client)
	}
	_, err := holdfast.Renew(ctx, m.client, m.committed, holdfast.WithParking())
	return err
}
