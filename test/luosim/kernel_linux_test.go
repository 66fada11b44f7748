// SPDX-License-Identifier: MIT

package luosim

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the programs use of the kernel is written out here, from include/uapi/linux/liveupdate.h of Linux 7.2.13:
// the tests judge an emulation of exactly these calls, so nothing is to stand between.
const (
	createSession   = 0xba00
	retrieveSession = 0xba01
	preserveFD      = 0xba40
	retrieveFD      = 0xba41
	finishSession   = 0xba42
	getName         = 0xba43
)

type sessionArg struct {
	size uint32
	fd   int32
	name [64]byte
}

type fileArg struct {
	size  uint32
	fd    int32
	token uint64
}

type finishArg struct{ size, _ uint32 }

type nameArg struct {
	size, _ uint32
	name    [64]byte
}

func ioctl[T any](fd int, request uintptr, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}

func openDevice() (int, error) {
	return unix.Open("/dev/liveupdate", unix.O_RDWR|unix.O_CLOEXEC, 0)
}

func session(device int, request uintptr, name string) (int, error) {
	arg := sessionArg{size: uint32(unsafe.Sizeof(sessionArg{})), fd: -1}
	copy(arg.name[:63], name)
	err := ioctl(device, request, &arg)
	return int(arg.fd), err
}

// withDevice opens the device for one request, as everybody should.
func withDevice(request uintptr, name string) (int, error) {
	device, err := openDevice()
	if err != nil {
		return -1, err
	}
	defer unix.Close(device)
	return session(device, request, name)
}

func preserve(session, fd int, token uint64) error {
	return ioctl(session, preserveFD, &fileArg{size: uint32(unsafe.Sizeof(fileArg{})), fd: int32(fd), token: token})
}

func retrieve(session int, token uint64) (int, error) {
	arg := fileArg{size: uint32(unsafe.Sizeof(fileArg{})), fd: -1, token: token}
	err := ioctl(session, retrieveFD, &arg)
	return int(arg.fd), err
}

func finish(session int) error {
	return ioctl(session, finishSession, &finishArg{size: uint32(unsafe.Sizeof(finishArg{}))})
}

func nameOf(session int) (string, error) {
	arg := nameArg{size: uint32(unsafe.Sizeof(nameArg{}))}
	err := ioctl(session, getName, &arg)
	return unix.ByteSliceToString(arg.name[:]), err
}

// memfd makes one with content.
func memfd(content string) (int, error) {
	fd, err := unix.MemfdCreate("luosim-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	_, err = unix.Pwrite(fd, []byte(content), 0)
	return fd, err
}

// contentOf reads a file from its start and leaves its position alone.
func contentOf(fd int) (string, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return "", err
	}
	content := make([]byte, stat.Size)
	n, err := unix.Pread(fd, content, 0)
	return string(content[:n]), err
}

// load loads a next kernel, and unload forgets it.
func load() error {
	kernel, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer kernel.Close()
	return unix.KexecFileLoad(int(kernel.Fd()), -1, "", unix.KEXEC_FILE_NO_INITRAMFS)
}

func unload() error { return unix.KexecFileLoad(-1, -1, "", unix.KEXEC_FILE_UNLOAD) }

// loadOld is by the older call, which knows nothing of handing over.
func loadOld() error {
	content := make([]byte, unix.Getpagesize())
	segment := struct{ buf, size, memory, memorySize uintptr }{
		uintptr(unsafe.Pointer(&content[0])), uintptr(len(content)), 1 << 24, uintptr(len(content)),
	}
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, 1<<24, 1, uintptr(unsafe.Pointer(&segment)), 0, 0, 0)
	runtime.KeepAlive(content)
	if errno != 0 {
		return errno
	}
	return nil
}

// kexec loads a next kernel and switches to it. It returns only on failure.
func kexec() error {
	if err := load(); err != nil {
		return err
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC)
}
