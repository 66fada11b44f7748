// SPDX-License-Identifier: MIT

package machine

import "golang.org/x/sys/unix"

const sysNewfstatat = unix.SYS_FSTATAT

// Of 32-bit ARM (arch/arm64/tools/syscall_32.tbl).
const (
	compatOpen      = 5
	compatIoctl     = 54
	compatReboot    = 88
	compatOpenat    = 322
	compatKexecLoad = 347
)

var archHandlers []handler
