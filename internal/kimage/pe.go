// SPDX-License-Identifier: MIT

package kimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Extent is a part of a file, in bytes.
type Extent struct {
	Offset, Size int64
}

// UKI is what a unified kernel image brings along beside the kernel
// (https://uapi-group.org/specifications/specs/unified_kernel_image/). Of several profiles it is the first.
type UKI struct {
	// Linux is the kernel's own image within the file, Initrd the initrd; both are empty if there is none. kexec_file_load
	// takes no UKI, only these.
	Linux, Initrd Extent
	// CommandLine is the embedded one, without white space at its end.
	CommandLine string
	// Uname is the release that the image says of itself, OSRelease its os-release file.
	Uname, OSRelease string
	// Profiles is how many there are to choose from at boot; 0 is the same as 1.
	Profiles int
	// LinuxSigned says whether the kernel within has a signature of its own. It is the one that kexec_file_load checks.
	LinuxSigned bool
	// LinuxKind is how the kernel within is packed.
	LinuxKind Kind
}

// Limits for PE files. Windows' loader takes no more sections than this, and no file of the kernel's or systemd's has nearly
// as many.
const (
	sectionsMax = 96
	textMax     = 64 << 10
)

type section struct {
	name string
	Extent
}

type portable struct {
	sections []section
	signed   bool
}

// parsePE reads the headers of a PE file, as far as they say what is in it and whether it's signed.
func parsePE(r io.ReaderAt, size int64) (*portable, error) {
	head, err := readAt(r, size, 0, 64)
	if err != nil || !bytes.HasPrefix(head, []byte("MZ")) {
		return nil, errors.New("no DOS header")
	}
	at := int64(binary.LittleEndian.Uint32(head[60:]))
	coff, err := readAt(r, size, at, 24)
	if err != nil {
		return nil, fmt.Errorf("PE header: %w", err)
	}
	if string(coff[:4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("no PE header at %#x", at)
	}
	count, optionalSize := int(binary.LittleEndian.Uint16(coff[6:])), int(binary.LittleEndian.Uint16(coff[20:]))
	if count > sectionsMax {
		return nil, fmt.Errorf("the PE header counts %d sections", count)
	}
	optional, err := readAt(r, size, at+24, optionalSize)
	if err != nil {
		return nil, fmt.Errorf("PE optional header: %w", err)
	}
	table, err := readAt(r, size, at+24+int64(optionalSize), 40*count)
	if err != nil {
		return nil, fmt.Errorf("PE section table: %w", err)
	}
	p := &portable{}
	if p.signed, err = signed(optional, size); err != nil {
		return nil, err
	}
	for ; len(table) > 0; table = table[40:] {
		name, _, _ := bytes.Cut(table[:8], []byte{0})
		u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(table[at:])) }
		// Both sizes may be rounded up or, in memory, be larger: what both allow is the content.
		s := section{string(name), Extent{Offset: u32(20), Size: min(u32(8), u32(16))}}
		if s.Size == 0 {
			s.Offset = 0 // it may be anything
		}
		if s.Offset > size || s.Size > size-s.Offset {
			return nil, fmt.Errorf("PE section %q is said to be at %d, %d bytes long, but the file has only %d bytes",
				s.name, s.Offset, s.Size, size)
		}
		p.sections = append(p.sections, s)
	}
	return p, nil
}

// signed looks for a certificate table, the fifth of the data directories. Unlike the others its address is one in the file.
func signed(optional []byte, size int64) (bool, error) {
	if len(optional) < 2 {
		return false, nil
	}
	var count int // where the number of directories is
	switch binary.LittleEndian.Uint16(optional) {
	case 0x10b:
		count = 92
	case 0x20b:
		count = 108
	default:
		return false, fmt.Errorf("the PE optional header is of an unknown kind %#x", optional[:2])
	}
	const certificates = 4
	at := count + 4 + 8*certificates
	if len(optional) < at+8 || binary.LittleEndian.Uint32(optional[count:]) <= certificates {
		return false, nil
	}
	offset, length := int64(binary.LittleEndian.Uint32(optional[at:])), int64(binary.LittleEndian.Uint32(optional[at+4:]))
	if offset == 0 || length == 0 {
		return false, nil
	}
	if offset > size || length > size-offset {
		return false, fmt.Errorf("the PE certificate table is said to be at %d, %d bytes long, but the file has only %d bytes",
			offset, length, size)
	}
	return true, nil
}

// uki is what a PE file has as a UKI, or nil if it isn't one.
func (p *portable) uki(r io.ReaderAt, size int64) (*UKI, error) {
	chosen := map[string]Extent{}
	profiles := 0
	for _, s := range p.sections {
		if s.name == ".profile" {
			profiles++
		}
		// What comes before the first .profile is for all of them, unless the profile has its own.
		if profiles <= 1 {
			chosen[s.name] = s.Extent
		}
	}
	if chosen[".linux"].Size == 0 {
		return nil, nil
	}
	u := &UKI{Linux: chosen[".linux"], Initrd: chosen[".initrd"], Profiles: profiles}
	for name, to := range map[string]*string{".cmdline": &u.CommandLine, ".uname": &u.Uname, ".osrel": &u.OSRelease} {
		s := chosen[name]
		if s.Size > textMax {
			return nil, fmt.Errorf("the UKI's section %s has %d bytes", name, s.Size)
		}
		text, err := readAt(r, size, s.Offset, int(s.Size))
		if err != nil {
			return nil, fmt.Errorf("the UKI's section %s: %w", name, err)
		}
		*to = string(bytes.TrimRight(text, "\x00\n\r\t "))
	}
	return u, nil
}

// readAt reads n bytes, all of which must be there.
func readAt(r io.ReaderAt, size, offset int64, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if offset < 0 || offset > size || int64(n) > size-offset {
		return nil, fmt.Errorf("%d bytes at %d are beyond the end of the file, at %d", n, offset, size)
	}
	data := make([]byte, n)
	if n, err := r.ReadAt(data, offset); n < len(data) {
		return nil, err
	}
	return data, nil
}
