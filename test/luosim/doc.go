// SPDX-License-Identifier: MIT

// Package luosim has no code. Its tests run the emulator as a user does: programs of many kinds under it, the
// signals, faults and refusals, and, with the build tag vm, the kernel's own selftests.
package luosim
