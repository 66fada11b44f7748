// SPDX-License-Identifier: MIT

//go:build !amd64 && !arm64

package timeline

// counter is 0 where none is known that goes on over a kexec.
func counter() uint64 { return 0 }
