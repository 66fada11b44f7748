// SPDX-License-Identifier: MIT

package updated

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/holdfast-project/holdfast/internal/places"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/update"
)

const (
	// participantsMax and ownerMax bound what a reply to Status has of participants: with reasons of reasonMax bytes it stays
	// well below the MiB that clients take.
	participantsMax = 1024
	ownerMax        = 300
)

// subscription is a participant's connection, as far as it is yet to be told of phases. Each has a channel of its own: a change
// that says nothing to the others doesn't wake them. Its fields are Updated's, under the same lock.
type subscription struct {
	id     string
	untold []phase
	news   chan struct{} // has room for one: there is something untold, or the process stops
}

func (s *subscription) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// subscribe has a participant join, which is to be told of the present phase at first.
func (u *Updated) subscribe(from places.Place, name, owner string, required bool) (*subscription, error) {
	if len(owner) > ownerMax {
		return nil, notPermitted(fmt.Sprintf("the owner's name has %d bytes, and a participant's has %d at most", len(owner), ownerMax), policy.BuiltIn)
	}
	if !u.joined.Enter(from, cmp.Or(u.perUnit, connectionsPerUnit)) {
		return nil, notPermitted("there are too many participants of "+from.Name, policy.BuiltIn)
	}
	s := &subscription{id: rand.Text(), news: make(chan struct{}, 1)}
	var err error
	u.do(func(r *update.Rounds, now time.Time) {
		if len(u.subscriptions) >= participantsMax {
			err = notPermitted("there are too many participants", policy.BuiltIn)
			return
		}
		r.Join(now, s.id, name, owner, required)
		u.subscriptions[s.id] = s
		u.tell(s, phase{r.Round(), u.shown(r.Phase()), r.Reason()})
		u.cameBack(name, owner)
	})
	if err != nil {
		u.joined.Leave(from)
		return nil, err
	}
	u.noteSeats()
	return s, nil
}

func (u *Updated) unsubscribe(from places.Place, s *subscription) {
	u.joined.Leave(from)
	u.do(func(r *update.Rounds, now time.Time) {
		delete(u.subscriptions, s.id)
		u.untold -= len(s.untold)
		if self, there := r.Of(s.id); there {
			u.leftWhileLooked(self, now)
		}
		r.Leave(now, s.id)
	})
	u.noteSeats()
}

// tell has one be told of a phase. The lock is held.
func (u *Updated) tell(s *subscription, p phase) {
	s.untold = append(s.untold, p)
	u.untold++
	s.wake()
}

// tellAll has everybody be told of a phase. The lock is held.
func (u *Updated) tellAll(p phase) {
	for _, s := range u.subscriptions {
		u.tell(s, p)
	}
}

// joined is a reply to Join.
type joined struct {
	ID           string       `json:"id"`
	Round        int          `json:"round"`
	Phase        update.Phase `json:"phase"`
	DeadlineUSec *int64       `json:"deadlineUSec,omitempty"`
	Reason       string       `json:"reason,omitempty"`
}

// next returns what is to be told next, or nil. It is the last if the process stops.
func (u *Updated) next(s *subscription) (reply *joined, last bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case len(s.untold) == 0 && u.stopping:
		return &joined{ID: s.id, Round: u.rounds.Round(), Phase: u.shown(u.rounds.Phase()), Reason: "holdfast-updated was stopped"}, true
	case len(s.untold) == 0:
		return nil, false
	}
	p := s.untold[0]
	reply = &joined{ID: s.id, Round: p.round, Phase: p.phase}
	if p.phase == update.Aborted || p.phase == update.Resumed {
		reply.Reason = p.reason
	}
	if self, there := u.rounds.Of(s.id); there && !self.Deadline.IsZero() && p.phase == u.rounds.Phase() {
		left := max(0, time.Until(self.Deadline).Microseconds())
		reply.DeadlineUSec = &left
	}
	return reply, false
}

// wasTold says that what next returned has been sent.
func (u *Updated) wasTold(s *subscription) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.untold = s.untold[1:]
	if u.untold--; u.untold == 0 {
		u.wake() // whoever waits for that
	}
}
