// SPDX-License-Identifier: MIT

// Package decompress reads what kernels and initrds are compressed with. The methods and what they are told by are those
// of lib/decompress.c (Linux 7.2.13). Input may be hostile: a stream gets no more memory than 128 MiB for its window, and
// how much comes out is the caller's to limit.
package decompress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// Method is the kernel's name of a compression method.
type Method string

// The methods of lib/decompress.c. Nobody is known to ship LZMA, bzip2 or LZO any more; they are only recognised.
const (
	None  Method = ""
	Gzip  Method = "gzip"
	XZ    Method = "xz"
	Zstd  Method = "zstd"
	LZ4   Method = "lz4"
	Bzip2 Method = "bzip2"
	LZMA  Method = "lzma"
	LZO   Method = "lzo"
)

// ErrUnsupported is wrapped by the error for a method that is recognised and can't be read.
var ErrUnsupported = errors.New("this compression isn't supported")

// windowMax is the largest dictionary or window that a stream may ask for, in bytes. Kernels are compressed with just this
// one: zstd22 in scripts/Makefile.lib and scripts/xz_wrap.sh, Linux 7.2.13.
const windowMax = 128 << 20

// HeadSize is how many bytes Detect needs.
const HeadSize = 6

var magics = []struct {
	magic  string
	method Method
}{
	{"\x1f\x8b", Gzip},
	{"\xfd7zXZ\x00", XZ},
	{"\x28\xb5\x2f\xfd", Zstd},
	{"\x02\x21\x4c\x18", LZ4},
	{"BZh", Bzip2},
	{"\x5d\x00\x00", LZMA},
	{"\x89LZO", LZO},
}

// Detect tells by a stream's first bytes how it is compressed.
func Detect(head []byte) Method {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.method
		}
	}
	return None
}

// Until reads from r until ctx is done. A stream can go on for as long as its file, with blocks that are empty, and nothing comes out
// of it all that time; so whoever waits has to end the reading.
func Until(ctx context.Context, r io.Reader) io.Reader { return &until{ctx, r} }

type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// NewReader reads one stream from r, and leaves r at what comes after it (and after padding of zeros, with xz).
// r's buffer is at least 16 bytes.
func NewReader(r *bufio.Reader, method Method) (io.Reader, error) {
	return newReader(r, method, windowMax)
}

func newReader(r *bufio.Reader, method Method, window uint32) (io.Reader, error) {
	g := &guarded{method: method}
	return g, g.protect(func() (err error) {
		switch method {
		case Gzip:
			var z *gzip.Reader
			if z, err = gzip.NewReader(r); err == nil {
				z.Multistream(false)
				g.r = z
			}
		case XZ:
			w := &words{r: r}
			var z *xz.Reader
			if z, err = xz.NewReader(w, window); err == nil {
				z.Multistream(false)
				g.r, g.end = z, w.end
			}
		case Zstd:
			// With a concurrency of 1 there are no goroutines, so nothing has to be closed.
			g.r, err = zstd.NewReader(&frame{r: r}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderMaxMemory(uint64(window)))
		case LZ4:
			g.r = &legacyLZ4{r: r}
		default:
			err = ErrUnsupported
		}
		return err
	})
}

// guarded makes an error of a decompressor's panic: whoever made the stream shall not end the process that looks at it.
type guarded struct {
	r      io.Reader
	method Method
	end    func()
	err    error
}

func (g *guarded) Read(p []byte) (n int, err error) {
	if g.err != nil {
		return 0, g.err
	}
	err = g.protect(func() (err error) {
		n, err = g.r.Read(p)
		return err
	})
	if err == io.EOF && g.end != nil {
		g.end()
	}
	g.err = err
	return n, err
}

func (g *guarded) protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the decompressor gave up: %v", p)
		}
		if err != nil && err != io.EOF {
			err = fmt.Errorf("%s: %w", g.method, err)
		}
	}()
	return f()
}

// words hands out four bytes at a time, since the reader of xz streams takes whatever it gets, and looks for padding after
// the stream. Streams and padding are multiples of four bytes, so only the last word can be one too many.
type words struct {
	r    *bufio.Reader
	last [4]byte
	n    int
}

func (w *words) Read(p []byte) (int, error) {
	if w.n > 0 {
		if _, err := w.r.Discard(w.n); err != nil {
			return 0, err
		}
		w.n = 0
	}
	word, err := w.r.Peek(min(len(w.last), len(p)))
	w.n = copy(w.last[:], word)
	if w.n > 0 {
		err = nil
	}
	return copy(p, word), err
}

// end gives back the last word unless it was padding.
func (w *words) end() {
	if w.last == [4]byte{} {
		w.r.Discard(w.n) // they are in the buffer
	}
	w.n = 0
}
