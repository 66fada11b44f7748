// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemoUpdate is what "make demo-update" does.
func TestDemoUpdate(t *testing.T) {
	tree := t.TempDir()
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", tree+"/bin/", "./demo", "./cmd/holdfast", "./cmd/holdfastd", "./cmd/holdfast-updated", "./cmd/luosim")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Symlink(source+"/demo", tree+"/demo"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bin/demo", "update")
	cmd.Dir, cmd.Env = tree, append(os.Environ(), "TMPDIR="+t.TempDir())
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(said), "\ndemo: PASS\n") {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, what := range []string{"(exit status 4)\n", "vetoes: a migration of its disk is under way\n", "all of it is back: 3 sessions\n"} {
		if !strings.Contains(string(said), what) {
			t.Errorf("%q isn't in\n%s", what, said)
		}
	}
	// What each had at the start it has at the end, and what it counted up to when it paused.
	for _, m := range []string{"cache", "database", "vm1"} {
		for _, words := range [][2]string{{"checksum ", ""}, {"pauses at ", "the counter is at "}} {
			var seen []string
			for line := range strings.Lines(string(said)) {
				if !strings.HasPrefix(line, "  "+m+" ") {
					continue
				}
				for _, word := range words {
					if _, rest, found := strings.Cut(line, word); word != "" && found {
						value, _, _ := strings.Cut(strings.TrimSpace(rest), ",")
						seen = append(seen, value)
					}
				}
			}
			if len(seen) != 2 || seen[0] != seen[1] {
				t.Errorf("%s, %s: %q", m, words[0], seen)
			}
		}
	}
}
