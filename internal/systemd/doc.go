// SPDX-License-Identifier: MIT

// Package systemd speaks with PID 1 as a service does: its notify socket, its file descriptor store, and the
// descriptors that it hands over at the start.
package systemd
