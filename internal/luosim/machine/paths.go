// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const devicePath = "/dev/liveupdate"

// The files that are read in the emulated machine instead of the real one's.
var readable = map[string]func(*boot) string{
	"/sys/kernel/kexec_loaded":        (*boot).kexecLoaded,
	"/sys/kernel/kexec/loaded":        (*boot).kexecLoaded, // what kexec_loaded links to since 7.0
	"/proc/sys/kernel/osrelease":      func(b *boot) string { return b.release() + "\n" },
	"/proc/sys/kernel/random/boot_id": func(b *boot) string { return b.id + "\n" },
}

// bases are the last components of all of these paths: most paths end otherwise, and that is seen at once.
var bases = func() map[string]bool {
	m := map[string]bool{path.Base(devicePath): true}
	for p := range readable {
		m[path.Base(p)] = true
	}
	return m
}()

func (b *boot) kexecLoaded() string {
	if b.loaded {
		return "1\n"
	}
	return "0\n"
}

// target is the path that a call names, if it is one of the emulated machine's own; else it is empty.
func (b *boot) target(c *call, dirArg, pathArg int) string {
	name, err := c.text(c.Args[pathArg])
	if err != 0 || !bases[path.Base(name)] {
		return ""
	}
	full := c.absolute(dirArg, name)
	if known(full) {
		return full
	}
	// A directory in it may be a symbolic link.
	dir, openErr := unix.Open(c.proc("root")+c.outside(path.Dir(full)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if openErr != nil {
		return ""
	}
	defer unix.Close(dir)
	real, readErr := os.Readlink("/proc/self/fd/" + strconv.Itoa(dir))
	if readErr != nil {
		return ""
	}
	if full = path.Join(real, path.Base(name)); known(full) {
		return full
	}
	return ""
}

func known(p string) bool { return p == devicePath || readable[p] != nil }

// absolute is the path from the caller's root, without following links.
func (c *call) absolute(dirArg int, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	dir := c.proc("cwd")
	if dirArg != none && c.argInt(dirArg) != unix.AT_FDCWD {
		dir = c.proc("fd/" + strconv.Itoa(int(c.argInt(dirArg))))
	}
	real, err := os.Readlink(dir)
	if err != nil {
		return ""
	}
	return path.Join(real, name)
}

// outside is a path of the caller's as another process says it: /proc/self is somebody else there.
func (c *call) outside(p string) string {
	for _, self := range []string{"/proc/self", "/proc/thread-self"} {
		if rest, ok := strings.CutPrefix(p, self); ok && (rest == "" || rest[0] == '/') {
			return "/proc/" + strconv.Itoa(c.pid()) + rest
		}
	}
	return p
}

func (b *boot) openFile(c *call, dirArg, pathArg int, flags uint64) verdict {
	target := b.target(c, dirArg, pathArg)
	if target == "" && b.namesDevice(c, dirArg, pathArg) {
		target = devicePath
	}
	if flags&unix.O_TRUNC != 0 {
		if size, frozen := b.namesFrozen(c, dirArg, pathArg); frozen && size > 0 {
			return result(unix.EPERM)
		}
	}
	switch {
	case target == "" || !c.listener.Valid(&c.Call):
		return cont
	case target == devicePath:
		return b.openDevice(c, flags)
	default:
		return b.openText(c, flags, readable[target](b))
	}
}

func (b *boot) openat2(c *call) verdict {
	var how [8]byte // struct open_how begins with its flags
	if c.Read(c.Args[2], how[:]) != 0 {
		return cont
	}
	return b.openFile(c, 0, 1, binary.NativeEndian.Uint64(how[:]))
}

func (b *boot) openDevice(c *call, flags uint64) verdict {
	switch {
	case !b.kernel.Present():
		return result(unix.ENOENT)
	case flags&unix.O_PATH != 0:
		// A descriptor of that kind can't be given away, and only fstat() tells much about it.
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return result(unix.ENOENT)
		}
		defer unix.Close(fd)
		return b.giveFile(c, fd, flags)
	case !c.Room():
		return result(unix.EMFILE)
	case flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL:
		return result(unix.EEXIST)
	case flags&unix.O_DIRECTORY != 0:
		return result(unix.ENOTDIR)
	}
	fd, err := b.kernel.OpenDevice()
	if err != 0 {
		return result(err)
	}
	defer unix.Close(fd)
	if flags&unix.O_NONBLOCK != 0 {
		unix.SetNonblock(fd, true)
	}
	return b.giveFile(c, fd, flags)
}

// openText gives the caller a file that holds the text and can't be changed.
func (b *boot) openText(c *call, flags uint64, text string) verdict {
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return result(unix.EACCES)
	}
	fd, err := unix.MemfdCreate("luosim", unix.MFD_CLOEXEC)
	if err != nil {
		return result(unix.ENOMEM)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return result(unix.EIO)
	}
	reader, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return result(unix.EIO)
	}
	defer unix.Close(reader)
	return b.giveFile(c, reader, flags)
}

