// SPDX-License-Identifier: MIT

//go:build !linux

package main

import "log"

func main() { log.Fatal("vmm: live update sessions need Linux") }
