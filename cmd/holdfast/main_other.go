// SPDX-License-Identifier: MIT

//go:build !linux

// Command holdfast gets live update sessions, which only Linux has.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "holdfast: live update sessions need Linux; this system is not supported")
	os.Exit(1)
}
