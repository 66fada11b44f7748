// SPDX-License-Identifier: MIT

//go:build !linux

package luosim

import (
	"context"
	"os/exec"
)

// Run fails: see [ErrUnsupported].
func (m Machine) Run(ctx context.Context, cmd *exec.Cmd) error { return ErrUnsupported }

// Kexec fails: see [ErrUnsupported].
func Kexec() error { return ErrUnsupported }
