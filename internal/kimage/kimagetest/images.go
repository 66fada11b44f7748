// SPDX-License-Identifier: MIT

// Package kimagetest makes small images for tests: good ones to whoever reads them, and nothing that could be started.
package kimagetest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
)

// Formats are those of Linux 7.2 and 7.3.
var Formats = []string{"kho-v4", "luo-v5", "memfd-v2"}

// BzImage is one that kexec_file_load would take, with these formats in a kernel 7.3.4-test.
func BzImage(formats ...string) []byte {
	kernel := bytes.NewBufferString("\x7fELF\x02\x01\x01")
	kernel.Write(make([]byte, 121))
	for _, word := range append([]string{"Linux version 7.3.4-test (me@here) (gcc) #1 SMP Mon Nov 23 11:22:46 UTC 2026\n"}, formats...) {
		// A type of file is in a struct liveupdate_file_handler, behind a pointer, and 48 bytes long.
		kernel.Write(make([]byte, -kernel.Len()&7))
		kernel.Write(binary.LittleEndian.AppendUint64(nil, 0xffffffff81a28820))
		kernel.WriteString(word)
		kernel.Write(make([]byte, 80))
	}
	var payload bytes.Buffer
	z := gzip.NewWriter(&payload)
	z.Write(kernel.Bytes())
	z.Close()
	// Documentation/arch/x86/boot.rst.
	const sectors = 3
	b := make([]byte, (sectors+1)*512)
	code := bytes.Repeat([]byte{0x90}, 32-payload.Len()%16)
	b[0x1f1] = sectors
	binary.LittleEndian.PutUint32(b[0x1f4:], uint32(payload.Len()+len(code))/16)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x020f)
	b[0x211], b[0x234], b[0x236] = 1, 1, 3 // loaded high; relocatable; 64 bits, above 4 GiB
	binary.LittleEndian.PutUint32(b[0x238:], 2047)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(payload.Len()))
	binary.LittleEndian.PutUint32(b[0x260:], 1<<20)
	return append(append(b, payload.Bytes()...), code...)
}

// UKI is a unified kernel image of these sections: name, content, name, content, …
func UKI(sections ...string) []byte {
	const headers = 1024
	b := make([]byte, headers)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[60:], 64)
	copy(b[64:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[64+6:], uint16(len(sections)/2))
	for i := 0; i+1 < len(sections); i += 2 {
		s := b[64+24+20*i:]
		copy(s, sections[i])
		for _, size := range []int{8, 16} { // in memory, in the file
			binary.LittleEndian.PutUint32(s[size:], uint32(len(sections[i+1])))
		}
		binary.LittleEndian.PutUint32(s[20:], uint32(len(b)))
		b = append(b, sections[i+1]...)
	}
	return b
}
