// SPDX-License-Identifier: MIT

package report

import (
	"io"
	"testing"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// Where the kernels' clocks could not be related, times may be of any order.
func TestTimesThatCanNotBe(t *testing.T) {
	for _, s := range []timeline.Span{{Name: "stop", Begin: -5e9, End: -4e9}, {Name: "stop", Begin: 4, End: -5e9}, {Name: "stop", Begin: 1 << 62, End: 1}} {
		r := &timeline.Report{Version: 1, Spans: []timeline.Span{s, {Name: "kexec", End: 1000}}, Owners: []timeline.Owner{{Owner: "a", Blackout: &s, Sessions: []timeline.Carriage{{Name: "x"}}}}}
		if err := Text(io.Discard, r, Terminal{Width: 80}); err != nil {
			t.Error(err)
		}
	}
}
