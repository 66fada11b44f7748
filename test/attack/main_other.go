// SPDX-License-Identifier: MIT

//go:build !linux

// Command attack is for Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "attack: it needs Linux")
	os.Exit(2)
}
