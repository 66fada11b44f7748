// SPDX-License-Identifier: MIT

//go:build linux

// Package machine is the emulated machine: it catches the system calls of a tree of processes, answers those that
// have to do with live update, and ends and starts the tree when it asks for a kexec.
package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/handle"
	"github.com/holdfast-project/holdfast/internal/luosim/luo"
	"github.com/holdfast-project/holdfast/internal/luosim/notify"
)

// BootVariable tells the processes which boot it is: 1, 2, ….
const BootVariable = "LUOSIM_BOOT"

// Unlimited is for Updates.
const Unlimited = -1

// Config says what machine it is.
type Config struct {
	Command []string
	Version string // of the kernel, one of luo.Versions
	Updates int    // the reboot(KEXEC) after that many ends the run
	Faults  Faults
	Log     io.Writer

	specs []string // what Faults were read from
	// abandoned is closed when nobody waits for the machine any more.
	abandoned chan struct{}
	// signals, unless nil, are those that count, and not this process's own.
	signals chan os.Signal
}

// run is the machine from its first boot to its last. It makes this process the reaper of its tree, and waits for any
// child.
func run(c Config) (status int, err error) {
	// The first process of the tree is to die with this thread.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("prctl(PR_SET_CHILD_SUBREAPER): %w", err)
	}
	signals, release := takeSignals()
	defer release()
	if c.signals != nil {
		signals = c.signals
	}

	asked := &signalled{}
	terminal := rememberTerminal()
	defer terminal.close()
	table := &handles{handle.NewTable()}
	kernel := luo.New(luo.Versions[c.Version], c.Faults.of(1), table.open)
	defer func() { kernel.Close() }()
	for number := 1; ; number++ {
		b := &boot{
			number: number, version: c.Version, id: newID(), kernel: kernel, handles: table,
			log: c.Log, said: map[string]bool{}, ended: make(chan struct{}), abandoned: c.abandoned,
		}
		unix.ClockGettime(unix.CLOCK_REALTIME, &b.started)
		status, err := b.run(c.Command, signals, asked)
		if err != nil {
			return 1, err
		}
		switch b.why {
		case endExit, endSignal:
			return status, nil
		case endPowerOff:
			return 0, nil
		}
		if c.Updates >= 0 && number > c.Updates {
			return 0, nil
		}
		terminal.restore()
		kernel = kernel.Kexec(c.Faults.of(number+1), b.why == endKexec && b.handover)
	}
}

// run starts COMMAND and returns when nothing of it is left.
func (b *boot) run(command []string, signals <-chan os.Signal, asked *signalled) (int, error) {
	first, listener, launched, err := b.start(command)
	if err != nil {
		var no *notStarted
		if errors.As(err, &no) && no.status > 1 {
			fmt.Fprintln(b.log, "luosim:", no.text)
			return no.status, nil
		}
		return 1, err
	}
	server := b.serve(listener)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		b.watch(first, signals, asked)
	}()

	status := b.reap(first)
	<-watched
	server.stop()
	listener.Close()
	if text := <-launched; text != "" {
		fmt.Fprintln(b.log, "luosim:", text)
	}
	return status, nil
}

// takeSignals are those that end a program, but for what whoever started it ignores (nohup).
func takeSignals() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 8)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals, func() { signal.Stop(signals) }
}

const (
	// grace is how long COMMAND has to end after a signal.
	grace = 5 * time.Second
	// So many signals from the terminal, in so short a time, mean that COMMAND doesn't listen.
	impatient  = 3
	impatience = 2 * time.Second
)

// signalled is what has come of signals, over all boots.
type signalled struct {
	late       <-chan time.Time // when COMMAND's time is up, once there was one
	interrupts []time.Time      // from the terminal
}

// watch passes signals on, and kills everything once the boot has ended.
func (b *boot) watch(first int, signals <-chan os.Signal, asked *signalled) {
	for {
		select {
		case s := <-signals:
			// A terminal's go to all in the foreground, and an interactive program lives on with them.
			if (s == unix.SIGINT || s == unix.SIGQUIT) && inForeground() {
				asked.interrupts = append(asked.interrupts, time.Now())
				if n := len(asked.interrupts); n < impatient || asked.interrupts[n-1].Sub(asked.interrupts[n-impatient]) > impatience {
					continue
				}
				b.end(endSignal)
				break
			}
			if asked.late != nil { // the second one
				b.end(endSignal)
				break
			}
			unix.Kill(first, s.(unix.Signal))
			asked.late = time.After(grace)
			continue
		case <-asked.late:
			b.end(endSignal)
		case <-b.abandoned:
			b.end(endSignal)
		case <-b.ended:
		}
		killTree()
		return
	}
}

