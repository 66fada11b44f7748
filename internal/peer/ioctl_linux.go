// SPDX-License-Identifier: MIT

package peer

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctlPidfdInfo(pidfd int, info *unix.PidfdInfo) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(info)))
	runtime.KeepAlive(info)
	if errno != 0 {
		return errno
	}
	return nil
}
