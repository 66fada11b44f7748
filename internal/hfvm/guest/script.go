// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// prepare is a process that will run the script of this boot, not started yet.
func prepare() (*exec.Cmd, error) {
	n, err := bootNumber()
	if err != nil {
		return nil, err
	}
	config, err := readConfig()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(Home+"/boot", fmt.Appendln(nil, n), 0o644); err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	if err := tell(Message{Kind: "boot", Boot: n, Text: unix.ByteSliceToString(uts.Release[:])}); err != nil {
		return nil, err
	}
	out, err := openFIFO()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(Script)
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb",
	}, config.Env...)
	cmd.Env = append(cmd.Env, fmt.Sprint("HFVM_BOOT=", n))
	for _, name := range []string{"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "NOTIFY_SOCKET"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, nil
}

// ended is the verdict that the script's end is: only a failure is one.
func ended(status unix.WaitStatus) error {
	switch {
	case status.Signaled():
		return end("fail", fmt.Sprintf("the script was killed by %s", unix.SignalName(status.Signal())))
	case status.ExitStatus() != 0:
		return end("fail", fmt.Sprintf("the script ended with exit status %d", status.ExitStatus()))
	}
	return nil
}

// runService is the service hfvm.service. Once it is being stopped, because the machine shuts down,
// how the script ends says nothing any more.
func runService([]string) error {
	stopping := make(chan os.Signal, 1)
	signal.Notify(stopping, unix.SIGTERM)
	cmd, err := prepare()
	if err != nil {
		return end("fail", fmt.Sprintf("preparing the script: %v", err))
	}
	if err := cmd.Start(); err != nil {
		return end("fail", fmt.Sprintf("starting the script: %v", err))
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		return ended(unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)))
	case <-stopping:
		_ = cmd.Process.Signal(unix.SIGTERM)
		<-done
		return nil
	}
}

// runInit is PID 1 of a guest without an operating system. If it can't even tell the host what is
// wrong it ends, and so does the machine, with a panic.
func runInit([]string) error {
	err := initSystem()
	fmt.Fprintln(os.Stderr, "hfvm init:", err)
	return end("fail", err.Error())
}

func initSystem() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	go func() { fmt.Fprintln(os.Stderr, "hfvm init: output:", runOutput(nil)) }()
	config, err := readConfig()
	if err != nil {
		return err
	}
	if config.Network {
		if err := runNetwork(nil); err != nil {
			return err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := prepareNext(config, BootOf(string(cmdline)), string(cmdline)); err != nil {
		return err
	}
	cmd, err := prepare()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the script: %w", err)
	}
	// Everybody's orphans end up here, and the script is one child among them.
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err == unix.ECHILD:
			return errors.New("the script ended with status 0 and left nobody behind, and there was no hfvm-pass, hfvm-fail or kexec")
		case err != nil:
			return err
		case pid == cmd.Process.Pid:
			if err := ended(status); err != nil {
				return err
			}
		}
	}
}

func mountAll() error {
	mounts := []struct{ fs, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=0755"},
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/run", "mode=0755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"debugfs", "/sys/kernel/debug", ""},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, m.options); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.fs, m.dir, err)
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	var all []string
	for _, c := range strings.Fields(string(controllers)) {
		all = append(all, "+"+c)
	}
	return os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte(strings.Join(all, " ")), 0)
}
