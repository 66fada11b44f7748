// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The judge itself: what is lost is seen.
func TestJudge(t *testing.T) {
	const a, b = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
	parks := "begin 1 " + a + " self wrote restart\nnone\nparked " + a + "\nwrote 1\ndying\n"
	for name, test := range map[string]struct{ told, wrong string }{
		"back":             {parks + "begin 1 " + b + "\ncame 1\nsame " + a + " 1\nparked " + a + "\nwrote 1\ndone\n", ""},
		"lost":             {parks + "begin 1 " + b + "\nnone\nparked " + b + "\nwrote 1\ndone\n", "LOST"},
		"other":            {parks + "begin 1 " + b + "\nsame " + b + " 1\ndone\n", "was acknowledged, and"},
		"older":            {parks + "begin 1 " + b + "\nsame " + a + " 0\ndone\n", "LOST: 1 was written"},
		"stuck":            {parks + "begin 1 " + b + "\nerror park: NameTaken\n", "has not come to its end"},
		"nobody died":      {"begin 1 " + a + " self sent restart\nnone\nparked " + a + "\ndone\n", "nobody died"},
		"not acknowledged": {"begin 1 " + a + " self committed restart\nnone\ndying\nbegin 1 " + b + "\nnone\nparked " + b + "\ndone\n", ""},
		"released":         {parks + "begin 1 " + b + "\nsame " + a + " 1\nreleasing\nreleased\ndone\nbegin 1 " + b + "\nsame " + a + " 1\ndone\n", "still there"},
	} {
		t.Run(name, func(t *testing.T) {
			j := &trial{}
			for line := range strings.Lines(test.told) {
				j.hear(strings.TrimSpace(line))
			}
			j.end()
			failures := strings.Join(j.failures, "\n")
			if (failures == "") != (test.wrong == "") || !strings.Contains(failures, test.wrong) {
				t.Errorf("it found %q, want %q", failures, test.wrong)
			}
			path := filepath.Join(t.TempDir(), "told")
			if err := os.WriteFile(path, []byte(test.told), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := judge([]string{path}); (err == nil) != (test.wrong == "") {
				t.Errorf("judge: %v", err)
			}
		})
	}
}
