// SPDX-License-Identifier: MIT

package handle

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLastClose(t *testing.T) {
	table := NewTable()
	var handles []*Handle
	var files []int
	for range 2*perReady + 1 {
		h, fd, err := table.Open()
		if err != nil {
			t.Fatal(err)
		}
		handles, files = append(handles, h), append(files, fd)
	}
	for i, h := range handles {
		if !h.Alive() {
			t.Fatalf("%d: not alive with a descriptor open", i)
		}
		if table.Of(os.Getpid(), int32(files[i])) != h {
			t.Fatalf("%d: not known by its descriptor", i)
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(files[i]), nil, 0); err != nil {
			t.Fatal(err)
		}
		unix.Close(files[i])
		if !h.Alive() {
			t.Fatalf("%d: not alive while it is in flight", i)
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
		if h.Alive() {
			t.Fatalf("%d: alive after its last close", i)
		}
		h.Discard()
	}
	if table.Of(os.Getpid(), 0) != nil {
		t.Error("a foreign file is known")
	}
}
