// SPDX-License-Identifier: MIT

// Package qemu runs a machine in a QEMU as it is, with its RAM in a memfd that outlives it.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/examples/vmm/qmp"
)

// Config is what a machine is made of. It must be the same when the machine is restored.
type Config struct {
	Program string // qemu-system-x86_64, if it is empty
	Kernel  string
	Initrd  string
	Append  string // the command line of its kernel

	Console *os.File // gets what the machine says on its serial line
	Log     io.Writer
}

// Machine is a QEMU that runs.
type Machine struct {
	monitor *qmp.Client
	process *exec.Cmd
	done    chan struct{}
	err     error // of the process, once done
}

// Start starts a machine. Its RAM is all of the memfd, which stays the caller's.
func Start(ctx context.Context, c Config, ram *os.File) (*Machine, error) {
	return start(ctx, c, ram)
}

// Restore makes a machine of RAM and the state that Save has returned with it. It stands still until Continue.
func Restore(ctx context.Context, c Config, ram *os.File, state []byte) (*Machine, error) {
	m, err := start(ctx, c, ram, "-incoming", "defer", "-S")
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx, state); err != nil {
		m.Kill()
		return nil, fmt.Errorf("restoring the machine: %w", err)
	}
	return m, nil
}

func start(ctx context.Context, c Config, ram *os.File, more ...string) (*Machine, error) {
	info, err := ram.Stat()
	if err != nil {
		return nil, err
	}
	here, there, err := connection("monitor")
	if err != nil {
		return nil, err
	}
	args := []string{
		// RDRAND, or a guest's first random number takes seconds to come.
		"-accel", "tcg", "-cpu", "qemu64,+rdrand", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		// Descriptors 3 and 4 are ExtraFiles below.
		"-machine", "pc,memory-backend=ram", "-m", fmt.Sprintf("%dM", info.Size()>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,mem-path=/proc/self/fd/3,size=%d,share=on", info.Size()),
		"-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control",
		"-kernel", c.Kernel, "-append", c.Append,
	}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	program := c.Program
	if program == "" {
		program = "qemu-system-x86_64"
	}
	m := &Machine{done: make(chan struct{}), process: exec.Command(program, append(args, more...)...)}
	m.process.Stdout, m.process.Stderr = c.Console, c.Log
	m.process.ExtraFiles = []*os.File{ram, there}
	// Without whom it has its state saved by, it mustn't run on.
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = m.process.Start()
	there.Close()
	if err != nil {
		here.Close()
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	go func() {
		m.err = m.process.Wait()
		close(m.done)
	}()
	if m.monitor, err = qmp.New(ctx, here); err != nil {
		here.Close()
		m.process.Process.Kill()
		<-m.done
		return nil, fmt.Errorf("QEMU doesn't come up (%v): %w", m.err, err)
	}
	return m, nil
}

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err is how it ended, once it is done.
func (m *Machine) Err() error {
	if m.err == nil {
		return errors.New("QEMU has ended by itself")
	}
	return fmt.Errorf("QEMU has ended: %w", m.err)
}

// Kill ends QEMU.
func (m *Machine) Kill() {
	m.process.Process.Kill()
	<-m.done
	m.monitor.Close()
}

// Stands makes sure that QEMU answers, and that the processors stand still.
func (m *Machine) Stands(ctx context.Context) error {
	var status struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	if err := m.monitor.Do(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if status.Running {
		return fmt.Errorf("the machine runs: it is %q", status.Status)
	}
	return nil
}

// Continue has the machine run, from where it was stopped. After a [*qmp.Error] it hasn't; after any other it may have.
func (m *Machine) Continue(ctx context.Context) error { return m.monitor.Do(ctx, "cont", nil, nil) }

// Stop has the processors stand still. QEMU writes nothing to the RAM from then on.
func (m *Machine) Stop(ctx context.Context) error { return m.monitor.Do(ctx, "stop", nil, nil) }

// Save returns the state of all that isn't RAM, of no more than so many bytes. The machine must stand still; it can go on,
// with Continue, after an error too.
func (m *Machine) Save(ctx context.Context, most int) ([]byte, error) {
	if err := m.leaveRAM(ctx); err != nil {
		return nil, err
	}
	here, err := m.pass(ctx, "state")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	// It is a socket, since newer versions of QEMU want a plain file as file:, which older ones don't know.
	if err := m.monitor.Do(ctx, "migrate", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { here.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	state, err := io.ReadAll(io.LimitReader(here, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	// All of it is taken, in any case: QEMU 7.2 hangs in the next migration after one that was broken off.
	rest, err := io.Copy(io.Discard, here)
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if err := m.migrated(ctx); err != nil {
		return nil, err
	}
	if size := int64(len(state)) + rest; size > int64(most) {
		return nil, fmt.Errorf("the state of the machine's devices has %d bytes, and there is room for %d", size, most)
	}
	return state, nil
}

func (m *Machine) load(ctx context.Context, state []byte) error {
	if err := m.leaveRAM(ctx); err != nil {
		return err
	}
	here, err := m.pass(ctx, "state")
	if err != nil {
		return err
	}
	defer here.Close()
	if err := m.monitor.Do(ctx, "migrate-incoming", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { here.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := here.Write(state); err != nil {
		return fmt.Errorf("passing the state: %w", err)
	}
	if err := here.CloseWrite(); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// leaveRAM has QEMU leave out of a state what lies in shared files.
func (m *Machine) leaveRAM(ctx context.Context) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return m.monitor.Do(ctx, "migrate-set-capabilities", map[string][]capability{"capabilities": {{"x-ignore-shared", true}}}, nil)
}

// pass gives QEMU one end of a connection under a name.
func (m *Machine) pass(ctx context.Context, name string) (*net.UnixConn, error) {
	here, there, err := connection(name)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := m.monitor.Do(ctx, "getfd", map[string]string{"fdname": name}, nil, there); err != nil {
		here.Close()
		return nil, err
	}
	return here, nil
}

// migrated waits until the migration is over, either way.
func (m *Machine) migrated(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var migration struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.monitor.Do(ctx, "query-migrate", nil, &migration); err != nil {
			return err
		}
		switch migration.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("qemu says that it has %s: %s", migration.Status, migration.Error)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the migration is %q: %w", migration.Status, context.Cause(ctx))
		}
	}
}

func connection(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	there := os.NewFile(uintptr(fds[1]), name)
	f := os.NewFile(uintptr(fds[0]), name)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		there.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), there, nil
}

// NewMemory is a memfd for RAM or a state.
func NewMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
