// SPDX-License-Identifier: MIT

package run

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// record lies in the session beside the memory, in a memfd of its own. The session's manifest says that all files are there;
// the record, that nobody has written to them since: it is taken back before the command gets the memory again.
type record struct {
	Version    int           `json:"version"`    // recordVersion
	Generation uint64        `json:"generation"` // one more with each commit
	Stopped    time.Time     `json:"stopped"`    // when the command had ended
	Memory     []recordFile  `json:"memory"`
	Files      []carriedFile `json:"files"`
}

type recordFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

type carriedFile struct {
	recordFile
	Mode   uint32 `json:"mode"`
	SHA256 string `json:"sha256"`
}

// The record is made before its content is known, and what is preserved can't be resized.
//
//	0   SHA-256 of all that follows, up to the end of the text
//	32  length of the text, 8 bytes little-endian
//	40  the record, as JSON
const (
	recordSize = 64 << 10
	recordHead = sha256.Size + 8
)

const recordVersion = 1

// halfError says why memory can't be gone on with. Any other error says nothing about the memory, which stays kept.
type halfError struct{ error }

var errInUse = &halfError{errors.New("it was given to the command, which was not stopped and committed since, so it may be half of what it was to be")}

func writeRecord(w io.WriterAt, r record) error {
	r.Version = recordVersion
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(text) > recordSize-recordHead {
		return fmt.Errorf("the record of %d files has %d bytes, the most is %d", len(r.Memory)+len(r.Files), len(text), recordSize-recordHead)
	}
	data := binary.LittleEndian.AppendUint64(make([]byte, sha256.Size, recordHead+len(text)), uint64(len(text)))
	data = append(data, text...)
	sum := sha256.Sum256(data[sha256.Size:])
	copy(data, sum[:])
	_, err = w.WriteAt(data, 0)
	return err
}

// takeBack makes it a record of memory that is in use.
func takeBack(w io.WriterAt) error {
	_, err := w.WriteAt(make([]byte, recordHead), 0)
	return err
}

func readRecord(from io.ReaderAt) (record, error) {
	var r record
	data := make([]byte, recordSize)
	if n, err := from.ReadAt(data, 0); err != nil && (err != io.EOF || n < len(data)) {
		return r, err
	}
	if bytes.Equal(data[:recordHead], make([]byte, recordHead)) {
		return r, errInUse
	}
	n := binary.LittleEndian.Uint64(data[sha256.Size:recordHead])
	if n > recordSize-recordHead {
		return r, &halfError{errors.New("its record is damaged")}
	}
	if sum := sha256.Sum256(data[sha256.Size : recordHead+n]); !bytes.Equal(sum[:], data[:sha256.Size]) {
		return r, &halfError{errors.New("the checksum of its record is wrong")}
	}
	err := json.Unmarshal(data[recordHead:recordHead+n], &r)
	if r.Version != recordVersion {
		return r, fmt.Errorf("its record has version %d, and this \"holdfast run\" knows %d", r.Version, recordVersion)
	}
	return r, err
}
