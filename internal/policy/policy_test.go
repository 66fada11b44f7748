// SPDX-License-Identifier: MIT

package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/internal/peer"
)

func TestBuiltIn(t *testing.T) {
	for _, c := range []struct {
		cgroup string
		uid    uint32
		reason string // part of the denial; "" is allowed
	}{
		{"/system.slice/vmm.service", 0, ""},
		{"/vm.slice/vmm.service/worker", 0, ""},
		{"/system.slice/cron.service", 1000, "uid 1000"},
		{"/user.slice/user-0.slice/session-3.scope", 0, "session-3.scope is a scope"},
		{"/system.slice/run-r1.scope", 0, "run-r1.scope is a scope"},
		{"/init.scope", 0, "init.scope is a scope"},
		{"/user.slice/user-0.slice/user@0.service/app.slice/a.service", 0, "below user.slice"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", 1000, "below user.slice"},
		{"/user.slice/a.service", 0, "below user.slice"},
		{"/docker/0123/system.slice/vmm.service", 0, `below "docker", which is no slice`},
		{"/kubepods.slice/0123/vmm.service", 0, `below "0123", which is no slice`},
		{"/system.slice/_cpu.service", 0, ""},
		{"/system.slice/containers.service/inner.service", 0, "a unit inside another"},
		{"/system.slice/containers.service/inner.scope", 0, "a unit inside another"},
	} {
		rule, err := Allow(peer.Identity{UID: c.uid, Cgroup: c.cgroup, Owner: peer.Owner(c.cgroup)})
		var denial *Denial
		switch {
		case c.reason == "" && (err != nil || rule != BuiltIn):
			t.Errorf("%s, uid %d: %v", c.cgroup, c.uid, err)
		case c.reason != "" && (!errors.As(err, &denial) || !strings.Contains(denial.Reason, c.reason) || denial.Rule != BuiltIn):
			t.Errorf("%s, uid %d: %v, want %q", c.cgroup, c.uid, err, c.reason)
		}
	}
	var none *NoOwner
	if _, err := Allow(peer.Identity{Cgroup: "/plain"}); !errors.As(err, &none) || none.Cgroup != "/plain" {
		t.Errorf("outside any unit: %v", err)
	}
}
