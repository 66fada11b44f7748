// SPDX-License-Identifier: MIT

package kimage

import (
	"bytes"
	"io"
)

// ReadUKI reads what a unified kernel image of size bytes in r brings along, without looking into the kernel. It returns nil for
// what isn't one.
func ReadUKI(r io.ReaderAt, size int64) (*UKI, error) {
	head := make([]byte, headSize)
	n, err := r.ReadAt(head, 0)
	if n == 0 && err != nil && err != io.EOF {
		return nil, err
	}
	if head = head[:n]; !bytes.HasPrefix(head, []byte("MZ")) {
		return nil, nil
	}
	pe, err := parsePE(r, size)
	if err != nil {
		// Other images than UKIs may begin like a PE file, and needn't be a good one for kexec.
		return nil, nil
	}
	return pe.uki(r, size)
}
