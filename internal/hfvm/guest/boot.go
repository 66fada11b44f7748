// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bootNumber says which boot this is, from 1. With a disk it is the place of this boot's id in the
// list of those seen, whoever made the kexec and however; the first caller in a boot adds it and
// sets what is to come next. Without one the kernel's command line carries the number.
func bootNumber() (int, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	config, err := readConfig()
	if err != nil {
		return 0, err
	}
	if !config.Disk {
		return BootOf(string(cmdline)), nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(boots, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return 0, err
	}
	seen, err := os.ReadFile(boots)
	if err != nil {
		return 0, err
	}
	ids := strings.Fields(string(seen))
	if i := slices.Index(ids, strings.TrimSpace(string(id))); i >= 0 {
		return i + 1, nil
	}
	n := len(ids) + 1
	if err := prepareNext(config, n, string(cmdline)); err != nil {
		return n, err
	}
	if _, err := f.Write(id); err != nil {
		return n, err
	}
	return n, f.Sync()
}

// prepareNext puts in place what the boot after boot n is to be loaded from.
func prepareNext(config Config, n int, cmdline string) error {
	cmdline = strings.TrimSpace(cmdline)
	if !config.Disk {
		cmdline = NextCmdline(cmdline, n+1)
	}
	if err := os.WriteFile(CmdlineNext, []byte(cmdline+"\n"), 0o644); err != nil {
		return err
	}
	next := fmt.Sprintf("%s/%d", Kernels, KernelOf(n+1, config.Kernels))
	if err := os.Remove(KernelNext); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(next, KernelNext)
}

// KernelOf says which of the images is the kernel of boot n: the first for the odd ones, the second,
// where there is one, for the even ones.
func KernelOf(n, images int) int {
	if n%2 == 0 && images > 1 {
		return 2
	}
	return 1
}

// BootOf reads the number of the boot from a command line; a line without one is the first's.
func BootOf(cmdline string) int {
	n := 1
	for _, word := range strings.Fields(cmdline) {
		if value, ok := strings.CutPrefix(word, BootWord); ok {
			if v, err := strconv.Atoi(value); err == nil {
				n = v
			}
		}
	}
	return n
}

// NextCmdline is cmdline for boot n. Quoted words stay as they are: the number is put in front, and
// the old one can have no blanks.
func NextCmdline(cmdline string, n int) string {
	for _, word := range strings.Fields(cmdline) {
		if strings.HasPrefix(word, BootWord) {
			cmdline = strings.TrimSpace(strings.Replace(cmdline, word, "", 1))
		}
	}
	return fmt.Sprintf("%s%d %s", BootWord, n, cmdline)
}
