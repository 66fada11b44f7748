// SPDX-License-Identifier: MIT

//go:build !linux

// Command witness needs Linux.
package main

import "log"

func main() { log.Fatal("witness: live update sessions need Linux") }
