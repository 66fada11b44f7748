// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
	pid1test "github.com/holdfast-project/holdfast/test/pid1"
)

// pid1 is PID 1 with holdfastd.service and holdfastd.socket, over updates.
type pid1 struct {
	pid1test.PID1
	command  []string
	log      *os.File
	socket   *os.File // holdfastd.socket
	failures func(format string, args ...any)

	mu       sync.Mutex
	main     int // the PID of holdfastd
	ready    chan struct{}
	ended    chan struct{} // of this holdfastd
	stopping bool
	starts   int
	killed   int // the PID of the holdfastd that the test has killed; the test's alone
	// hold is called once, with the process of the next start before it is holdfastd.
	hold func(pid int)
}

// ownSession is the session in which PID 1 takes over what is in no other (src/core/luo.c).
const ownSession = "systemd"

// boot begins where the kernel before ended.
func bootPID1(ctx context.Context, command []string, log *os.File, failures func(string, ...any)) (*pid1, error) {
	p := &pid1{PID1: pid1test.PID1{Unit: "holdfastd.service", Max: 4096, Fail: failures}, command: command, log: log, failures: failures}
	p.Ready = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-p.ready:
		default:
			close(p.ready)
		}
	}
	if err := p.restore(ctx); err != nil {
		return nil, fmt.Errorf("restoring the store: %w", err)
	}
	// /run lasts as long as the namespace, and so over the updates.
	if err := os.Remove(holdfast.Address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: holdfast.Address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if p.socket, err = listener.File(); err != nil {
		return nil, err
	}
	if err := p.Listen(); err != nil {
		return nil, err
	}
	return p, p.start()
}

// start starts holdfastd: the sockets first, then what is stored (service_collect_fds). The shell is there for
// $LISTEN_PID, and waits until whoever wants to has a hold of it.
func (p *pid1) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	names, extra := []string{"varlink"}, []*os.File{p.socket}
	for _, s := range p.Store() {
		fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), s.Name)
		defer f.Close()
		names, extra = append(names, s.Name), append(extra, f)
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; read go; exec "$0" "$@" </dev/null`}, p.command...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+pid1test.NotifyPath, "LISTEN_FDS="+strconv.Itoa(len(extra)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.ExtraFiles = extra
	cmd.Stdout, cmd.Stderr = p.log, p.log
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.main, p.ready, p.ended = cmd.Process.Pid, make(chan struct{}), make(chan struct{})
	p.SetMain(p.main)
	p.starts++
	if hold := p.hold; hold != nil {
		p.hold = nil
		hold(p.main)
	}
	gate.Close()
	go p.reap(cmd, pidfd, p.ended)
	return nil
}

// reap starts another one when this one has ended. Nobody waits for the process before that: the kernel would tell the
// waiting thread of a stop that is for the tracer (wait_task_stopped in kernel/exit.c, Linux 7.3).
func (p *pid1) reap(cmd *exec.Cmd, pidfd int, ended chan struct{}) {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for poll[0].Revents == 0 {
		unix.Poll(poll, -1)
	}
	unix.Close(pidfd)
	err := cmd.Wait()
	p.mu.Lock()
	p.main = 0
	p.SetMain(0)
	stopping := p.stopping
	p.mu.Unlock()
	close(ended)
	if stopping {
		return
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGKILL {
		log, _ := os.ReadFile(p.log.Name())
		p.failures("holdfastd ended by itself: %v\n%s", err, log[max(0, len(log)-1024):])
	}
	if err := p.start(); err != nil {
		p.failures("starting holdfastd: %v", err)
	}
}

// holdNext has the next start held.
func (p *pid1) holdNext(hold func(pid int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = hold
}

// daemon waits until there is a holdfastd that is ready, and isn't the one that was killed.
func (p *pid1) daemon() (int, error) {
	limit := time.After(deadline)
	for {
		p.mu.Lock()
		pid, ready, ended := p.main, p.ready, p.ended
		p.mu.Unlock()
		if pid == p.killed {
			ready = nil
		}
		select {
		case <-ready:
			select {
			case <-ended:
			default:
				return pid, nil
			}
		case <-ended:
		case <-limit:
			return 0, errors.New("holdfastd did not get ready")
		}
		// The next one is on its way.
		time.Sleep(time.Millisecond)
	}
}

// saved is what PID 1 tells the next one about an entry of its store.
type saved struct {
	Name    string
	Session string `json:",omitempty"` // by its kernel name
	Token   uint64 `json:",omitempty"` // in PID 1's own session
}

// kexec is the end of a boot: holdfastd is stopped, what the store has is made ready for the next kernel, and that takes
// over (luo_preserve_fd_stores in src/core/luo.c; systemd-shutdown holds the sessions open). It returns only if that failed.
func (p *pid1) kexec(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	main, ended := p.main, p.ended
	p.mu.Unlock()
	if main != 0 {
		unix.Kill(main, unix.SIGTERM)
	}
	select {
	case <-ended:
	case <-time.After(deadline):
		return errors.New("holdfastd did not end at SIGTERM")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	own, err := liveupdate.Device{}.Create(ctx, ownSession)
	if err != nil {
		return err
	}
	var list []saved
	for i, s := range p.Store() {
		if session, err := liveupdate.FromFD(s.FD); err == nil {
			list = append(list, saved{Name: s.Name, Session: session.Name()})
			session.Disown()
			continue
		}
		// What is in a session can't be in another, and a marker can't be in any: systemd warns of those.
		token := uint64(i + 1)
		if err := own.PreserveFD(token, s.FD); err == nil {
			list = append(list, saved{Name: s.Name, Token: token})
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	raw, err := unix.MemfdCreate("systemd", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.Write(raw, data); err != nil {
		return err
	}
	if err := own.PreserveFD(0, raw); err != nil {
		return err
	}
	return luosim.Kexec()
}

func (p *pid1) restore(ctx context.Context) error {
	device := liveupdate.Device{}
	own, err := device.Retrieve(ctx, ownSession)
	if errors.Is(err, liveupdate.ErrNoSuchSession) {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.Close()
	f, err := own.Retrieve(0)
	if err != nil {
		return err
	}
	defer f.Close()
	var list []saved
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	if err := json.NewDecoder(f).Decode(&list); err != nil {
		return err
	}
	for _, s := range list {
		if s.Session == "" {
			f, err := own.Retrieve(s.Token)
			if err != nil {
				return err
			}
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			f.Close()
			if err != nil {
				return err
			}
			p.Put(pid1test.Stored{Name: s.Name, FD: fd})
			continue
		}
		session, err := device.Retrieve(ctx, s.Session)
		if errors.Is(err, liveupdate.ErrNoSuchSession) || errors.Is(err, liveupdate.ErrAlreadyRetrieved) {
			continue // it was one of the kernel before that, and couldn't come over again
		}
		if err != nil {
			return err
		}
		p.Put(pid1test.Stored{Name: s.Name, FD: session.Disown()})
	}
	return nil
}
