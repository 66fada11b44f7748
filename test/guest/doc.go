// SPDX-License-Identifier: MIT

// Package guest tests the real holdfastd: who gets a session, what bad input does, and what is left when the daemon is
// killed at any of its steps. Its tests run under luosim, as anybody, with a holdfastd that they build. In a virtual
// machine (test/vm/daemon.sh) the same tests run on a real kernel, with the holdfastd that is installed, and with those
// that need root, cgroups to themselves, or a real device; these skip elsewhere.
package guest
