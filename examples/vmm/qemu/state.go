// SPDX-License-Identifier: MIT

package qemu

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// StateSize is that of the file that carries the state of a machine's devices. It is set before the state is known, since
// what is in a session can be written but not resized.
const StateSize = 1 << 20

var (
	// ErrSpent says that the machine has run on since the state was saved: its RAM fits to it no more.
	ErrSpent = errors.New("the machine has run on since its state was saved")
	// ErrNotWhole says that the state is another one than was saved.
	ErrNotWhole = errors.New("the state isn't what was saved: its checksum differs")
)

// A state file begins with a header: a word that is zero unless the state is whole and the RAM fits to it, the length, the
// SHA-256.
const (
	headerSize = 8 + 8 + sha256.Size
	saved      = uint64(0x48465f564d5f3031)

	// StateMax is how long a state can be.
	StateMax = StateSize - headerSize
)

// WriteState writes a state to a file of [StateSize] bytes. Up to its last step, what is in the file is spent.
func WriteState(f io.WriterAt, state []byte) error {
	if len(state) > StateMax {
		return fmt.Errorf("the state has %d bytes, and there is room for %d", len(state), StateMax)
	}
	sum := sha256.Sum256(state)
	for _, step := range []struct {
		data   []byte
		offset int64
	}{
		{make([]byte, 8), 0},
		{state, headerSize},
		{append(binary.BigEndian.AppendUint64(nil, uint64(len(state))), sum[:]...), 8},
		{binary.BigEndian.AppendUint64(nil, saved), 0},
	} {
		if _, err := f.WriteAt(step.data, step.offset); err != nil {
			return fmt.Errorf("writing the state: %w", err)
		}
	}
	return nil
}

// ReadState reads what WriteState has written, or says ErrSpent.
func ReadState(f io.ReaderAt) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := f.ReadAt(header, 0); err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if binary.BigEndian.Uint64(header) == 0 {
		return nil, ErrSpent
	}
	n := binary.BigEndian.Uint64(header[8:])
	if binary.BigEndian.Uint64(header) != saved || n > StateMax {
		return nil, ErrNotWhole
	}
	state := make([]byte, n)
	if _, err := f.ReadAt(state, headerSize); err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if sha256.Sum256(state) != [sha256.Size]byte(header[16:]) {
		return nil, ErrNotWhole
	}
	return state, nil
}

// SpendState says that from now on the machine runs: whoever gets the file after this, with the RAM, must start it anew.
func SpendState(f io.WriterAt) error {
	if _, err := f.WriteAt(make([]byte, 8), 0); err != nil {
		return fmt.Errorf("marking the state as spent: %w", err)
	}
	return nil
}
