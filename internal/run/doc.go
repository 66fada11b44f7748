// SPDX-License-Identifier: MIT

// Package run gives memory that crosses live updates to a program that knows nothing of them: it offers memfds to a command
// as paths, runs it as a service manager would, and preserves and commits the memory while the command is stopped.
package run
