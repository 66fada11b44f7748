// SPDX-License-Identifier: MIT

package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

var errFrame = errors.New("the frame is corrupt")

// frame passes on the bytes of one zstd frame and no more, as the decoder reads on to whatever follows. Only headers are
// looked at (RFC 8878, 3.1.1).
type frame struct {
	r        *bufio.Reader
	left     int  // bytes of the current part
	started  bool // the frame's header has been seen
	checksum bool
	last     bool // the current part is the last block
	done     bool // the current part is the last
}

func (f *frame) Read(p []byte) (int, error) {
	for f.left == 0 {
		if f.done {
			return 0, io.EOF
		}
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next sets left to the length of the next part: the frame's header, a block with its header, or the checksum.
func (f *frame) next() error {
	switch {
	case !f.started:
		head, err := f.peek(5)
		if err != nil {
			return err
		}
		descriptor := head[4]
		single := descriptor>>5&1 == 1
		f.started, f.checksum = true, descriptor>>2&1 == 1
		f.left = 5 + []int{0, 1, 2, 4}[descriptor&3] + []int{0, 2, 4, 8}[descriptor>>6]
		if !single || descriptor>>6 == 0 {
			f.left++ // the window's size, or a content size of one byte
		}
		return nil
	case f.last:
		f.done = true
		if f.checksum {
			f.left = 4
		}
		return nil
	}
	head, err := f.peek(3)
	if err != nil {
		return err
	}
	block := uint32(head[0]) | uint32(binary.LittleEndian.Uint16(head[1:]))<<8
	f.last = block&1 == 1
	switch kind, size := block>>1&3, int(block>>3); kind {
	case 0, 2: // raw, compressed
		f.left = 3 + size
	case 1: // one byte, repeated
		f.left = 4
	default:
		return errFrame
	}
	return nil
}

func (f *frame) peek(n int) ([]byte, error) {
	head, err := f.r.Peek(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return head, err
}
