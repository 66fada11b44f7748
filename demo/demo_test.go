// SPDX-License-Identifier: MIT

package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDemo is what "make demo" does, in a source tree that has nothing but the demonstration and the programs.
func TestDemo(t *testing.T) {
	tree := t.TempDir()
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", tree+"/bin/", "./demo", "./cmd/holdfastd", "./cmd/luosim", "./examples/notebook")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Symlink(source+"/demo", tree+"/demo"); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	cmd := exec.Command("bin/demo", "luosim")
	cmd.Dir, cmd.Env = tree, append(os.Environ(), "TMPDIR="+temp, "HOLDFAST_DEMO_WORD=two words", "HOLDFAST_ADDRESS=/nowhere")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || !strings.HasSuffix(string(out), "\ndemo: PASS\n") {
		t.Errorf("%v\n%s%s", err, out, &stderr)
	}
	for _, kernel := range []string{"7.2.0-luosim.1", "7.2.0-luosim.2", "7.2.0-luosim.3"} {
		if !strings.Contains(string(out), "kernel               "+kernel) {
			t.Errorf("nothing was told of kernel %s", kernel)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// telling is what the machine tells of one kernel, in its order.
func telling(kernel string, changed map[string]string) []string {
	said := map[string]string{"came": "update", "kernel-name": "h1-x.notes", "owner": "/notebook.service", "bytes": "4", "sum": "abc", "word": "kelp"}
	if kernel == "1" {
		said["came"] = "fresh"
	}
	maps.Copy(said, changed)
	lines := []string{"kernel " + kernel}
	for _, key := range []string{"came", "kernel-name", "owner", "bytes", "sum", "word"} {
		lines = append(lines, key+" "+said[key])
	}
	return lines
}

func hear(lines []string) error {
	s := &story{word: "kelp"}
	for _, line := range lines {
		if err := s.hear(line, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func TestTheStoryIsChecked(t *testing.T) {
	good := slices.Concat(telling("1", nil), []string{"switching"}, telling("2", nil), []string{"switching"}, telling("1", map[string]string{"came": "update"}))
	if err := hear(good); err != nil {
		t.Errorf("the story as it should be: %v", err)
	}
	for name, second := range map[string][]string{
		"another sum":          telling("2", map[string]string{"sum": "abd"}),
		"another size":         telling("2", map[string]string{"bytes": "5"}),
		"another word":         telling("2", map[string]string{"word": "weed"}),
		"another owner":        telling("2", map[string]string{"owner": "/other.service"}),
		"another session":      telling("2", map[string]string{"kernel-name": "h1-y.notes"}),
		"fresh":                telling("2", map[string]string{"came": "fresh"}),
		"from the store":       telling("2", map[string]string{"came": "store"}),
		"the kernel as before": telling("1", map[string]string{"came": "update"}),
	} {
		if err := hear(slices.Concat(telling("1", nil), []string{"switching"}, second)); err == nil {
			t.Errorf("%s: was not noticed", name)
		}
	}
}

func TestReady(t *testing.T) {
	t.Chdir(t.TempDir())
	for command, want := range map[string]string{
		"exit 3":           "exit status 3",
		"no-such-command ": "exit status 127",
	} {
		if err := ready([]string{"sh", "-c", command}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", command, err)
		}
	}
	if err := ready(nil); err == nil {
		t.Error("nothing was started, and is ready")
	}
}
