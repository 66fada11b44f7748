// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestStatusSaysWhatCameBack(t *testing.T) {
	back := func(n int) (all []outcome) {
		for i := range n {
			all = append(all, outcome{Owner: fmt.Sprintf("/u%d.service", i), Name: "ram", State: "reclaimed"})
		}
		return all
	}
	for _, c := range []struct {
		outcomes []outcome
		want     string
	}{
		{nil, ""},
		{back(1), "all of it is back: 1 session"},
		{back(300), "all of it is back: 300 sessions"},
		{append(back(2), outcome{"", "ram", "waiting", ""}, outcome{"qemu/vm1", "ram", "overdue", "parked with holdfastd"}, outcome{"/a.service", "x", "lost", "why"},
			outcome{"/b.service", "x", "released", ""}, outcome{"/c.service", "x", "released", "by the policy"}),
			`of 7 sessions: 2 back, 1 waited for, 1 overdue, 1 lost, 2 released
  x of /a.service is lost: why
  ram of qemu/vm1 is overdue: parked with holdfastd
  ram of an owner that isn't known is waiting
  x of /c.service is released: by the policy`},
	} {
		if got := strings.Join(roundStatus{Outcomes: c.outcomes}.cameBack(), "\n"); got != c.want {
			t.Errorf("%s\nwant\n%s", got, c.want)
		}
	}
	var many []outcome
	for range 20 {
		many = append(many, outcome{"/a.service", "x", "lost", ""})
	}
	if got := (roundStatus{Outcomes: many}).cameBack(); len(got) != backMost+2 || !strings.Contains(got[backMost+1], "4 more") {
		t.Errorf("%q", got)
	}
}
