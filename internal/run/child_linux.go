// SPDX-License-Identifier: MIT

package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// childConfig says what runs, and how it is stopped.
type childConfig struct {
	Words        []string
	Env          []string       // added to this process's environment, less what is meant for this process alone
	Files        []*os.File     // inherited as 3, 4, …; they stay the caller's
	NotifySocket string         // "" for none
	StopSignal   syscall.Signal // 0 for SIGTERM
	StopCommand  string         // for /bin/sh -c, with $MAINPID; instead of the signal, if it isn't empty
}

// child is a command that runs in a process group of its own: what the terminal sends for Ctrl-C reaches only this process,
// which stops the command in the right way.
type child struct {
	config childConfig
	cmd    *exec.Cmd
	pidfd  *fd.FD // its own; closed with gone

	ending ending        // once done is closed
	done   chan struct{} // the command has ended
	gone   chan struct{} // all of its group have ended

	stops atomic.Bool // it has been asked to stop
	kills atomic.Bool // all of the group are to be killed
	give  context.CancelFunc
	given context.Context // of the stop command

	mu      sync.Mutex
	request *request // the newest one; nil before the first
}

// start runs the command. It inherits standard input, output and error, and Files: nothing else.
func start(c childConfig) (*child, error) {
	if len(c.Words) == 0 {
		return nil, errors.New("there is no command to run")
	}
	c.StopSignal = cmp.Or(c.StopSignal, syscall.SIGTERM)
	// What this process was started with may be without the flag.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("close_range", err)
	}
	ch := &child{config: c, done: make(chan struct{}), gone: make(chan struct{})}
	ch.given, ch.give = context.WithCancel(context.Background())
	ch.cmd = exec.Command(c.Words[0], c.Words[1:]...)
	ch.cmd.Stdin, ch.cmd.Stdout, ch.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	ch.cmd.ExtraFiles = c.Files
	ch.cmd.Env = ch.environment()
	pidfd := -1
	// It must not outlive this process and go on writing to memory that somebody else has been given.
	ch.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread that forked ends, not its process (PR_SET_PDEATHSIG(2const)), and Go
		// ends threads as it likes: this one it must leave alone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := ch.cmd.Start()
		if err == nil {
			ch.pidfd = fd.New(pidfd)
		}
		started <- err
		if err == nil {
			ch.watch()
		}
	}()
	if err := <-started; err != nil {
		ch.give()
		return nil, fmt.Errorf("starting %q: %w", c.Words[0], err)
	}
	return ch, nil
}

// environment is this process's, without what systemd tells this process alone (systemd.exec(5), "Environment Variables Set
// or Propagated by the Service Manager"). A command that may notify is to feed the watchdog: without $WATCHDOG_PID, which is
// another's, it knows that it is meant (sd_watchdog_enabled(3)).
func (c *child) environment() []string {
	ours := []string{"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES", "FDSTORE", "WATCHDOG_PID"}
	if c.config.NotifySocket == "" || watchdog() == 0 {
		ours = append(ours, "WATCHDOG_USEC")
	}
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(ours, name)
	})
	if c.config.NotifySocket != "" {
		env = append(env, "NOTIFY_SOCKET="+c.config.NotifySocket)
	}
	return append(env, c.config.Env...)
}

// watch waits for the command's end, and for that of its group.
func (c *child) watch() {
	// What it says is in ProcessState too.
	_ = c.cmd.Wait()
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	c.ending = ending{Status: status.ExitStatus(), Core: status.CoreDump()}
	if status.Signaled() {
		c.ending.Signal = status.Signal()
	}
	// The signal of the parent's death doesn't reach its children. After an end that nobody asked for there is nothing
	// left for them to do.
	unasked := !c.stops.Load() || !c.ending.Clean(c.config.StopSignal, true)
	if unasked {
		c.kills.Store(true)
	} else {
		close(c.done)
	}
	c.awaitGroup()
	c.pidfd.Close()
	close(c.gone)
	if unasked {
		close(c.done)
	}
}

