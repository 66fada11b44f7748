// SPDX-License-Identifier: MIT

//go:build !linux

// Command keep needs Linux.
package main

import "log"

func main() { log.Fatal("keep: memfds need Linux") }
