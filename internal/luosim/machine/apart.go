// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/luo"
)

// DefaultVersion is the kernel of a Config that names none.
const DefaultVersion = "7.2"

// SetFaults reads faults as AddFault does.
func (c *Config) SetFaults(specs []string) error {
	if c.Version == "" {
		c.Version = DefaultVersion
	}
	if _, ok := luo.Versions[c.Version]; !ok {
		return fmt.Errorf("there is no kernel %q: %s", c.Version, strings.Join(VersionNames(), " or "))
	}
	c.specs = specs
	for _, spec := range specs {
		if err := c.Faults.AddFault(spec); err != nil {
			return err
		}
	}
	return nil
}

// VersionNames are the kernels that can be emulated.
func VersionNames() []string {
	var names []string
	for name := range luo.Versions {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// supervisorName is the name that this program is called by to be a machine on behalf of another process.
const supervisorName = "luosim: supervisor"

// settings is what the supervisor is told. Lifeline is the number of a pipe's end: when the other end is closed, the
// supervisor kills everything and ends. With Fronted, the signals that count come by the pipe, a byte for each: those
// that go to a whole process group would count twice otherwise.
type settings struct {
	Lifeline int
	Fronted  bool
	Version  string
	Updates  int
	Faults   []string
}

func init() {
	if len(os.Args) < 3 || os.Args[0] != supervisorName || privileged() {
		return
	}
	os.Exit(supervise(os.Args[1], os.Args[2:]))
}

// privileged tells whether this program has more rights than whoever started it, and must not do what that says.
func privileged() bool { return os.Getuid() != os.Geteuid() || os.Getgid() != os.Getegid() }

func supervise(text string, command []string) int {
	var s settings
	c := Config{Command: command, Log: os.Stderr}
	err := json.Unmarshal([]byte(text), &s)
	if err == nil {
		c.Version, c.Updates = s.Version, s.Updates
		err = c.SetFaults(s.Faults)
	}
	if err == nil {
		unix.CloseOnExec(s.Lifeline)
		c.abandoned = make(chan struct{})
		if s.Fronted {
			c.signals = make(chan os.Signal, 8)
		}
		go func() {
			defer close(c.abandoned)
			pipe := bufio.NewReader(os.NewFile(uintptr(s.Lifeline), "lifeline"))
			for {
				number, err := pipe.ReadByte()
				if err != nil {
					return
				}
				c.signals <- unix.Signal(number)
			}
		}()
		var status int
		if status, err = run(c); err == nil {
			return status
		}
	}
	fmt.Fprintln(os.Stderr, "luosim:", err)
	return 1
}

// supervisor are the arguments of a process that is the machine.
func (c *Config) supervisor(lifeline int, fronted bool) ([]string, error) {
	text, err := json.Marshal(settings{lifeline, fronted, c.Version, c.Updates, c.specs})
	return append([]string{supervisorName, string(text)}, c.Command...), err
}

// Run is the machine from its first boot to its last, with all of this process's files. It makes this process the
// reaper of its tree and waits for any child, so it is for a program that does nothing else. The status is that of
// COMMAND in the way of shells; an error says that luosim itself failed.
//
// The machine is a process of its own below this one: whichever of the two is killed, the other one kills the tree.
func Run(c Config) (status int, err error) {
	if err := noGaps(); err != nil {
		return 1, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("prctl(PR_SET_CHILD_SUBREAPER): %w", err)
	}
	signals, release := takeSignals()
	defer release()
	read, write, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer write.Close()
	lifeline := int(read.Fd())
	args, err := c.supervisor(lifeline, true)
	s := &exec.Cmd{Path: self, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err == nil {
		err = inheritable(lifeline)
	}
	if err == nil {
		err = s.Start()
	}
	read.Close()
	if err != nil {
		return 1, err
	}
	pid := s.Process.Pid
	s.Process.Release()
	go func() {
		for signal := range signals {
			write.Write([]byte{byte(signal.(unix.Signal))})
		}
	}()
	killed := false
	for {
		ended, ws, err := nextChild(killed)
		switch {
		case err != nil: // ECHILD
			return status, nil
		case ended == pid && ws.Signaled():
			fmt.Fprintf(c.Log, "luosim: its supervisor was killed (%v): all that ran under it is ended\n", ws.Signal())
			status, killed = 1, true
		case ended == pid:
			status, killed = ws.ExitStatus(), true
		}
	}
}

// noGaps opens the standard descriptors that are closed, so that nothing of ours comes to lie there.
func noGaps() error {
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("/dev/null: %w", err)
		}
		if fd > 2 {
			return unix.Close(fd)
		}
	}
}

// RunApart is Run for a program that does other things, too. It changes the command into one of the machine, and runs
// that: files, environment, directory and attributes are the command's.
func RunApart(ctx context.Context, c Config, cmd *exec.Cmd) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	args, err := c.supervisor(3+len(cmd.ExtraFiles), false)
	if err == nil {
		cmd.Path, cmd.Args, cmd.Err = self, args, nil
		cmd.ExtraFiles = append(slices.Clone(cmd.ExtraFiles), read)
		if cmd.Cancel != nil {
			cmd.Cancel = write.Close
		}
		err = cmd.Start()
	}
	read.Close()
	if err != nil {
		return err
	}
	release := context.AfterFunc(ctx, func() { write.Close() })
	defer release()
	err = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
