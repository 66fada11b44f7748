// SPDX-License-Identifier: MIT

//go:build !linux

package main

import "log"

func main() { log.Fatal("kill: live update sessions need Linux") }
