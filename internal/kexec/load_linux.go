// SPDX-License-Identifier: MIT

package kexec

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/kimage"
)

// Load loads the next kernel, in place of one that may be loaded already. Of a unified kernel image it takes the kernel, and the
// initrd and the command line too unless they are given: kexec_file_load takes no such image as it is. initrd may be nil. Neither
// file is kept or closed. Nothing but kexec_file_load will do: what kexec_load loads is handed nothing over.
func Load(ctx context.Context, kernel, initrd *os.File, cmdline string) error {
	parts, err := Unpack(ctx, kernel)
	if err != nil {
		return err
	}
	if parts != nil {
		defer parts.Close()
		kernel = parts.Linux
		if initrd == nil {
			initrd = parts.Initrd
		}
		if cmdline == "" {
			cmdline = parts.CommandLine
		}
	}
	if strings.IndexByte(cmdline, 0) >= 0 {
		return errors.New("loading the next kernel: its command line has a NUL in it")
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("loading the next kernel: %w", err)
	}
	err = use(kernel, func(kernelFD int) error {
		if initrd == nil {
			return unix.KexecFileLoad(kernelFD, -1, cmdline, unix.KEXEC_FILE_NO_INITRAMFS)
		}
		return use(initrd, func(initrdFD int) error { return unix.KexecFileLoad(kernelFD, initrdFD, cmdline, 0) })
	})
	if err != nil {
		return &Error{"loading the next kernel", err}
	}
	return nil
}

// LoadChecked loads what was found good, and nothing else: a file that was written to since it was looked at, and wasn't replaced, as
// package managers do, is not loaded, or is dropped again. With that no kernel is loaded.
func LoadChecked(ctx context.Context, kernel, initrd *os.File, cmdline string, check func() error) error {
	files := []*os.File{kernel}
	if initrd != nil {
		files = append(files, initrd)
	}
	before, err := digests(ctx, files)
	if err != nil {
		return err
	}
	if err := check(); err != nil {
		return err
	}
	if err := Load(ctx, kernel, initrd, cmdline); err != nil {
		return err
	}
	after, err := digests(ctx, files)
	for i, f := range files {
		if err == nil && before[i] != after[i] {
			err = fmt.Errorf("%s was changed while it was checked and loaded: no kernel is loaded; try again", f.Name())
		}
	}
	if err != nil {
		return errors.Join(err, Unload())
	}
	return nil
}

const fileMax = 4 << 30 // KEXEC_FILE_SIZE_MAX, kernel/kexec_file.c, Linux 7.2.13

// seed is nobody's to guess, and with that no two contents can be made to have one digest.
var seed = maphash.MakeSeed()

// digests tell what is in files, within this process. Their times would not: those of a FAT file system, as a boot partition has, count every second second.
func digests(ctx context.Context, files []*os.File) (sums []uint64, err error) {
	for _, f := range files {
		info, err := f.Stat()
		switch {
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular():
			return nil, fmt.Errorf("%s is no regular file", f.Name())
		case info.Size() > fileMax:
			return nil, fmt.Errorf("%s has more than 4 GiB, and can't be loaded", f.Name())
		}
		var sum maphash.Hash
		sum.SetSeed(seed)
		if _, err := io.Copy(&sum, &stoppable{ctx, io.NewSectionReader(f, 0, fileMax)}); err != nil {
			return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
		}
		sums = append(sums, sum.Sum64())
	}
	return sums, nil
}

// use lends the descriptor of a file, without making it a blocking one as [os.File.Fd] does.
func use(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = do(int(fd)) }); err != nil {
		return err
	}
	return result
}

// Error is a refusal of the kernel's. Err is its errno.
type Error struct {
	Op  string
	Err error
}

