// SPDX-License-Identifier: MIT

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// size is that of the memory, in bytes. Preserved memory can't grow, so all of it is made at once.
const size = 64 << 20

// The memory is a log. The header says how much of it is valid, and is written after the entry: a death in between
// loses that entry and nothing else.
//
//	0     8 bytes  magic
//	8     8 bytes  end of the log, little-endian, counted from the start of the memory
//	4096  entries: u16 length of the key, u32 length of the value, key, value
const (
	magic     = "notes/1\n"
	logStart  = 4096
	entryHead = 6
	keyMax    = 1<<16 - 1
	valueMax  = 4 << 20
)

var errFull = errors.New("the notebook is full")

// notes are the entries in a file in memory.
type notes struct {
	mu     sync.RWMutex
	memory *os.File
	end    int64
	values map[string]span
}

type span struct{ off, len int64 }

// newNotes makes an empty notebook of a memfd that is all zero.
func newNotes(memory *os.File) (*notes, error) {
	n := &notes{memory: memory, end: logStart, values: map[string]span{}}
	if err := n.writeEnd(logStart); err != nil {
		return nil, err
	}
	_, err := memory.WriteAt([]byte(magic), 0)
	return n, err
}

// openNotes reads the log that is there.
func openNotes(memory *os.File) (*notes, error) {
	var header [16]byte
	if _, err := memory.ReadAt(header[:], 0); err != nil {
		return nil, err
	}
	n := &notes{memory: memory, values: map[string]span{}, end: logStart}
	end := int64(binary.LittleEndian.Uint64(header[8:]))
	if string(header[:8]) != magic || end < logStart || end > size {
		return nil, errors.New("the memory holds no notebook")
	}
	for n.end < end {
		var head [entryHead]byte
		if _, err := memory.ReadAt(head[:], n.end); err != nil {
			return nil, err
		}
		key := make([]byte, binary.LittleEndian.Uint16(head[:]))
		value := int64(binary.LittleEndian.Uint32(head[2:]))
		if _, err := memory.ReadAt(key, n.end+entryHead); err != nil {
			return nil, err
		}
		off := n.end + entryHead + int64(len(key))
		if off+value > end {
			return nil, fmt.Errorf("the entry at %d goes past the end of the log", n.end)
		}
		n.values[string(key)] = span{off, value}
		n.end = off + value
	}
	return n, nil
}

func (n *notes) put(key string, value []byte) error {
	if key == "" || len(key) > keyMax || len(value) > valueMax {
		return fmt.Errorf("a key has 1 to %d bytes and a value at most %d", keyMax, valueMax)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	entry := make([]byte, entryHead, entryHead+len(key)+len(value))
	binary.LittleEndian.PutUint16(entry, uint16(len(key)))
	binary.LittleEndian.PutUint32(entry[2:], uint32(len(value)))
	entry = append(append(entry, key...), value...)
	end := n.end + int64(len(entry))
	if end > size {
		return errFull
	}
	if _, err := n.memory.WriteAt(entry, n.end); err != nil {
		return err
	}
	if err := n.writeEnd(end); err != nil {
		return err
	}
	n.values[key] = span{end - int64(len(value)), int64(len(value))}
	n.end = end
	return nil
}

func (n *notes) writeEnd(end int64) error {
	_, err := n.memory.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(end)), 8)
	return err
}

func (n *notes) get(key string) ([]byte, bool, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	where, ok := n.values[key]
	if !ok {
		return nil, false, nil
	}
	value := make([]byte, where.len)
	_, err := n.memory.ReadAt(value, where.off)
	return value, true, err
}

// sum is the SHA-256 of the whole memory.
func (n *notes) sum() (string, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(n.memory, 0, size)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
