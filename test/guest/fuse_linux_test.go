// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of include/uapi/linux/fuse.h (Linux 7.3).
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseOpen    = 14
	fuseStatfs  = 17
	fuseFlush   = 25
	fuseInit    = 26
)

// fuseFile is a file of a file system that answers what it likes: whoever closes the file, or asks about it, waits
// until it does.
type fuseFile struct {
	dir  string
	file *os.File
	// held receives each request of a process that was left without an answer.
	held chan uint32

	hold map[uint32]bool // the requests that are not answered, unless they are this process's
}

// openFUSE mounts such a file system and opens the file in it.
func openFUSE(t *testing.T, hold ...uint32) *fuseFile {
	t.Helper()
	needsVM(t, "a file system that may be mounted")
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &fuseFile{dir: t.TempDir(), held: make(chan uint32, 16), hold: map[uint32]bool{}}
	for _, request := range hold {
		f.hold[request] = true
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device)
	if err := unix.Mount("fuse", f.dir, "fuse", 0, options); err != nil {
		unix.Close(device)
		t.Fatalf("mounting a FUSE file system: %v", err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer unix.Close(device)
		f.serve(device)
	}()
	t.Cleanup(func() {
		f.abort()
		<-served
	})
	if f.file, err = os.Open(f.dir + "/file"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.file.Close() })
	return f
}

// abort ends the file system. All who wait for an answer get an error.
func (f *fuseFile) abort() {
	unix.Unmount(f.dir, unix.MNT_FORCE|unix.MNT_DETACH)
}

// wait returns when somebody else waits for the answer to a request of this kind.
func (f *fuseFile) wait(t *testing.T, request uint32) {
	t.Helper()
	for {
		select {
		case got := <-f.held:
			if got == request {
				return
			}
		case <-time.After(patience):
			t.Fatalf("nobody has sent the FUSE request %d", request)
		}
	}
}

func (f *fuseFile) serve(device int) {
	buffer := make([]byte, 1<<17)
	for {
		n, err := unix.Read(device, buffer)
		if err == unix.EINTR || err == unix.ENOENT { // ENOENT: who asked has given up
			continue
		}
		if err != nil {
			return // ENODEV: it is no longer mounted
		}
		// struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid.
		request := binary.NativeEndian.Uint32(buffer[4:])
		unique := buffer[8:16]
		pid := binary.NativeEndian.Uint32(buffer[32:])
		if n < 40 || request == fuseForget {
			continue
		}
		if f.hold[request] && int(pid) != os.Getpid() {
			f.held <- request
			continue
		}
		body, errno := answer(request)
		// struct fuse_out_header: len, error, unique.
		reply := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		reply = binary.NativeEndian.AppendUint32(reply, uint32(-int32(errno)))
		reply = append(append(reply, unique...), body...)
		unix.Write(device, reply)
	}
}

func answer(request uint32) ([]byte, unix.Errno) {
	u32, u64 := binary.NativeEndian.PutUint32, binary.NativeEndian.PutUint64
	attr := func(b []byte) { // struct fuse_attr
		u64(b, 2)
		u32(b[60:], unix.S_IFREG|0o444)
		u32(b[64:], 1)
	}
	switch request {
	case fuseInit: // struct fuse_init_out: major, minor, …, max_write
		b := make([]byte, 64)
		u32(b, 7)
		u32(b[4:], 31)
		u32(b[20:], 4096)
		return b, 0
	case fuseLookup: // struct fuse_entry_out
		b := make([]byte, 128)
		u64(b, 2)
		attr(b[40:])
		return b, 0
	case fuseGetattr: // struct fuse_attr_out
		b := make([]byte, 104)
		attr(b[16:])
		return b, 0
	case fuseOpen: // struct fuse_open_out
		return make([]byte, 16), 0
	case fuseStatfs: // struct fuse_statfs_out
		return make([]byte, 80), 0
	case fuseFlush:
		return nil, 0
	}
	return nil, unix.ENOSYS
}
