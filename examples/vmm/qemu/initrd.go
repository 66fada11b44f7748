// SPDX-License-Identifier: MIT

package qemu

import (
	"fmt"
	"io"
)

// WriteInitrd writes an initrd whose only file is /init (Documentation/driver-api/early-userspace/buffer-format.rst in
// Linux). The console's node is in the initrd that each kernel has in itself.
func WriteInitrd(w io.Writer, init []byte) error {
	for _, f := range []struct {
		name string
		mode int
		data []byte
	}{{"init", 0o100755, init}, {"TRAILER!!!", 0, nil}} {
		name := f.name + "\x00"
		head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s",
			1, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(name), 0, name)
		for _, part := range [][]byte{[]byte(head), f.data} {
			if _, err := w.Write(append(part[:len(part):len(part)], make([]byte, -len(part)&3)...)); err != nil {
				return err
			}
		}
	}
	return nil
}
