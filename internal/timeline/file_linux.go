// SPDX-License-Identifier: MIT

package timeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic      = "holdfast-line-1\n"
	headerSize = 64
	// In a varlink reply, which may have a MiB, the report has room too.
	fileSize = 768 << 10
)

// room is how many bytes those lines may take of which there is one for each participant or session. So each of them leaves
// room for the others, and all of them for those without which there is no report at all. It is enough for 1,000 participants.
var room = map[Event]int{Answer: 320 << 10, Carried: 176 << 10, Back: 176 << 10}

// file is the document, mapped. It is not safe for concurrent use, but for the counter.
type file struct {
	*os.File
	data []byte
	end  int
	used map[Event]int // of room
}

func newFile() (*file, error) {
	var raw int
	var err error
	// One with F_SEAL_EXEC would come back sealed against writing (mm/memfd_luo.c), and that is what a memfd is made with
	// where vm.memfd_noexec is 1 and nothing is said. Where it is 2, no other can be had, and the timeline doesn't cross. No
	// flag is for kernels before 6.3.
	for _, flag := range []int{unix.MFD_EXEC, unix.MFD_NOEXEC_SEAL, 0} {
		if raw, err = unix.MemfdCreate("holdfast-timeline", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flag); err == nil {
			break
		}
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(raw), "holdfast-timeline")
	err = f.Truncate(fileSize)
	if err == nil {
		_, err = f.WriteString(magic)
	}
	if err == nil {
		// Nobody can take pages away from under the mapping.
		_, err = unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("making the timeline: %w", err)
	}
	return openFile(f)
}

// openFile maps a document, and owns f then, unless there is an error.
func openFile(f *os.File) (*file, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != fileSize {
		return nil, fmt.Errorf("the timeline has %d bytes, not %d", info.Size(), fileSize)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	m := &file{File: f, used: map[Event]int{}}
	var mapErr error
	if err := conn.Control(func(raw uintptr) {
		m.data, mapErr = unix.Mmap(int(raw), 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}); err != nil {
		return nil, err
	}
	if mapErr != nil {
		return nil, os.NewSyscallError("mmap", mapErr)
	}
	if !bytes.HasPrefix(m.data, []byte(magic)) {
		unix.Munmap(m.data)
		return nil, errors.New("the timeline is of another version")
	}
	// What a death has cut off goes.
	text := m.text()
	m.end = headerSize + bytes.LastIndexByte(text, '\n') + 1
	clear(m.data[m.end : headerSize+len(text)])
	for raw := range bytes.Lines(m.text()) {
		var l Line
		if json.Unmarshal(raw, &l) == nil {
			m.used[l.Event] += len(raw)
		}
	}
	return m, nil
}

func (f *file) close() {
	unix.Munmap(f.data)
	f.File.Close()
}

func (f *file) text() []byte {
	text := f.data[headerSize:]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return text
}

func (f *file) lines() []Line { return parseLines(f.text()) }

// beat is the counter in the header.
func (f *file) beat() *atomic.Uint64    { return (*atomic.Uint64)(unsafe.Pointer(&f.data[16])) }
func (f *file) dropped() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&f.data[24])) }

func (f *file) add(l Line) {
	line := f.fit(l)
	// One byte is left for the NUL.
	if line == nil || f.end+len(line) >= len(f.data) {
		f.dropped().Add(1)
		return
	}
	f.end += copy(f.data[f.end:], line)
}

// fit is the line as it is written, or nil if those of its kind have no more room.
func (f *file) fit(l Line) []byte {
	line, err := json.Marshal(l.short())
	if err != nil {
		return nil
	}
	line = append(line, '\n')
	if most, bounded := room[l.Event]; bounded && f.used[l.Event]+len(line) > most {
		return nil
	}
	f.used[l.Event] += len(line)
	return line
}

// replace has these lines, which must be some of those before, with one or two new ones, instead of them.
func (f *file) replace(lines []Line) {
	clear(f.used)
	var text []byte
	for _, l := range lines {
		if line := f.fit(l); headerSize+len(text)+len(line) < len(f.data) {
			text = append(text, line...)
		}
	}
	// At once: somebody may be killed.
	f.end = headerSize + copy(f.data[headerSize:], text)
	clear(f.data[f.end:])
}
