// SPDX-License-Identifier: MIT

// Package inventory finds live update sessions by looking: at the descriptors of all processes, and into the fd stores
// at PID 1. Nothing is remembered, so nothing can be out of date.
//
// What it can't find: a session that nobody has retrieved from the kernel since the update, which no ioctl lists; and one
// whose descriptors are in no process's table, on their way through a socket or registered with io_uring.
package inventory
