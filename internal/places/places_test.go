// SPDX-License-Identifier: MIT

package places

import (
	"fmt"
	"testing"

	"github.com/holdfast-project/holdfast/internal/peer"
)

func TestPlaces(t *testing.T) {
	same := func(a, b peer.Identity) bool { return Of(a) == Of(b) }
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
		{at("/user.slice/user-1000.slice/user@1000.service/x.service", 1000), at("/user.slice/user-1000.slice/user@1000.service/y.service", 100000), true},
		{at("/user.slice/user-1000.slice/session-1.scope", 1000), at("/user.slice/user-1000.slice/session-1.scope", 0), false},
		{at("/", 0), at("/plain", 0), true},
		{at("/", 0), at("/", 1000), false},
	} {
		if same(c.a, c.b) != c.want {
			t.Errorf("%+v and %+v: %+v, %+v", c.a, c.b, Of(c.a), Of(c.b))
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	var c Connections
	const perUnit = 100
	fill := func(p Place) (n int) {
		for c.Enter(p, perUnit) {
			n++
		}
		return n
	}
	root := Place{Name: "a.service", Root: true}
	if n := fill(root); n != perUnit {
		t.Errorf("root's unit got %d", n)
	}
	users := 0
	for _, name := range []string{"user-1.slice", "user-2.slice"} {
		n := fill(Place{Name: name})
		if n != PerUser {
			t.Errorf("%s got %d", name, n)
		}
		users += n
	}
	for i := range 100 {
		users += fill(Place{Name: string(rune('a' + i)), Among: string(rune('a' + i))})
	}
	if users != OfUsers {
		t.Errorf("users got %d", users)
	}
	c.Leave(root)
	if n := fill(root); n != 1 {
		t.Errorf("after one left, %d came", n)
	}
	if !c.Enter(Place{Name: "b.service", Root: true}, perUnit) {
		t.Error("another unit of root's was not let in")
	}
}

// However many uids somebody has, there is room for others.
func TestUsersOfOnePlaceLeaveRoom(t *testing.T) {
	const perUnit = 100
	var c Connections
	fill := func(cgroup string, uids int) (n int) {
		for uid := range uids {
			for c.Enter(Of(peer.Identity{Cgroup: cgroup, UID: uint32(100000 + uid)}), perUnit) {
				n++
			}
		}
		return n
	}
	if n := fill("/user.slice/user-1000.slice/user@1000.service/a.scope", 1000); n != PerUser {
		t.Errorf("a user and its subordinate uids got %d", n)
	}
	if n := fill("/machine.slice/c.scope", 1000); n != ofUnit {
		t.Errorf("a container got %d", n)
	}
	c = Connections{}
	for user := range 100 {
		fill(fmt.Sprintf("/user.slice/user-%d.slice/session-1.scope", user), 1)
	}
	if n := fill("/system.slice/cache.service", 1); n != PerUser {
		t.Errorf("with many users logged in, a service got %d", n)
	}
	if c.users != ofSlice+PerUser {
		t.Errorf("there are %d", c.users)
	}
	root := Of(peer.Identity{Cgroup: "/user.slice/user-1.slice/session-1.scope"})
	if !c.Enter(root, perUnit) {
		t.Error("a user's connections are in the way of root's in the same slice")
	}
}

func TestShare(t *testing.T) {
	c := Connections{Share: 2}
	fill := func(p Place) (n int) {
		for c.Enter(p, 100) {
			n++
		}
		return n
	}
	if n := fill(Place{Name: "a.service", Root: true}); n != 50 {
		t.Errorf("root's unit got %d", n)
	}
	users := 0
	for i := range 100 {
		users += fill(Place{Name: fmt.Sprint(i), Among: "b.scope"})
	}
	if users != ofUnit/2 {
		t.Errorf("a unit's users got %d", users)
	}
	for i := range 100 {
		n := fill(Place{Name: fmt.Sprint(i), Among: fmt.Sprint(i)})
		if i == 0 && n != PerUser/2 {
			t.Errorf("a user got %d", n)
		}
		users += n
	}
	if users != OfUsers/2 {
		t.Errorf("users got %d", users)
	}
}
