// SPDX-License-Identifier: MIT

package kexec

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Loaded tells whether a kernel is loaded that a reboot would switch to. Which, the kernel doesn't tell.
func Loaded() (bool, error) {
	data, err := os.ReadFile("/sys/kernel/kexec_loaded")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // this kernel has no kexec
	}
	return strings.TrimSpace(string(data)) == "1", err
}

// Unload drops the loaded kernel, if there is one.
func Unload() error {
	if err := unix.KexecFileLoad(-1, -1, "", unix.KEXEC_FILE_UNLOAD); err != nil {
		return &Error{"unloading the next kernel", err}
	}
	return nil
}

// Reboot writes what is not yet on disk and switches to the loaded kernel, with no regard for what runs. It returns only if the kernel refuses, and then
// everything goes on: live update sessions too, of which one may be the reason.
func Reboot() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		return fmt.Errorf("reboot(KEXEC): %w; %s", err, whyNot(err))
	}
	return errors.New("reboot(KEXEC): it returned without an error")
}

// whyNot is what an errno of reboot(KEXEC) means (kernel_kexec(), kernel/kexec_core.c, Linux 7.2.13).
func whyNot(err error) string {
	switch {
	case errors.Is(err, unix.EBUSY):
		return "somebody is loading a kernel right now: try again"
	case errors.Is(err, unix.EINVAL):
		return "no kernel is loaded any more: load one"
	case errors.Is(err, unix.EPERM):
		return "it needs CAP_SYS_BOOT"
	}
	return "a live update session could not be frozen, and all of them work on; the kernel's log (dmesg) has the token of its file, and holdfast list --all whose it may be"
}
