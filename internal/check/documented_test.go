// SPDX-License-Identifier: MIT

package check

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEachFindingIsDocumented: the operator's table has each id, with what to do about it, and no other.
func TestEachFindingIsDocumented(t *testing.T) {
	known := map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?:id = |(?:ok|warning|failure)\(\w*,? ?)"([a-z]+(?:-[a-z]+)*)"`).FindAllStringSubmatch(string(code), -1) {
			known[found[1]] = true
		}
	}
	// What the rules say of an empty machine and of a good one are others, that aren't written so.
	for _, s := range []*System{good(), {}} {
		for _, f := range s.Findings() {
			known[f.ID] = true
		}
	}
	text, err := os.ReadFile("../../docs/operator.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n| id | looked at | if something is wrong |\n")
	if table, _, _ = strings.Cut(table, "\n\n"); !found {
		t.Fatal("docs/operator.md has no table of findings")
	}
	documented := map[string]bool{}
	for _, row := range strings.Split(table, "\n")[1:] {
		cells := strings.Split(row, " | ")
		for _, id := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(cells[0], -1) {
			documented[id[1]] = true
		}
	}
	if got, want := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(known)); !slices.Equal(got, want) {
		t.Errorf("documented are %q,\nand there are %q", got, want)
	}
}