func (b *boot) giveFile(c *call, fd int, flags uint64) verdict {
	switch err := c.listener.ReturnFile(&c.Call, fd, uint32(flags&unix.O_CLOEXEC)); err {
	case 0, unix.ENOENT: // or the caller is gone
		return verdict{kind: gone}
	default:
		return result(err)
	}
}

func (b *boot) access(c *call, dirArg, pathArg, modeArg int) verdict {
	target := b.target(c, dirArg, pathArg)
	if target == "" {
		return cont
	}
	mode := c.argInt(modeArg)
	switch {
	case target == devicePath && !b.kernel.Present():
		return result(unix.ENOENT)
	case mode&unix.X_OK != 0, target != devicePath && mode&unix.W_OK != 0:
		return result(unix.EACCES)
	}
	return gives(0)
}

// readlink is for the links of descriptors in /proc: those of sessions and of the device.
func (b *boot) readlink(c *call, dirArg, pathArg, bufArg int) verdict {
	name, err := c.text(c.Args[pathArg])
	if err != 0 {
		return cont
	}
	if bases[path.Base(name)] {
		if target := b.target(c, dirArg, pathArg); target == devicePath && !b.kernel.Present() {
			return result(unix.ENOENT)
		} else if target != "" {
			return result(unix.EINVAL)
		}
	}
	pid, fd := c.descriptor(dirArg, name)
	if pid == 0 {
		return cont
	}
	h := b.handles.Of(pid, fd)
	var link string
	switch {
	case h == nil:
		dev, ino, err := identity(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil {
			return cont
		}
		var ok bool
		if link, ok = b.kernel.FileLink(dev, ino); !ok {
			return cont
		}
	case b.kernel.IsDevice(h):
		link = devicePath
	default:
		s := b.kernel.Session(h)
		if s == nil {
			return cont
		}
		if link, err = s.Link(); err != 0 {
			return result(err)
		}
	}
	size := c.argInt(bufArg + 1)
	if size <= 0 {
		return result(unix.EINVAL)
	}
	text := []byte(link)
	text = text[:min(len(text), int(size))]
	if err := c.Write(c.Args[bufArg], text); err != 0 {
		return result(err)
	}
	return gives(int64(len(text)))
}

// descriptor is what a path in /proc names, if that is the link of a descriptor: the process by its number here, or 0.
func (c *call) descriptor(dirArg int, name string) (pid int, fd int32) {
	n, err := strconv.ParseUint(path.Base(name), 10, 31)
	if err != nil {
		return 0, -1
	}
	dir := path.Dir(c.absolute(dirArg, name))
	if path.Base(dir) != "fd" {
		return 0, -1
	}
	return c.owner(dir), int32(n)
}

// namesDevice tells whether a path leads to the opened device by a link in /proc.
func (b *boot) namesDevice(c *call, dirArg, pathArg int) bool {
	if b.handles.Empty() {
		return false
	}
	name, err := c.text(c.Args[pathArg])
	if err != 0 {
		return false
	}
	pid, fd := c.descriptor(dirArg, name)
	if pid == 0 {
		return false
	}
	h := b.handles.Of(pid, fd)
	return h != nil && b.kernel.IsDevice(h)
}

// namesFrozen tells whether a path leads to a preserved file by a link in /proc, and its size.
func (b *boot) namesFrozen(c *call, dirArg, pathArg int) (size int64, frozen bool) {
	if !b.kernel.AnyFrozen() {
		return 0, false
	}
	name, err := c.text(c.Args[pathArg])
	if err != 0 {
		return 0, false
	}
	pid, fd := c.descriptor(dirArg, name)
	if pid == 0 {
		return 0, false
	}
	dev, ino, statErr := identity(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if statErr != nil {
		return 0, false
	}
	return b.kernel.Frozen(dev, ino)
}

// truncate is for what ftruncate is for.
func (b *boot) truncate(c *call) verdict {
	length := int64(c.Args[1])
	if size, frozen := b.namesFrozen(c, none, 0); frozen && length >= 0 && length != size {
		return result(unix.EPERM)
	}
	return cont
}

// owner is the process of a directory .../fd in /proc, by its number here; 0 if it is none.
func (c *call) owner(dir string) int {
	rest, ok := strings.CutPrefix(c.outside(dir), "/proc/")
	if !ok {
		return 0
	}
	first, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	return pid
}

// pseudo is the stat of one of the machine's own files.
func (b *boot) pseudo(target string) (unix.Stat_t, unix.Errno) {
	st := unix.Stat_t{Dev: unix.Mkdev(0, 5), Ino: 0x6c756f, Nlink: 1, Blksize: 4096, Ctim: b.started, Mtim: b.started, Atim: b.started}
	if target == devicePath {
		if !b.kernel.Present() {
			return st, unix.ENOENT
		}
		st.Mode = unix.S_IFCHR | 0o600
		st.Rdev = deviceNumber
		st.Uid, st.Gid = uint32(os.Getuid()), uint32(os.Getgid())
		return st, 0
	}
	st.Mode = unix.S_IFREG | 0o444
	st.Size = 4096
	return st, 0
}

// deviceNumber is a dynamic minor of the misc devices.
var deviceNumber = unix.Mkdev(10, 124)

// statTarget is what a stat call is about, if it is the machine's own: by path, or, with an empty path, by descriptor.
func (b *boot) statTarget(c *call, dirArg, pathArg int, flags int32) string {
	if flags&unix.AT_EMPTY_PATH != 0 && dirArg != none && !b.handles.Empty() {
		var first [1]byte
		if c.Args[pathArg] == 0 || c.Read(c.Args[pathArg], first[:]) == 0 && first[0] == 0 {
			if b.isDevice(c, c.argInt(dirArg)) {
				return devicePath
			}
			return ""
		}
	}
	if flags&unix.AT_SYMLINK_NOFOLLOW == 0 && b.namesDevice(c, dirArg, pathArg) {
		return devicePath
	}
	return b.target(c, dirArg, pathArg)
}

// stat is for all calls that fill a struct stat.
func (b *boot) stat(c *call, dirArg, pathArg, bufArg int, flags int32) verdict {
	target := b.statTarget(c, dirArg, pathArg, flags)
	if target == "" {
		return cont
	}
	st, err := b.pseudo(target)
	if err != 0 {
		return result(err)
	}
	return result(c.Write(c.Args[bufArg], bytesOf(&st)))
}

func (b *boot) statx(c *call) verdict {
	target := b.statTarget(c, 0, 1, c.argInt(2))
	if target == "" {
		return cont
	}
	st, err := b.pseudo(target)
	if err != 0 {
		return result(err)
	}
	x := unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(st.Blksize), Nlink: uint32(st.Nlink), Uid: st.Uid, Gid: st.Gid,
		Mode: uint16(st.Mode), Ino: st.Ino, Size: uint64(st.Size),
		Rdev_major: unix.Major(st.Rdev), Rdev_minor: unix.Minor(st.Rdev),
		Dev_major: unix.Major(st.Dev), Dev_minor: unix.Minor(st.Dev),
	}
	t := unix.StatxTimestamp{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)}
	x.Atime, x.Mtime, x.Ctime = t, t, t
	return result(c.Write(c.Args[4], bytesOf(&x)))
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

func (b *boot) release() string { return fmt.Sprintf("%s.0-luosim.%d", b.version, b.number) }

func (b *boot) uname(c *call) verdict {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return cont
	}
	clear(u.Release[:])
	copy(u.Release[:len(u.Release)-1], b.release())
	return result(c.Write(c.Args[0], bytesOf(&u)))
}

// newID is a random UUID.
func newID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return "00000000-0000-4000-8000-000000000000"
	}
	return string(bytes.TrimSpace(id))
}
