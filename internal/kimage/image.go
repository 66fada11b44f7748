// SPDX-License-Identifier: MIT

package kimage

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-project/holdfast/internal/decompress"
)

// Kind is how an image is packed.
type Kind string

// The kinds that are read.
const (
	BzImage Kind = "bzImage"
	Unified Kind = "UKI"
	Vmlinux Kind = "vmlinux"
	Arm64   Kind = "arm64 Image"
	Zboot   Kind = "EFI zboot image"
)

// Image is what a kernel's image says of itself.
type Image struct {
	Kind Kind
	// Compression is the kernel's ("" for none). In a UKI, it and Setup are those of the kernel within.
	Compression decompress.Method
	// Signed says whether the file carries an Authenticode signature (a PE certificate table). Whose, and whether it's
	// good, isn't looked at.
	Signed bool
	// Setup is nil unless it's a bzImage.
	Setup *Setup
	// UKI is nil unless it's one.
	UKI *UKI
	Kernel
}

// Setup is of a bzImage's header (Documentation/arch/x86/boot.rst).
type Setup struct {
	// Protocol is the boot protocol's version, 0x020f for 2.15.
	Protocol uint16
	// Version is the header's text: release, builder, build.
	Version     string
	LoadFlags   byte
	XLoadFlags  uint16
	Relocatable bool
	// InitSize is how many bytes the kernel needs to unpack itself.
	InitSize uint32
	// CommandLineMax is how many bytes kexec_file_load takes as its command line, 0 if the header doesn't say it.
	CommandLineMax int
	// Payload is where the compressed kernel is in the image.
	Payload Extent
}

// Flags of the header (arch/x86/include/uapi/asm/bootparam.h).
const (
	loadedHigh   = 1 << 0
	kernel64     = 1 << 0
	aboveFourGiB = 1 << 1
)

// KexecFile says why kexec_file_load would refuse the image, as bzImage64_probe() does (arch/x86/kernel/kexec-bzimage64.c,
// Linux 7.2.13).
func (s *Setup) KexecFile() error {
	switch {
	case s.Protocol < 0x020c:
		return fmt.Errorf("kexec_file_load would refuse this kernel: its boot protocol is %d.%d, and 2.12 is needed", s.Protocol>>8, s.Protocol&0xff)
	case s.LoadFlags&loadedHigh == 0:
		return errors.New("kexec_file_load would refuse this kernel: it is a zImage")
	case s.XLoadFlags&kernel64 == 0:
		return errors.New("kexec_file_load would refuse this kernel: it has no 64-bit entry point")
	case s.XLoadFlags&aboveFourGiB == 0:
		return errors.New("kexec_file_load would refuse this kernel: it can't be loaded above 4 GiB; build it with CONFIG_RELOCATABLE")
	}
	return nil
}

// ErrNotKernel is wrapped by the error for a file that is no kernel's image.
var ErrNotKernel = errors.New("this is no kernel image that can be read: neither a bzImage, UKI, arm64 Image, EFI zboot image nor vmlinux")

// Read reads the image of size bytes in r. It takes the time of unpacking the kernel, or until ctx is done.
//
// If the headers are good and what they lead to isn't, or is compressed with something that can't be read
// (decompress.ErrUnsupported), the image is returned together with the error, with Complete false.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*Image, error) {
	return read(ctx, r, size, unpackedMax)
}

func read(ctx context.Context, r io.ReaderAt, size, limit int64) (*Image, error) {
	i := &Image{}
	if err := i.read(ctx, r, size, limit, false); err != nil {
		err = fmt.Errorf("reading the kernel image: %w", err)
		if i.Kind == "" {
			return nil, err
		}
		return i, err
	}
	return i, nil
}

const headSize = 0x264 // to the end of init_size in a bzImage

