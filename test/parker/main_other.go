// SPDX-License-Identifier: MIT

//go:build !linux

// Command parker needs Linux.
package main

import "log"

func main() { log.Fatal("parker: live update sessions need Linux") }
