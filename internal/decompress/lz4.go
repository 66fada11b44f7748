// SPDX-License-Identifier: MIT

package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

const (
	legacyMagic = 0x184C2102
	// LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE in lib/decompress_unlz4.c, and LZ4_COMPRESSBOUND of it.
	blockSize = 8 << 20
	blockMax  = blockSize + blockSize/255 + 16
)

var errBlock = errors.New("the block is corrupt")

// legacyLZ4 reads "lz4 -l", the only kind that the kernel knows (lib/decompress_unlz4.c, Linux 7.2.13): a magic number, then
// blocks, each with its compressed size in front. Nothing marks the end: what can't be a size doesn't belong to it.
type legacyLZ4 struct {
	r       *bufio.Reader
	started bool
	in, out []byte
	rest    []byte // of out, still to be read
}

func (l *legacyLZ4) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if err := l.block(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *legacyLZ4) block() error {
	head, err := l.r.Peek(4)
	if len(head) < 4 {
		if !l.started || err != io.EOF {
			return io.ErrUnexpectedEOF
		}
		return io.EOF
	}
	size := binary.LittleEndian.Uint32(head)
	switch {
	case size == legacyMagic:
		l.started = true
		_, err := l.r.Discard(4)
		return err
	case !l.started:
		return errBlock
	case size == 0 || size > blockMax:
		return io.EOF
	}
	if l.out == nil {
		l.in, l.out = make([]byte, blockMax), make([]byte, blockSize)
	}
	l.r.Discard(4) // they are in the buffer
	if _, err := io.ReadFull(l.r, l.in[:size]); err != nil {
		return io.ErrUnexpectedEOF
	}
	n, ok := lz4Block(l.out, l.in[:size])
	if !ok {
		return errBlock
	}
	l.rest = l.out[:n]
	return nil
}

// lz4Block unpacks one block, in the format of lz4's doc/lz4_Block_format.md.
func lz4Block(dst, src []byte) (n int, ok bool) {
	// length is that of a token's half, and of the bytes that go on from it.
	length := func(nibble byte) (int, bool) {
		l := int(nibble)
		for more := nibble == 15; more; {
			if len(src) == 0 || l > len(dst) {
				return 0, false
			}
			l += int(src[0])
			more = src[0] == 255
			src = src[1:]
		}
		return l, true
	}
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		literals, ok := length(token >> 4)
		if !ok || literals > len(src) || literals > len(dst)-n {
			return 0, false
		}
		n += copy(dst[n:], src[:literals])
		src = src[literals:]
		if len(src) == 0 {
			return n, true
		}
		if len(src) < 2 {
			return 0, false
		}
		offset := int(binary.LittleEndian.Uint16(src))
		src = src[2:]
		match, ok := length(token & 15)
		match += 4
		if !ok || offset == 0 || offset > n || match > len(dst)-n {
			return 0, false
		}
		for match > 0 { // a match may overlap what it makes
			c := copy(dst[n:n+min(match, offset)], dst[n-offset:n])
			n, match = n+c, match-c
		}
	}
	return n, false
}
