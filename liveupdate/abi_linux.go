// SPDX-License-Identifier: MIT

package liveupdate

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's ABI, from include/uapi/linux/liveupdate.h of Linux 7.2.13. Each struct starts with its own size;
// a kernel that knows a longer one takes the shorter, and one that knows a shorter one wants the rest zero.
// The numbers are _IO(0xBA, nr): neither size nor direction is in them.
const (
	ioctlCreateSession   = 0xBA00 // on the device
	ioctlRetrieveSession = 0xBA01 // on the device
	ioctlPreserveFD      = 0xBA40 // on a session, as are the following
	ioctlRetrieveFD      = 0xBA41
	ioctlFinish          = 0xBA42
	ioctlGetName         = 0xBA43 // since Linux 7.2
)

const nameLength = MaxName + 1 // LIVEUPDATE_SESSION_NAME_LENGTH, with the terminating NUL

// deviceArg is struct liveupdate_ioctl_create_session and struct liveupdate_ioctl_retrieve_session.
type deviceArg struct {
	size uint32
	fd   int32 // out
	name [nameLength]byte
}

// fileArg is struct liveupdate_session_preserve_fd, where fd goes in, and struct
// liveupdate_session_retrieve_fd, where it comes out.
type fileArg struct {
	size  uint32
	fd    int32
	token uint64 // at offset 8 on every architecture: __aligned_u64
}

// finishArg is struct liveupdate_session_finish.
type finishArg struct {
	size uint32
	_    uint32 // reserved
}

// nameArg is struct liveupdate_session_get_name.
type nameArg struct {
	size uint32
	_    uint32           // reserved
	name [nameLength]byte // out
}

// turn has the calls of one process wait for each other. Without it they would find the device busy, each by the
// other, and pause for a hundred times as long as the other took.
var turn sync.Mutex

// deviceCall opens the device for one ioctl, or, where the first one finds nothing, for the next one too; done is the one
// that worked. All others get EBUSY meanwhile, and some of them, as PID 1, don't try again, so nothing may come between
// open and close. Hence raw system calls: after an ordinary one the goroutine may have to wait for its turn, and with all
// processors busy the device was seen open for 70 ms, where 10 µs is usual. Nor may the process fork: its child would
// have the device open until the exec.
func deviceCall(path, name string, numbers ...uintptr) (session int, done uintptr, openErr, callErr error) {
	device, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, 0, err, nil
	}
	var arg deviceArg
	here := unix.AT_FDCWD

	turn.Lock()
	defer turn.Unlock()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	raw, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(here), uintptr(unsafe.Pointer(device)), unix.O_RDWR|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return -1, 0, errno, nil
	}
	for _, done = range numbers {
		arg = deviceArg{}
		arg.size = uint32(unsafe.Sizeof(arg))
		copy(arg.name[:], name)
		_, _, errno = unix.RawSyscall(unix.SYS_IOCTL, raw, done, uintptr(unsafe.Pointer(&arg)))
		if errno != unix.ENOENT && errno != unix.EINVAL {
			break
		}
	}
	unix.RawSyscall(unix.SYS_CLOSE, raw, 0, 0)
	if errno != 0 {
		return -1, done, nil, errno
	}
	return int(arg.fd), done, nil, nil
}

// ioctl is not tried again after EINTR: should the restoring of a file fail so, it would fail so for ever.
func ioctl[T fileArg | finishArg | nameArg](fd int, number uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), number, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}

func preserveFD(session int, token uint64, fd int) error {
	arg := fileArg{fd: int32(fd), token: token}
	arg.size = uint32(unsafe.Sizeof(arg))
	return ioctl(session, ioctlPreserveFD, &arg)
}

func retrieveFD(session int, token uint64) (int, error) {
	arg := fileArg{fd: -1, token: token}
	arg.size = uint32(unsafe.Sizeof(arg))
	if err := ioctl(session, ioctlRetrieveFD, &arg); err != nil {
		return -1, err
	}
	return int(arg.fd), nil
}

func finish(session int) error {
	var arg finishArg
	arg.size = uint32(unsafe.Sizeof(arg))
	return ioctl(session, ioctlFinish, &arg)
}

func getName(session int) (string, error) {
	var arg nameArg
	arg.size = uint32(unsafe.Sizeof(arg))
	if err := ioctl(session, ioctlGetName, &arg); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(arg.name[:]), nil
}
