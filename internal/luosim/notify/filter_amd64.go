// SPDX-License-Identifier: MIT

package notify

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_X86_64
	compatArch = unix.AUDIT_ARCH_I386
	// x32 begins the numbers of a third way to make system calls, which nobody uses: it isn't there under luosim.
	x32 = 0x40000000
)
