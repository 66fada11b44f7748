// SPDX-License-Identifier: MIT

package orchestrator

import (
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/peer"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestPlaces(t *testing.T) {
	same := func(a, b peer.Identity) bool { return placeOf(a) == placeOf(b) }
	at := func(cgroup string, uid uint32) peer.Identity { return peer.Identity{Cgroup: cgroup, UID: uid} }
	for _, c := range []struct {
		a, b peer.Identity
		want bool
	}{
		{at("/system.slice/a.service", 0), at("/system.slice/a.service/inner.service", 0), true},
		{at("/system.slice/a.service", 0), at("/system.slice/b.service", 0), false},
		{at("/system.slice/a.service", 0), at("/system.slice/a.service", 7), false},
		{at("/user.slice/user-1000.slice/session-1.scope", 1000), at("/user.slice/user-1000.slice/user@1000.service/x.service", 1000), true},
		{at("/user.slice/user-1000.slice/session-1.scope", 1000), at("/user.slice/user-1001.slice/session-2.scope", 1001), false},
		{at("/", 0), at("/plain", 0), true},
		{at("/", 0), at("/", 1000), false},
	} {
		if same(c.a, c.b) != c.want {
			t.Errorf("%+v and %+v: %+v, %+v", c.a, c.b, placeOf(c.a), placeOf(c.b))
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	o := &Orchestrator{}
	fill := func(p place) (n int) {
		for o.enter(p) {
			n++
		}
		return n
	}
	root := place{name: "a.service", root: true}
	if n := fill(root); n != connectionsPerUnit {
		t.Errorf("root's unit got %d", n)
	}
	users := 0
	for _, name := range []string{"user-1.slice", "user-2.slice"} {
		n := fill(place{name: name})
		if n != connectionsPerUser {
			t.Errorf("%s got %d", name, n)
		}
		users += n
	}
	for i := range 100 {
		users += fill(place{name: string(rune('a' + i))})
	}
	if users != connectionsOfUsers {
		t.Errorf("users got %d", users)
	}
	o.leave(root)
	if n := fill(root); n != 1 {
		t.Errorf("after one left, %d came", n)
	}
	if !o.enter(place{name: "b.service", root: true}) {
		t.Error("another unit of root's was not let in")
	}
}
