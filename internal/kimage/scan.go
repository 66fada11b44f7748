// SPDX-License-Identifier: MIT

package kimage

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Limits of a scan, in bytes.
const (
	// unpackedMax is for a whole kernel. Distributions' have less than 100 MiB.
	unpackedMax = 512 << 20
	// windowSize is how much of it is looked at at once.
	windowSize = 1 << 20
	// behind and ahead are how much must be in sight before and after a match.
	behind, ahead = 64, 1024
	// configMax is for a configuration, packed and unpacked. Distributions' have less than 400 KiB.
	configMax = 4 << 20
)

// handlerLength is LIVEUPDATE_HNDL_COMPAT_LENGTH, and LIVEUPDATE_FLB_COMPAT_LENGTH too (include/linux/kho/abi/luo.h,
// Linux 7.2.13).
const handlerLength = 48

var (
	bannerStart = []byte("Linux version ")
	configStart = []byte("IKCFG_ST\x1f\x8b\x08") // kernel/configs.c, and the beginning of gzip data
	version     = []byte("-v")
	line        = regexp.MustCompile(`^Linux version ([0-9][^ /]{0,63}) `) // __NEW_UTS_LEN is 64
	build       = regexp.MustCompile(`\) #[0-9]`)
)

// scan looks through a kernel, or a part of one, from front to back.
type scan struct {
	banner  string
	release string // in banner
	formats []Format
	packed  []byte // what comes after configStart
	inside  bool   // packed is still growing
	size    int64
}

// read takes the kernel from r until its end.
func (s *scan) read(ctx context.Context, r io.Reader, limit int64) error {
	window := make([]byte, windowSize)
	kept, n := 0, 0 // window[:kept] has been looked at, window[:n] is filled
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		fresh := n
		more, err := io.ReadFull(r, window[n:])
		n += more
		s.size += int64(more)
		if s.size > limit {
			return fmt.Errorf("it unpacks to more than %d MiB", limit>>20)
		}
		if s.inside {
			s.collect(window[fresh:n])
		}
		// A decompressor's own error, for input that ends too early, is wrapped.
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		end := n
		if !last {
			if err != nil {
				return err
			}
			end -= ahead
		}
		s.look(window[:n], kept, end)
		if last {
			return nil
		}
		from := end - behind
		n = copy(window, window[from:n])
		kept = behind
	}
}

// look finds what begins in window[from:to].
func (s *scan) look(window []byte, from, to int) {
	each := func(what []byte, found func(at int)) {
		for at := from; ; at++ {
			i := bytes.Index(window[at:], what)
			if i < 0 || at+i >= to {
				return
			}
			at += i
			found(at)
		}
	}
	each(version, func(at int) { s.format(window, at) })
	each(bannerStart, func(at int) {
		text, _, _ := bytes.Cut(window[at:min(len(window), at+ahead)], []byte{0})
		// There are two: the weak one in init/version.c has no build number, and the linker leaves it in.
		banner, _, whole := strings.Cut(string(text), "\n")
		m := line.FindStringSubmatch(banner)
		if whole && m != nil && printable(banner) && (s.banner == "" || !build.MatchString(s.banner) && build.MatchString(banner)) {
			s.banner, s.release = strings.TrimSpace(banner), m[1]
		}
	})
	each(configStart, func(at int) {
		if s.packed == nil {
			s.inside = true
			s.collect(window[at+8:])
		}
	})
}

func (s *scan) collect(data []byte) {
	s.packed = append(s.packed, data[:min(len(data), configMax-len(s.packed))]...)
	s.inside = len(s.packed) < configMax
}

// format takes the compatibility string whose "-v" is at window[at], if it is one.
func (s *scan) format(window []byte, at int) {
	end := at + len(version)
	for end < len(window) && window[end] >= '0' && window[end] <= '9' {
		end++
	}
	if end == at+len(version) || end == len(window) || window[end] != 0 {
		return
	}
	start := at
	for start > 0 && at-start < handlerLength && inName(window[start-1]) {
		start--
	}
	if start == at || end-start >= handlerLength || start > 0 && window[start-1] >= ' ' && window[start-1] <= '~' {
		return
	}
	f := Format{Name: string(window[start:at]), Compatible: string(window[start:end])}
	if !slices.Contains(known, f.Name) && !handler(window, start, end) || slices.Contains(s.formats, f) || len(s.formats) == formatsMax {
		return
	}
	s.formats = append(s.formats, f)
}

// formatsMax is far above what a kernel has, so that a hostile one doesn't make a list without end.
const formatsMax = 256

func inName(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' || b == '_'
}

// handler says whether window[start:end] is the string in a struct liveupdate_file_handler or liveupdate_flb: behind a
// pointer to the kernel's memory, and filled up with zeros (include/linux/liveupdate.h, Linux 7.2.13 and 7.3.4).
func handler(window []byte, start, end int) bool {
	const pointer = 8
	if start < pointer || len(window)-start < handlerLength {
		return false
	}
	p := binary.LittleEndian.Uint64(window[start-pointer:])
	return p >= 0xffff_0000_0000_0000 && p != 1<<64-1 && p%8 == 0 && len(bytes.Trim(window[end:start+handlerLength], "\x00")) == 0
}

// config unpacks the embedded configuration; nil if there is none.
func (s *scan) config() (Config, error) {
	if s.packed == nil {
		return nil, nil
	}
	return gunzipConfig(bytes.NewReader(s.packed))
}

func gunzipConfig(r io.Reader) (Config, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return ParseConfig(z)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' && r < 0xa0 || r == '\ufffd' }) < 0
}
