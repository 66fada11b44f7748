// SPDX-License-Identifier: MIT

//go:build amd64 || arm64

package timeline

// counter is the processor's, which goes on over a kexec.
func counter() uint64
