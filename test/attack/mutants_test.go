// SPDX-License-Identifier: MIT

//go:build linux

package main

import "testing"

// What the mutants change is still there, each attempt has a mutant that lets it, and each mutant lets one.
func TestMutants(t *testing.T) {
	known := map[string]bool{}
	for _, m := range mutants {
		if known[m.name] {
			t.Errorf("mutant %s is there twice", m.name)
		}
		known[m.name] = true
		if _, err := m.overlay("../.."); err != nil {
			t.Error(err)
		}
	}
	used := map[string]bool{}
	ids := map[string]bool{}
	for _, a := range attempts {
		if ids[a.id] {
			t.Errorf("attempt %s is there twice", a.id)
		}
		ids[a.id] = true
		used[a.mutant] = true
		if !known[a.mutant] {
			t.Errorf("attempt %s: there is no mutant %s", a.id, a.mutant)
		}
	}
	for _, m := range mutants {
		if !used[m.name] {
			t.Errorf("no attempt needs mutant %s", m.name)
		}
	}
	if len(attempts) < 30 {
		t.Errorf("there are only %d attempts", len(attempts))
	}
}
