// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// lifeline is a pipe's end in the supervisor: when the other end is closed, it ends.
const lifeline = 3

type apart struct {
	Version string
	Updates int
	Faults  []string
}

func init() {
	if len(os.Args) < 3 || os.Args[0] != supervisorName {
		return
	}
	os.Exit(supervise(os.Args[1], os.Args[2:]))
}

func supervise(settings string, command []string) int {
	var a apart
	c := Config{Command: command, Log: os.Stderr}
	err := json.Unmarshal([]byte(settings), &a)
	if err == nil {
		c.Version, c.Updates = a.Version, a.Updates
		err = c.SetFaults(a.Faults)
	}
	if err == nil {
		unix.CloseOnExec(lifeline)
		go func() {
			io.Copy(io.Discard, os.NewFile(lifeline, "lifeline"))
			killTree()
			os.Exit(128 + int(unix.SIGKILL))
		}()
		var status int
		if status, err = Run(c); err == nil {
			return status
		}
	}
	fmt.Fprintln(os.Stderr, "luosim:", err)
	return 1
}

// RunApart is Run in a process of its own, with the files and the environment of cmd.
func RunApart(ctx context.Context, c Config, faults []string, cmd *exec.Cmd) error {
	settings, err := json.Marshal(apart{c.Version, c.Updates, faults})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	// ExtraFiles of the command's would get other numbers than it expects.
	if len(cmd.ExtraFiles) > 0 {
		read.Close()
		return fmt.Errorf("luosim: a command with ExtraFiles can't be run")
	}
	s := &exec.Cmd{
		Path: self, Args: append([]string{supervisorName, string(settings)}, c.Command...),
		Env: cmd.Env, Dir: cmd.Dir, Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr,
		ExtraFiles: []*os.File{read}, WaitDelay: cmd.WaitDelay,
	}
	err = s.Start()
	read.Close()
	if err != nil {
		return err
	}
	stopped := context.AfterFunc(ctx, func() { write.Close() })
	defer stopped()
	err = s.Wait()
	cmd.ProcessState = s.ProcessState
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