// read is told whether it reads a part of a UKI, in which there can't be another.
func (i *Image) read(ctx context.Context, r io.ReaderAt, size, limit int64, inside bool) error {
	head := make([]byte, headSize)
	if n, err := r.ReadAt(head, 0); n == 0 && err != io.EOF && size > 0 {
		return err
	} else {
		head = head[:min(int64(n), max(size, 0))]
	}
	inner := Extent{0, size}
	if bytes.HasPrefix(head, []byte("MZ")) {
		pe, err := parsePE(r, size)
		if err == nil {
			i.Signed = pe.signed
			if i.UKI, err = pe.uki(r, size); i.UKI != nil && inside {
				return errors.New("there is a UKI in it")
			}
		}
		// A bzImage needs no PE header to be loaded by kexec.
		if err != nil && !isBzImage(head) {
			return err
		}
		if i.UKI != nil {
			return i.unified(ctx, r, size, limit)
		}
	}
	switch {
	case isBzImage(head):
		i.Kind = BzImage
		if err := i.setup(ctx, r, size, head); err != nil {
			return err
		}
		inner = i.Setup.Payload
	case bytes.HasPrefix(head, []byte("MZ\x00\x00zimg")): // drivers/firmware/efi/libstub/zboot-header.S
		i.Kind = Zboot
		inner = Extent{int64(binary.LittleEndian.Uint32(head[8:])), int64(binary.LittleEndian.Uint32(head[12:]))}
		if inner.Offset > size || inner.Size > size-inner.Offset {
			return cut("compressed kernel", inner, size)
		}
	case kindOf(head) != "":
		i.Kind = kindOf(head)
	case decompress.Detect(head) == decompress.None:
		return ErrNotKernel
	}
	return i.kernel(ctx, r, inner, limit)
}

func cut(what string, e Extent, size int64) error {
	return fmt.Errorf("the %s is said to be at %d, %d bytes long, but the file has only %d bytes: is it cut off?",
		what, e.Offset, e.Size, size)
}

// kindOf tells an unpacked kernel by its first bytes.
func kindOf(head []byte) Kind {
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return Vmlinux
	case len(head) >= 60 && string(head[56:60]) == "ARM\x64": // Documentation/arch/arm64/booting.rst
		return Arm64
	}
	return ""
}

func isBzImage(head []byte) bool {
	return len(head) == headSize && string(head[0x202:0x206]) == "HdrS" && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa
}

// unified reads the kernel in a UKI.
func (i *Image) unified(ctx context.Context, r io.ReaderAt, size, limit int64) error {
	u := i.UKI
	i.Kind, i.Release = Unified, u.Uname
	kernel := &Image{}
	err := kernel.read(ctx, io.NewSectionReader(r, u.Linux.Offset, u.Linux.Size), u.Linux.Size, limit, true)
	i.Compression, i.Setup, i.Kernel, u.LinuxSigned, u.LinuxKind = kernel.Compression, kernel.Setup, kernel.Kernel, kernel.Signed, kernel.Kind
	switch {
	case err != nil:
		err = fmt.Errorf("section .linux: %w", err)
	case u.Uname != "" && u.Uname != i.Release:
		err = fmt.Errorf("section .uname says %q, but the kernel is %q", u.Uname, i.Release)
	}
	if i.Release == "" {
		i.Release = u.Uname
	}
	return err
}

