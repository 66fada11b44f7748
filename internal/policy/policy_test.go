// SPDX-License-Identifier: MIT

package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/internal/peer"
)

func identity(cgroup string, uid uint32) peer.Identity {
	return peer.Identity{UID: uid, Cgroup: cgroup, Owner: peer.Owner(cgroup)}
}

func TestBuiltIn(t *testing.T) {
	var p Policy
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
		{"/../system.slice/vmm.service", 0, `below "..", which is no slice`},
		{"/system.slice/_cpu.service", 0, ""},
		{"/system.slice/containers.service/inner.service", 0, "a unit inside another"},
		{"/system.slice/containers.service/inner.scope", 0, "a unit inside another"},
	} {
		id := identity(c.cgroup, c.uid)
		grant, err := p.Allow(id)
		var denial *Denial
		switch {
		case c.reason == "" && (err != nil || grant != Grant{Owner: id.Owner, Rule: BuiltIn, MaxParked: DefaultMaxParked}):
			t.Errorf("%s, uid %d: %+v, %v", c.cgroup, c.uid, grant, err)
		case c.reason != "" && (!errors.As(err, &denial) || !strings.Contains(denial.Reason, c.reason) || denial.Rule != BuiltIn):
			t.Errorf("%s, uid %d: %v, want %q", c.cgroup, c.uid, err, c.reason)
		}
		want := id.Owner
		if strings.Contains(c.reason, "no slice") {
			want = "" // else it would be the owner of the system's own unit of that name
		}
		if owner, err := p.Owner(id); owner != want || err != nil {
			t.Errorf("%s, uid %d: what is stored there belongs to %q, %v", c.cgroup, c.uid, owner, err)
		}
	}
	var none *NoOwner
	for _, cgroup := range []string{"/", "/plain", "/system.slice"} {
		if _, err := p.Allow(identity(cgroup, 0)); !errors.As(err, &none) || none.Cgroup != cgroup {
			t.Errorf("%s, outside any unit: %v", cgroup, err)
		}
	}
}

func TestUIDOwners(t *testing.T) {
	const login = "/user.slice/user-1000.slice/session-3.scope"
	outside := &UIDOwners{}
	service := &UIDOwners{Unit: "/system.slice/holdfastd.service"}
	session := &UIDOwners{Unit: login}
	overflow := uint32(65534)
	for _, c := range []struct {
		rule   *UIDOwners
		cgroup string
		uid    uint32
		owner  string // "" is denied
	}{
		{outside, "/", 0, "uid/0"},
		{outside, "/", 1000, "uid/1000"},
		{outside, "/system.slice", 7, "uid/7"},
		{outside, "/plain/sub", 1000, "uid/1000"},
		{service, "/", 1000, "uid/1000"},
		{session, login, 1000, "uid/1000"},
		{session, login, 0, "uid/0"},
		{session, login + "/sub", 1000, "uid/1000"},
		{session, "/", 1000, "uid/1000"},

		// Nothing changes for what has a unit: neither who it is, nor that it is denied.
		{outside, "/system.slice/vmm.service", 0, "/vmm.service"},
		{&UIDOwners{Unit: "/system.slice/vmm.service"}, "/system.slice/vmm.service", 0, "/vmm.service"},
		{outside, "/system.slice/cron.service", 1000, ""},
		{outside, "/system.slice/cron.service/made/by/itself", 1000, ""},
		{outside, login, 1000, ""},
		{outside, "/init.scope", 0, ""},
		{outside, "/docker/0123/system.slice/vmm.service", 0, ""},
		{service, login, 1000, ""},
		{session, "/user.slice/user-1000.slice/session-31.scope", 1000, ""},
		{session, login + "-2.scope", 1000, ""},
		{session, login + "/inner.service", 1000, ""},
		{session, "/other" + login, 1000, ""},
		{session, "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", 1000, ""},
		{session, "/system.slice/cron.service", 1000, ""},

		// All users from outside of a user namespace have the same uid.
		{&UIDOwners{Overflow: &overflow}, "/", 65534, ""},
		{&UIDOwners{Overflow: &overflow, Unit: login}, login, 65534, ""},
		{&UIDOwners{Overflow: &overflow}, "/", 0, "uid/0"},
		{outside, "/", 65534, "uid/65534"},
	} {
		p := Policy{UIDOwners: c.rule}
		id := identity(c.cgroup, c.uid)
		grant, err := p.Allow(id)
		var denial *Denial
		if grant.Owner != c.owner || (err == nil) != (c.owner != "") || err != nil && !errors.As(err, &denial) {
			t.Errorf("daemon in %q; %s, uid %d: %+v, %v; want %q", c.rule.Unit, c.cgroup, c.uid, grant, err, c.owner)
		}
		if strings.HasPrefix(grant.Owner, "uid/") != (grant.Rule == ByUID) {
			t.Errorf("%s, uid %d: %+v", c.cgroup, c.uid, grant)
		}
		if owner, err := p.Owner(id); owner != c.owner && (c.owner != "" || owner != ownChain(id)) || err != nil {
			t.Errorf("daemon in %q; %s, uid %d: what is stored there belongs to %q, %v", c.rule.Unit, c.cgroup, c.uid, owner, err)
		}
	}
}
