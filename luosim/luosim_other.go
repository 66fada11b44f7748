// SPDX-License-Identifier: MIT

//go:build !linux

package luosim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// Run fails: see [ErrUnsupported].
func (m Machine) Run(ctx context.Context, cmd *exec.Cmd) error { return ErrUnsupported }

// Kexec fails: see [ErrUnsupported].
func Kexec() error { return ErrUnsupported }

// Enter fails: see [ErrUnsupported].
func Enter(m Machine) {
	fmt.Fprintln(os.Stderr, ErrUnsupported)
	os.Exit(1)
}
