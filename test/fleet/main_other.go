// SPDX-License-Identifier: MIT

//go:build !linux

// Command fleet needs Linux.
package main

import "log"

func main() { log.Fatal("fleet: live update sessions need Linux") }