// Error says what to do, too.
func (e *Error) Error() string {
	text := e.Op + ": " + os.NewSyscallError("kexec_file_load", e.Err).Error()
	if why := e.why(); why != "" {
		text += "; " + why
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// why is what an errno of kexec_file_load means (kernel/kexec_file.c and arch/x86/kernel/kexec-bzimage64.c, Linux 7.2.13).
func (e *Error) why() string {
	switch {
	case errors.Is(e.Err, unix.EPERM):
		return "it needs CAP_SYS_BOOT, /proc/sys/kernel/kexec_load_disabled at 0, kexec_load_limit_reboot there not at 0, and under lockdown an image that is signed with a key that this kernel trusts"
	case errors.Is(e.Err, unix.EKEYREJECTED), errors.Is(e.Err, unix.ENODATA), errors.Is(e.Err, unix.ENOKEY), errors.Is(e.Err, unix.EBADMSG):
		return "this kernel wants a signature of a key that it trusts: take a signed image, or enrol the key"
	case errors.Is(e.Err, unix.ENOEXEC):
		return "this is no image that it can start: on x86-64 it takes a relocatable bzImage, on arm64 an uncompressed Image"
	case errors.Is(e.Err, unix.EADDRNOTAVAIL):
		return "kernel and initrd have to fit into KHO's scratch areas: take a smaller initrd, or boot this kernel with a larger kho_scratch="
	case errors.Is(e.Err, unix.ETXTBSY):
		return "somebody has the image open for writing"
	case errors.Is(e.Err, unix.EBUSY):
		return "somebody else is loading a kernel right now: try again"
	case errors.Is(e.Err, unix.ENOSYS):
		return "this kernel is built without CONFIG_KEXEC_FILE"
	case errors.Is(e.Err, unix.EINVAL):
		return "the command line may be too long (2,046 bytes on x86-64), or an image is empty"
	}
	return ""
}

// Parts are what a unified kernel image is made of, as files that can be loaded.
type Parts struct {
	Linux       *os.File
	Initrd      *os.File // nil if it has none
	CommandLine string
}

// Close closes the files.
func (p *Parts) Close() error {
	err := p.Linux.Close()
	if p.Initrd != nil {
		err = errors.Join(err, p.Initrd.Close())
	}
	return err
}

// CommandLine is what a unified kernel image has of its own, "" for any other file.
func CommandLine(image *os.File) (string, error) {
	uki, err := unified(image)
	if uki == nil || err != nil {
		return "", err
	}
	return uki.CommandLine, nil
}

func unified(image *os.File) (*kimage.UKI, error) {
	info, err := image.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", image.Name())
	}
	return kimage.ReadUKI(image, info.Size())
}

// Unpack returns the parts of a unified kernel image, to be closed by the caller, or nil for any other file. They are in memory.
func Unpack(ctx context.Context, image *os.File) (*Parts, error) {
	uki, err := unified(image)
	if uki == nil || err != nil {
		return nil, err
	}
	p := &Parts{CommandLine: uki.CommandLine}
	if p.Linux, err = extract(ctx, "linux", image, uki.Linux); err != nil {
		return nil, err
	}
	if uki.Initrd.Size > 0 {
		if p.Initrd, err = extract(ctx, "initrd", image, uki.Initrd); err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

func extract(ctx context.Context, name string, image io.ReaderAt, part kimage.Extent) (*os.File, error) {
	if part.Size > MemoryMax {
		return nil, fmt.Errorf("the %s in the image has %d MiB, which is more than any has", name, part.Size>>20)
	}
	return Memory(ctx, name, io.NewSectionReader(image, part.Offset, part.Size))
}

// MemoryMax is more than a kernel or an initrd has, in bytes. A sparse file may seem to have any size, and takes memory when it is copied.
const MemoryMax = 2 << 30

// Memory copies what it reads into a file in memory that can be loaded, as one initrd that is made of several. Nothing of more than 2 GiB
// is copied.
func Memory(ctx context.Context, name string, content ...io.Reader) (*os.File, error) {
	return memory(ctx, name, MemoryMax, content...)
}

func memory(ctx context.Context, name string, limit int64, content ...io.Reader) (*os.File, error) {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		raw, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	w := os.NewFile(uintptr(raw), name)
	defer w.Close()
	left := limit
	for _, r := range content {
		n, err := io.Copy(w, &stoppable{ctx, io.LimitReader(r, left+1)})
		if left -= n; err == nil && left < 0 {
			err = fmt.Errorf("it has more than %d MiB", limit>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("copying the %s: %w", name, err)
		}
	}
	// The kernel loads nothing that somebody has open for writing (ETXTBSY), so what is returned isn't, and w is closed.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", raw))
}

// stoppable ends with the context.
type stoppable struct {
	ctx context.Context
	io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p[:min(len(p), 1<<20)])
}
