// SPDX-License-Identifier: MIT

package systemd

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Listened is one descriptor that was handed over at the start.
type Listened struct {
	Name string // FDNAME, or "" where none was told
	Raw  int
}

// ListenFDs returns what was handed over by $LISTEN_FDS (sd_listen_fds(3)), and makes it close-on-exec. The
// descriptors aren't taken: calling it again returns the same.
func ListenFDs() []Listened {
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 1<<20 {
		return nil
	}
	var names []string
	if s := os.Getenv("LISTEN_FDNAMES"); s != "" {
		names = strings.Split(s, ":")
	}
	fds := make([]Listened, 0, n)
	for i := range n {
		l := Listened{Raw: 3 + i}
		if i < len(names) {
			l.Name = names[i]
		}
		unix.CloseOnExec(l.Raw)
		fds = append(fds, l)
	}
	return fds
}
