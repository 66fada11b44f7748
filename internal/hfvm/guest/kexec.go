// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// kexecLoad loads the next kernel with kexec_file_load: the older kexec_load can't hand anything over.
func kexecLoad([]string) error {
	if _, err := bootNumber(); err != nil {
		return err
	}
	kernel, err := os.Open(KernelNext)
	if err != nil {
		return err
	}
	defer kernel.Close()
	cmdline, err := os.ReadFile(CmdlineNext)
	if err != nil {
		return err
	}
	initrd, flags := -1, unix.KEXEC_FILE_NO_INITRAMFS
	if f, err := os.Open(Initrd); err == nil {
		defer f.Close()
		initrd, flags = int(f.Fd()), 0
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.KexecFileLoad(int(kernel.Fd()), initrd, strings.TrimSpace(string(cmdline)), flags); err != nil {
		return fmt.Errorf("kexec_file_load of %s: %w", KernelNext, err)
	}
	return nil
}

// kexec switches at once, with no shutdown before it.
func kexec([]string) error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("reboot(KEXEC): %w; is a kernel loaded? (hfvm-kexec-load)", err)
		}
		return fmt.Errorf("reboot(KEXEC): %w", err)
	}
	return nil
}
