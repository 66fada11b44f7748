// SPDX-License-Identifier: MIT

package guest

import (
	"testing"

	"github.com/holdfast-project/holdfast/test/fuse"
)

// openFUSE is [fuse.Open] for the length of a test.
func openFUSE(t *testing.T, hold ...uint32) *fuse.File {
	t.Helper()
	needsVM(t, "a file system that may be mounted")
	file, err := fuse.Open(hold...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(file.End)
	return file
}
