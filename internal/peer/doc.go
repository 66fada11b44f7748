// SPDX-License-Identifier: MIT

// Package peer tells who is at the other end of a connection: which process, by pidfd, and from its cgroup
// which units, and so which owner. A PID alone never decides anything here.
package peer
