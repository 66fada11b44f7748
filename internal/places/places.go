// SPDX-License-Identifier: MIT

// Package places says where a peer is, as far as limits go, and bounds the connections that come from one place.
package places

import (
	"fmt"
	"strings"
	"sync"

	"github.com/holdfast-project/holdfast/internal/peer"
)

const (
	// PerUser bounds the connections of one user in a unit, and of one user's slice; OfUsers those of all but root.
	PerUser = 64
	OfUsers = 1024
	// ofUnit and ofSlice are the parts of OfUsers that one unit may have for all of its users (a container has 65,536 uids),
	// and user.slice for everybody who is logged in: the others' is left to services.
	ofUnit  = OfUsers / 4
	ofSlice = OfUsers * 3 / 4
)

// Place is what limits are counted by.
type Place struct {
	Name string // the outermost unit; below user.slice the user's slice, since a user makes units without end
	Root bool
	// Among is whom all users are counted together with who aren't root: those of the unit, or of user.slice.
	Among string
}

const userSlice = "user.slice"

// Of is where a peer is.
func Of(id peer.Identity) Place {
	p := Place{Name: peer.Outermost(id.Cgroup), Root: id.UID == 0}
	if rest, below := strings.CutPrefix(id.Cgroup, "/user.slice/"); below {
		p.Name, _, _ = strings.Cut(rest, "/")
		p.Among = userSlice
		return p // whatever the uid: a user has subordinate ones too (subuid(5))
	}
	p.Among = p.Name
	if p.Name == "" || !p.Root {
		p.Name = fmt.Sprintf("%s uid %d", p.Name, id.UID)
	}
	return p
}

// all is how many connections those have together that the place is among.
func (p Place) all() int {
	if p.Among == userSlice {
		return ofSlice
	}
	return ofUnit
}

// Connections counts those that there are. The zero value is ready, and safe for concurrent use.
type Connections struct {
	// Share divides all bounds, unless it is 0.
	Share int

	mu    sync.Mutex
	from  map[Place]int
	among map[string]int
	users int
}

// Enter counts one more, if there is room for it. One of root's units may have perUnit.
func (c *Connections) Enter(p Place, perUnit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from == nil {
		c.from, c.among = map[Place]int{}, map[string]int{}
	}
	full := func(n, most int) bool { return n >= most/max(1, c.Share) }
	if p.Root && full(c.from[p], perUnit) || !p.Root && (full(c.from[p], PerUser) || full(c.among[p.Among], p.all()) || full(c.users, OfUsers)) {
		return false
	}
	c.from[p]++
	if !p.Root {
		c.among[p.Among]++
		c.users++
	}
	return true
}

// Leave counts one less.
func (c *Connections) Leave(p Place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from[p]--; c.from[p] == 0 {
		delete(c.from, p)
	}
	if p.Root {
		return
	}
	if c.among[p.Among]--; c.among[p.Among] == 0 {
		delete(c.among, p.Among)
	}
	c.users--
}
