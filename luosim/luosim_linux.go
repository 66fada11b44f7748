// SPDX-License-Identifier: MIT

package luosim

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/luosim/machine"
)

// Run runs the command as [exec.Cmd.Run] does, on the machine, from its first boot to the end of its last. When the
// context is done, everything is killed. An [exec.ExitError] has the status of the command in the way of shells
// (128+N if signal N killed it); it is 1 if the machine couldn't be had, which standard error explains.
//
// The command is changed on the way, and can't be used again. The program that calls this is started twice more to serve
// the machine: its packages' init functions run there too.
func (m Machine) Run(ctx context.Context, cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	command := []string{cmd.Path}
	if len(cmd.Args) > 1 {
		command = append(command, cmd.Args[1:]...)
	}
	config, err := m.config(command)
	if err != nil {
		return err
	}
	return machine.RunApart(ctx, config, cmd)
}

func (m Machine) config(command []string) (machine.Config, error) {
	c := machine.Config{Command: command, Version: m.Kernel, Updates: machine.Unlimited}
	if m.Updates > 0 {
		c.Updates = m.Updates
	}
	if err := c.SetFaults(m.Faults); err != nil {
		return c, fmt.Errorf("luosim: %w", err)
	}
	return c, nil
}

// Enter makes the machine the calling program's: unless it is under luosim already, Enter runs it again there, with the
// same arguments, environment and files, and exits with its status. At the beginning of a TestMain it gives all tests of
// the package a device.
func Enter(m Machine) {
	if Boot() > 0 {
		return
	}
	status := 1
	self, err := os.Executable()
	if err == nil {
		var c machine.Config
		if c, err = m.config(append([]string{self}, os.Args[1:]...)); err == nil {
			status, err = machine.Run(c)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "luosim:", err)
	}
	os.Exit(status)
}

// Kexec updates to the next kernel: it loads a stand-in for one and switches, by kexec_file_load() and
// reboot(LINUX_REBOOT_CMD_KEXEC). It returns only if that failed. Outside luosim it does nothing and fails.
func Kexec() error {
	if Boot() == 0 {
		return fmt.Errorf("luosim: not under luosim ($%s is not set): the real machine isn't restarted", BootVariable)
	}
	image, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("luosim: memfd_create: %w", err)
	}
	defer unix.Close(image)
	if err := unix.KexecFileLoad(image, -1, "", unix.KEXEC_FILE_NO_INITRAMFS); err != nil {
		return fmt.Errorf("luosim: kexec_file_load: %w", err)
	}
	return fmt.Errorf("luosim: reboot(KEXEC): %w", unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC))
}
