// SPDX-License-Identifier: MIT

package guest

import (
	"testing"

	"github.com/holdfast-project/holdfast/test/trace"
)

// traced follows a process's system calls until the end of the test, at the latest.
func traced(t *testing.T, pid int, at func(*trace.Stop) trace.Verdict) *trace.Trace {
	t.Helper()
	tr, err := trace.Start(pid, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ended(t, tr) })
	return tr
}

// ended lets the process go, unless that has been done.
func ended(t *testing.T, tr *trace.Trace) {
	t.Helper()
	if err := tr.End(); err != nil {
		t.Fatal(err)
	}
}

// over waits until it has been let go.
func over(t *testing.T, tr *trace.Trace) {
	t.Helper()
	if err := tr.Wait(); err != nil {
		t.Fatal(err)
	}
}
