// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode"

	"github.com/holdfast-project/holdfast/internal/check"
	"github.com/holdfast-project/holdfast/internal/update"
)

// TestNobodysWordsSteerTheTerminal prints what participants, units and files are called by who has no good in mind.
func TestNobodysWordsSteerTheTerminal(t *testing.T) {
	bad := "x\x1b[2J\u202e\u009b\ay"
	round := roundStatus{Round: 1, Phase: update.Preparing, Reason: bad, Participants: []participant{{Name: bad, Owner: bad, State: update.Vetoed, Reason: bad}},
		Outcomes: []outcome{{Name: bad, Owner: bad, State: "lost", Reason: bad}}}
	idle := round
	idle.Phase = update.Idle
	for what, print := range map[string]func(io.Writer) error{
		"status": (&status{Orchestrator: &orchestratorStatus{Version: bad, Keeper: bad}, Systemd: &systemdStatus{Version: bad, CarriesStores: true}, Update: &idle}).print,
		"status --watch": func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Join(round.lines(), "\n"))
			return err
		},
		"list --all": (&inventoryJSON{Sessions: []listedJSON{{Name: bad, Owner: bad, KernelName: bad, Problems: []string{unclaimed}, Parked: true, Holders: []holderJSON{{Unit: bad}}}},
			Unseen: []unseenJSON{{Text: bad}}}).print,
		"check": func(w io.Writer) error {
			return printFindings(w, []check.Finding{{ID: "x", Severity: check.Error, Text: bad, Hint: bad}})
		},
	} {
		var out bytes.Buffer
		if err := print(&out); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if i := strings.IndexFunc(out.String(), func(c rune) bool { return c != '\n' && !unicode.IsGraphic(c) }); i >= 0 || !strings.Contains(out.String(), "[2J") {
			t.Errorf("%s: %q", what, out.String())
		}
	}
}