// awaitGroup waits for those who are left. Nobody is told of the end of processes that aren't his own.
func (c *child) awaitGroup() {
	for {
		signal := syscall.Signal(0)
		if c.kills.Load() {
			signal = syscall.SIGKILL
		}
		if errors.Is(c.signalGroup(signal), unix.ESRCH) {
			return
		}
		// Where this process is PID 1, of a container, they have become its own.
		for {
			if pid, err := unix.Wait4(-c.PID(), nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// signalGroup says ESRCH where nobody is left. By then the number may be another group's: a pidfd still means the old one.
func (c *child) signalGroup(signal syscall.Signal) error {
	return c.pidfd.Use(func(raw int) error {
		err := unix.PidfdSendSignal(raw, signal, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
		if errors.Is(err, unix.EINVAL) {
			err = unix.Kill(-c.PID(), signal) // before Linux 6.9
		}
		return err
	})
}

// PID is the command's, and its process group's.
func (c *child) PID() int { return c.cmd.Process.Pid }

// Done is closed once the command has ended. Unless it had been asked to, and did as it was told, the rest of its group has
// been killed by then and has ended too.
func (c *child) Done() <-chan struct{} { return c.done }

// Ending tells how the command ended. It is for after Done.
func (c *child) Ending() ending { return c.ending }

// Signal sends a signal to the command itself. It is nil where that has ended.
func (c *child) Signal(s syscall.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %s to %s: %w", unix.SignalName(s), c, err)
	}
	return nil
}

// request is one time that the command is asked to stop.
type request struct {
	made chan struct{} // closed once err is there
	err  error
}

// ask makes a request, unless a stop command of an earlier one still runs, or one was made well and is not to be made again.
func (c *child) ask(again bool) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.request != nil {
		select {
		case <-c.request.made:
			if !again && c.request.err == nil {
				return c.request
			}
		default:
			return c.request
		}
	}
	r := &request{made: make(chan struct{})}
	c.request = r
	go func() {
		r.err = c.askToStop()
		close(r.made)
	}()
	return r
}

// Stop asks the command to stop, and waits until it and all of its group have ended. If that takes longer than ctx lasts, or
// the stop command fails, the command has been asked nevertheless and may still end. Another Stop asks again: the command may
// not have heard.
func (c *child) Stop(ctx context.Context) (ending, error) {
	c.stops.Store(true)
	return c.await(ctx, c.ask(true))
}

// GoOnStopping is for a Stop that was broken off: a command that was asked isn't asked again, which many take for impatience.
func (c *child) GoOnStopping(ctx context.Context) (ending, error) {
	return c.await(ctx, c.ask(false))
}

func (c *child) await(ctx context.Context, asked *request) (ending, error) {
	// The stop command may have something to do when the command has ended.
	if !await(ctx, asked.made) {
		return ending{}, fmt.Errorf("the stop command has not ended: %w", context.Cause(ctx))
	}
	if asked.err != nil {
		return ending{}, asked.err
	}
	if await(ctx, c.gone) {
		return c.ending, nil
	}
	select {
	case <-c.done:
		return ending{}, fmt.Errorf("%s %s, but others of its process group go on: %w", c, c.ending, context.Cause(ctx))
	default:
		return ending{}, fmt.Errorf("%s has not ended: %w", c, context.Cause(ctx))
	}
}

func await(ctx context.Context, happened <-chan struct{}) bool {
	select {
	case <-happened:
		return true
	case <-ctx.Done():
	}
	select {
	case <-happened:
		return true
	default:
		return false
	}
}

func (c *child) askToStop() error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if c.config.StopCommand == "" {
		// One that is suspended hears nothing else (systemd sends both too).
		return cmp.Or(c.Signal(c.config.StopSignal), c.Signal(syscall.SIGCONT))
	}
	stop := exec.CommandContext(c.given, "/bin/sh", "-c", c.config.StopCommand)
	stop.Env = append(slices.Clone(c.cmd.Env), "MAINPID="+strconv.Itoa(c.PID()))
	stop.Stdout, stop.Stderr = os.Stdout, os.Stderr
	stop.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stop.Cancel = func() error { return unix.Kill(-stop.Process.Pid, unix.SIGKILL) }
	if err := stop.Run(); err != nil {
		return fmt.Errorf("the stop command %q: %w", c.config.StopCommand, err)
	}
	return nil
}

// Kill kills all of the group, and a stop command that still runs, and waits until the group has ended.
func (c *child) Kill() error {
	c.kills.Store(true)
	c.give()
	if err := c.signalGroup(syscall.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("killing %s: %w", c, err)
	}
	<-c.gone
	return nil
}

func (c *child) String() string { return fmt.Sprintf("%q (PID %d)", c.config.Words[0], c.PID()) }

// ending is how a process ended.
type ending struct {
	Status int            // of its exit, where there is no signal
	Signal syscall.Signal // that killed it, or 0
	Core   bool           // it was dumped
}

// Clean tells whether it ended as it should. Death by the signal that asked it to stop is clean too: not every program
// handles it (is_clean_exit(), src/shared/exit-status.c, systemd 262, says so of SIGTERM and three others).
func (e ending) Clean(stop syscall.Signal, asked bool) bool {
	if e.Signal == 0 {
		return e.Status == 0
	}
	return asked && e.Signal == stop
}

func (e ending) String() string {
	switch {
	case e.Signal == 0:
		return fmt.Sprintf("exited with status %d", e.Status)
	case e.Core:
		return "was killed by " + signalName(e.Signal) + " and dumped core"
	default:
		return "was killed by " + signalName(e.Signal)
	}
}

// signalName knows the real-time signals too, which have no names of their own.
func signalName(s syscall.Signal) string {
	return cmp.Or(unix.SignalName(s), "signal "+strconv.Itoa(int(s)))
}

// ExitStatus is what a shell makes of it.
func (e ending) ExitStatus() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Status
}
