// SPDX-License-Identifier: MIT

// Package check finds out what would be lost in a live update, before one: whether the next kernel takes over what this one
// hands over, and whether everything that is meant to cross will.
//
// First the facts are gathered, into a [System]: from kernels' images, from PID 1, from the descriptors of all processes. Then each rule
// looks at them, and says what it finds. What could not be looked at is a finding too, and never counts as good.
package check
