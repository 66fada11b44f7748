// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"github.com/holdfast-project/holdfast/internal/check"
)

func TestUnseenBlocks(t *testing.T) {
	for stopped, want := range map[bool]check.Severity{true: check.Error, false: check.Warning} {
		findings := unseenBlocks([]check.Finding{
			{ID: "unseen", Severity: check.Warning, Text: "processes whose files could not all be looked at: 1"},
			{ID: "unretrieved", Severity: check.Warning},
		}, stopped)
		if findings[0].Severity != want || findings[1].Severity != check.Warning {
			t.Errorf("everything is stopped: %t; %+v", stopped, findings)
		}
	}
}
