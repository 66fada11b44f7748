// SPDX-License-Identifier: MIT

package luosim

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// dir has the luosim under test, and self, this test binary, in a place that every user may read: go test and
// t.TempDir make theirs for one user only.
var dir, luosim, self string

// TestMain is also the main of the programs that are run under luosim: "self program NAME ARG...".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "program" {
		programs[os.Args[2]](os.Args[3:])
		os.Exit(0)
	}
	code, err := prepared(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func prepared(m *testing.M) (int, error) {
	var err error
	if dir, err = os.MkdirTemp("", "luosim-test-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	luosim, self = filepath.Join(dir, "luosim"), filepath.Join(dir, "self")
	build := exec.Command("go", "build", "-o", luosim, "../../cmd/luosim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := os.OpenFile(self, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(to, from); err != nil {
		return 0, err
	}
	if err := to.Close(); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
