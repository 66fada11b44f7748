// SPDX-License-Identifier: MIT

//go:build !linux

// Guest needs Linux.
package main

import "log"

func main() { log.Fatal("kexec needs Linux") }