// reap waits until nothing of the tree is left. The first process's end is the end of all.
func (b *boot) reap(first int) int {
	status := 0
	for {
		pid, ws, err := nextChild(b.over())
		if err != nil { // ECHILD
			b.end(endExit)
			return status
		}
		if pid == first {
			status = shellStatus(ws)
			b.end(endExit)
		}
	}
}

// nextChild waits for a child to end. With kill, the others shall end too: whoever forked while they were killed left
// children that nobody has seen yet. But first come all that have ended already, as they can be many.
func nextChild(kill bool) (pid int, ws unix.WaitStatus, err error) {
	options := 0
	if kill {
		options = unix.WNOHANG
	}
	for {
		pid, err = unix.Wait4(-1, &ws, options, nil)
		switch {
		case err == unix.EINTR:
		case pid == 0 && err == nil:
			killTree()
			options = 0
		default:
			return pid, ws, err
		}
	}
}

func shellStatus(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// notStarted says why COMMAND isn't running.
type notStarted struct {
	status int
	text   string
}

func (e *notStarted) Error() string { return e.text }

// start returns once COMMAND's filter is in force. What then keeps it from being executed comes by the channel: nothing,
// as a rule.
func (b *boot) start(command []string) (first int, l *notify.Listener, launched <-chan string, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, nil, err
	}
	ours, theirs := pair[0], pair[1]
	defer func() {
		if err != nil {
			unix.Close(ours)
		}
	}()
	cmd := &exec.Cmd{
		Path:  self,
		Args:  append([]string{launcherName, strconv.Itoa(theirs)}, command...),
		Env:   append(os.Environ(), BootVariable+"="+strconv.Itoa(b.number)),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	// It keeps its number, so that whatever was passed to this process is passed on under the same numbers.
	err = inheritable(theirs)
	if err == nil {
		err = cmd.Start()
	}
	unix.Close(theirs)
	if err != nil {
		return 0, nil, nil, err
	}
	first = cmd.Process.Pid
	cmd.Process.Release() // reap() waits for it

	text := make([]byte, 4096)
	rights := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(ours, text, rights, unix.MSG_CMSG_CLOEXEC)
	fd := -1
	if err == nil && n == 1 && text[0] == listening {
		fd, err = received(rights[:oobn])
	}
	if err != nil {
		return 0, nil, nil, err
	}
	if fd < 0 {
		status := 1
		var ws unix.WaitStatus
		if pid, waitErr := unix.Wait4(first, &ws, 0, nil); waitErr == nil && pid == first {
			status = max(1, shellStatus(ws))
		}
		return 0, nil, nil, &notStarted{status, string(text[:n])}
	}
	l = notify.NewListener(fd)
	if err = reachable(first, theirs); err == nil {
		_, err = unix.Write(ours, []byte{1})
	}
	if err != nil {
		l.Close()
		unix.Kill(first, unix.SIGKILL)
		unix.Wait4(first, nil, 0, nil)
		return 0, nil, nil, err
	}
	failed := make(chan string, 1)
	go func() {
		defer unix.Close(ours)
		text := make([]byte, 4096)
		n, _ := unix.Read(ours, text) // the end of the file, once it is executed
		failed <- string(text[:max(n, 0)])
	}()
	return first, l, failed, nil
}

// self is this program, even if its file was replaced since.
const self = "/proc/self/exe"

func inheritable(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	return err
}

func received(rights []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("the launcher sent no listener")
}

// reachable tells whether this process may look into the other one, which has such a descriptor.
func reachable(pid, fd int) error {
	const advice = "the kernel (kernel.yama.ptrace_scope) or the container must let a process trace its children"
	c := &call{}
	c.PID = uint32(pid)
	own, err := c.open(int32(fd))
	if err != 0 {
		return fmt.Errorf("no access to COMMAND's descriptors (pidfd_getfd): %s", advice)
	}
	unix.Close(own)
	if _, err := os.Readlink(c.proc("cwd")); err != nil {
		return fmt.Errorf("no access to COMMAND in /proc (%v): /proc must be mounted for this PID namespace, and %s", err, advice)
	}
	local := []unix.Iovec{{Base: new(byte)}}
	local[0].SetLen(1)
	if _, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0, Len: 1}}, 0); err != unix.EFAULT {
		return fmt.Errorf("no access to COMMAND's memory (process_vm_readv: %v): %s", err, advice)
	}
	return nil
}
