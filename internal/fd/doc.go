// SPDX-License-Identifier: MIT

// Package fd owns file descriptors.
//
// An [FD] has one owner, who closes it or gives it away. The garbage collector never closes one: the last
// descriptor of a live update session keeps memory alive that nobody could bring back, so a leak is the lesser
// evil. Leaks fail the tests instead, see the package fdtest.
package fd
