// SPDX-License-Identifier: MIT

package peer

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// AdministersHost tells whether the process may do on this host what its administrator may: it connected as root, it has
// CAP_SYS_ADMIN, and it shares this process's PID and user namespaces. Root in a container or in a sandboxed service
// isn't that. One exception can't be told from here: root with CAP_SETUID and CAP_SETFCAP can make itself a user
// namespace in which each uid is itself, and has all capabilities in there.
func (p *Process) AdministersHost() (yes bool, err error) {
	if p.uid != 0 {
		return false, nil
	}
	id, err := p.Identity()
	if err != nil {
		return false, err
	}
	own, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	err = p.pidfd.Use(func(pidfd int) error {
		status, statusErr := os.ReadFile(fmt.Sprintf("/proc/%d/status", id.PID))
		uidMap, mapErr := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", id.PID))
		if err := alive(pidfd); err != nil { // else the PID may have been another's
			return err
		}
		if statusErr != nil {
			return statusErr
		}
		// Of another user namespace it is seen from this one's (user_namespaces(7)).
		yes = mapErr == nil && bytes.Equal(own, uidMap) && administers(string(status))
		return mapErr
	})
	return yes, err
}

// administers tells it from the text of a process's status (proc_pid_status(5)).
func administers(status string) bool {
	capable, pids := false, 0
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); {
		case key == "CapEff" && len(fields) == 1:
			effective, err := strconv.ParseUint(fields[0], 16, 64)
			capable = err == nil && effective&(1<<unix.CAP_SYS_ADMIN) != 0
		case key == "NSpid":
			pids = len(fields) // one in each PID namespace, from that of /proc on
		}
	}
	return capable && pids == 1
}
