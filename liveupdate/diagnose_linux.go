// SPDX-License-Identifier: MIT

package liveupdate

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// missing says why there is no device, and what to do about it.
func missing() (hint string, kind error) {
	if f, err := os.Open("/proc/misc"); err == nil {
		defer f.Close()
		if hasDriver(f) {
			return "the kernel has it (see /proc/misc), but here is no node of it: mount devtmpfs, or give it to the container", ErrNoDevice
		}
	}
	if f, err := os.Open("/proc/kallsyms"); err == nil {
		defer f.Close()
		if !hasSymbols(f) {
			return fix(ErrNoDevice), ErrNoDevice
		}
	} else {
		// A kernel without CONFIG_KALLSYMS doesn't tell whether it has the code.
		return fix(ErrNoDevice), ErrNoDevice
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err == nil && enabled(string(words)) {
		return "kho=on liveupdate=on is on the kernel's command line, but it gave up at boot: see the kernel's log for lines with KHO and luo", ErrNotEnabled
	}
	return fix(ErrNotEnabled), ErrNotEnabled
}

// hasDriver looks in /proc/misc, which lists "MINOR NAME", for the device's driver. It registers when live update is
// enabled (liveupdate_ioctl_init() in kernel/liveupdate/luo_core.c, Linux 7.2.13).
func hasDriver(misc io.Reader) bool {
	for lines := bufio.NewScanner(misc); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 2 && f[1] == "liveupdate" {
			return true
		}
	}
	return false
}

// hasSymbols looks in /proc/kallsyms for the Live Update Orchestrator's code. The names are there for everybody, even
// where the addresses are hidden.
func hasSymbols(kallsyms io.Reader) bool {
	for lines := bufio.NewScanner(kallsyms); lines.Scan(); {
		if bytes.Contains(lines.Bytes(), []byte(" luo_session_")) {
			return true
		}
	}
	return false
}

// enabled says whether a kernel command line turns on both KHO and live update. The kernel takes the last word of a
// name, and of its value the first letters (kstrtobool() in lib/kstrtox.c, Linux 7.2.13). What is behind "--" is for init.
func enabled(cmdline string) bool {
	on := map[string]bool{}
	for word := range strings.FieldsSeq(cmdline) {
		if word == "--" {
			break
		}
		name, value, _ := strings.Cut(strings.Trim(word, `"`), "=")
		switch value := strings.ToLower(strings.Trim(value, `"`)); {
		case value == "":
		case strings.IndexByte("eyt1", value[0]) >= 0, strings.HasPrefix(value, "on"):
			on[name] = true
		case strings.IndexByte("dnf0", value[0]) >= 0, strings.HasPrefix(value, "of"):
			on[name] = false
		}
	}
	return on["kho"] && on["liveupdate"]
}

// holders finds the processes that have the device open.
func holders(device string) []Holder {
	var want unix.Stat_t
	if unix.Stat(device, &want) != nil {
		return nil
	}
	var found []Holder
	links, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	for _, link := range links {
		// The name is looked at before the file, since a file on a network can block whoever asks about it.
		target, err := os.Readlink(link)
		if err != nil || filepath.Base(target) != filepath.Base(device) {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != want.Rdev {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil || len(found) > 0 && found[len(found)-1].PID == pid {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(process, "comm"))
		found = append(found, Holder{PID: pid, Comm: string(bytes.TrimSuffix(comm, []byte("\n")))})
	}
	return found
}