// setup reads a bzImage's header.
func (i *Image) setup(ctx context.Context, r io.ReaderAt, size int64, head []byte) error {
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(head[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(head[at:]) }
	s := &Setup{Protocol: u16(0x206), LoadFlags: head[0x211]}
	i.Setup = s
	if s.Protocol < 0x0208 {
		return fmt.Errorf("its boot protocol is %d.%d; before 2.8, of Linux 2.6.26, the header doesn't say where the kernel is",
			s.Protocol>>8, s.Protocol&0xff)
	}
	s.Relocatable = head[0x234] != 0
	// bzImage64_load() counts the NUL (arch/x86/kernel/kexec-bzimage64.c, Linux 7.2.13).
	s.CommandLineMax = max(int(u32(0x238))-1, 0)
	if s.Protocol >= 0x020a {
		s.InitSize = u32(0x260)
	}
	if s.Protocol >= 0x020c {
		s.XLoadFlags = u16(0x236)
	}
	if at := u16(0x20e); at != 0 {
		text := make([]byte, 512)
		n, _ := r.ReadAt(text, int64(at)+0x200)
		text, _, _ = bytes.Cut(text[:n], []byte{0})
		if printable(string(text)) {
			s.Version = string(text)
			i.Release, _, _ = strings.Cut(s.Version, " ")
		}
	}
	sectors := int64(head[0x1f1])
	if sectors == 0 {
		sectors = 4 // as boot.rst has it
	}
	start := (sectors + 1) * 512
	s.Payload = Extent{start + int64(u32(0x248)), int64(u32(0x24c))}
	if p := s.Payload; p.Size == 0 || p.Offset > size || p.Size > size-p.Offset {
		return cut("compressed kernel", s.Payload, size)
	}
	// What unpacks the kernel, and is entered first, is before the payload and behind it.
	code := Extent{start, int64(u32(0x1f4)) * 16}
	switch behind := s.Payload.Offset + s.Payload.Size; {
	case code.Size > size-start:
		return cut("code with the compressed kernel in it", code, size)
	case behind > start+code.Size:
		return fmt.Errorf("the compressed kernel is said to end at %d, which is behind the end of the code that it is in, %d", behind, start+code.Size)
	default:
		err := noHole(ctx, r, start, start, s.Payload.Offset)
		return cmp.Or(err, noHole(ctx, r, start, behind, start+code.Size))
	}
}

// noHole finds zeros in place of code, as a machine leaves them that went down before the file was on its disk: a page of them, of
// those counted from start, or nothing else at all. Where sections begin at a new page (arch/x86/boot/compressed/vmlinux.lds.S, Linux
// 7.2.13), none is left empty for that.
func noHole(ctx context.Context, r io.ReaderAt, start, from, to int64) error {
	const size = 4096
	code := decompress.Until(ctx, io.NewSectionReader(r, from, to-from))
	page := make([]byte, size)
	for at := from; at < to; {
		n := min(size-(at-start)%size, to-at)
		if _, err := io.ReadFull(code, page[:n]); err != nil {
			return err
		}
		if (n == size || n == to-from) && len(bytes.Trim(page[:n], "\x00")) == 0 {
			return fmt.Errorf("there are only zeros at %d, where the code is that unpacks the kernel: was the file written to its end?", at)
		}
		at += n
	}
	return nil
}

// kernel unpacks the kernel at inner, if it is packed, and looks through it.
func (i *Image) kernel(ctx context.Context, r io.ReaderAt, inner Extent, limit int64) error {
	if inner.Size > limit {
		return fmt.Errorf("the kernel in it has %d MiB, which is more than any has", inner.Size>>20)
	}
	part := io.NewSectionReader(r, inner.Offset, inner.Size)
	packed := bufio.NewReaderSize(decompress.Until(ctx, part), 64<<10)
	start, _ := packed.Peek(decompress.HeadSize)
	i.Compression = decompress.Detect(start)

	// The build appends the unpacked size to what all but gzip make (size_append in scripts/Makefile.lib); in a zboot image
	// it is behind what the header counts.
	var want int64 = -1
	if i.Kind == BzImage && i.Compression != decompress.Gzip && inner.Size >= 4 {
		tail := make([]byte, 4)
		if _, err := part.ReadAt(tail, inner.Size-4); err != nil {
			return err
		}
		want = int64(binary.LittleEndian.Uint32(tail))
		packed.Reset(decompress.Until(ctx, io.NewSectionReader(r, inner.Offset, inner.Size-4)))
	}
	var plain io.Reader = packed
	if i.Compression != decompress.None {
		var err error
		if plain, err = decompress.NewReader(packed, i.Compression); err != nil {
			return i.unpacking(err)
		}
	}
	content := bufio.NewReaderSize(plain, 64<<10)
	head, _ := content.Peek(headSize)
	if i.Kind == "" {
		i.Kind = kindOf(head)
	}

	s := &scan{}
	if err := s.read(ctx, content, limit); err != nil {
		return i.unpacking(err)
	}
	if i.Kind == "" || s.banner == "" {
		return fmt.Errorf("what it holds is no kernel: %w", ErrNotKernel)
	}
	if want >= 0 && want != s.size {
		return fmt.Errorf("the kernel unpacks to %d bytes, and the image says %d: is it damaged?", s.size, want)
	}
	if i.Release != "" && i.Release != s.release {
		return fmt.Errorf("the header says that it is kernel %q, and the kernel itself says %q", i.Release, s.release)
	}
	i.Release, i.Banner = s.release, s.banner
	i.setFormats(s.formats, "the image", true)
	config, err := s.config()
	if err != nil {
		return fmt.Errorf("the embedded configuration: %w", err)
	}
	if config != nil {
		i.Config, i.ConfigFrom = config, "the image"
	}
	return nil
}

func (i *Image) unpacking(err error) error {
	if i.Compression == decompress.None {
		return err
	}
	return fmt.Errorf("unpacking the kernel: %w", err)
}
