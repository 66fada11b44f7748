// SPDX-License-Identifier: MIT

// Package guest tests the real holdfastd on a real kernel: who gets a session, what bad input does, and what is left
// when the daemon is killed at any of its steps. It needs root, cgroups to itself and a kernel with the Live Update
// Orchestrator, so its tests run in a virtual machine (test/vm/daemon.sh) and skip elsewhere.
package guest
