// SPDX-License-Identifier: MIT

package updated

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/update"
)

// What a process leaves for the next one that runs in this boot: how far a round of its was, in the file Mark, and who
// took part, beside it. Both may be lost: then a kernel stays loaded that needn't, and nobody is waited for.

// mark is how far a round was.
type mark string

const (
	unmarked mark = ""
	// markRound: it could be called off, and the loaded kernel is its own.
	markRound mark = "round"
	// markSwitch: everybody was ready, and PID 1 may have been asked for the switch.
	markSwitch mark = "switch"
	// markReady: everybody was ready for a switch that somebody else had asked PID 1 for, and whose kernel it is.
	markReady mark = "ready"
)

// leave writes a file for the next process of this boot, whole or not at all.
func leave(file string, text []byte) error {
	boot, err := fdname.ThisBoot()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append([]byte(boot+"\n"), text...), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// left reads what leave has written in this boot. What isn't there is os.ErrNotExist.
func left(file string) ([]byte, error) {
	boot, err := fdname.ThisBoot()
	if err != nil {
		return nil, err
	}
	all, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text, ours := bytes.CutPrefix(all, []byte(boot+"\n"))
	if !ours {
		return nil, os.ErrNotExist // before the kexec, in a directory that crossed it
	}
	return text, nil
}

func (u *Updated) mark(m mark) error { return leave(u.Mark, []byte(m)) }

func (u *Updated) marked() mark {
	text, err := left(u.Mark)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		u.Log.Warn("whether a round was broken off can't be told", "error", err)
	}
	return mark(text)
}

func (u *Updated) unmark() {
	if err := os.Remove(u.Mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		u.Log.Warn("a later holdfast-updated may unload a kernel for nothing", "error", err)
	}
}

// underWayTimeout bounds asking PID 1.
const underWayTimeout = 5 * time.Second

func (u *Updated) askUnderWay(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, underWayTimeout)
	defer cancel()
	return u.UnderWay(ctx)
}

// takeUp does what the round of another process needs that has ended in it.
func (u *Updated) takeUp(ctx context.Context) {
	u.expect()
	left := u.marked()
	err := u.settle(ctx, left)
	if err == nil {
		return
	}
	u.Log.Warn("whether a kexec is under way can't be told", "error", err)
	u.rounding.Go(func() {
		looks := time.NewTicker(cmp.Or(u.lookInterval, lookInterval))
		defer looks.Stop()
		for {
			select {
			case <-looks.C:
			case <-ctx.Done():
				return
			}
			settled := false
			err := u.between(func() error {
				settled = u.look().Round > 0 || u.settle(ctx, left) == nil // a round has its own mark
				return nil
			})
			if settled || err != nil && u.look().Round > 0 {
				return
			}
		}
	})
}

// settle is what takeUp does. The error is that of asking PID 1.
func (u *Updated) settle(ctx context.Context, left mark) error {
	underWay, err := u.askUnderWay(ctx)
	switch {
	case (left == markSwitch && (underWay || err != nil)) || left == markReady:
		// What participants committed may be about to cross: they must not take the other process's end for that of the round.
		u.mu.Lock()
		u.limbo = true
		u.mu.Unlock()
		u.rounding.Go(func() { u.leaveLimbo(ctx, left) })
	case err != nil:
		return err
	case underWay:
		// Whatever the other process had begun, nobody is ready, and the kernel is PID 1's by now.
		u.unmark()
		u.makeReady(ctx)
	case left != unmarked:
		u.Log.Warn("holdfast-updated ended in the middle of an update, which is off: the next kernel is unloaded")
		if err := u.Unload(ctx); err != nil {
			u.Log.Error("the kernel of an update that was broken off stays loaded", "error", err)
			return nil
		}
		u.unmark()
	}
	return nil
}

// makeReady begins a round for a kexec that nobody has asked for one for.
func (u *Updated) makeReady(ctx context.Context) {
	u.rounding.Go(func() {
		if err := u.MakeReady(ctx); err != nil && ctx.Err() == nil {
			u.Log.Error("not everybody is ready for the kexec", "reason", err)
		}
	})
}

// leaveLimbo waits for the end of a kexec that was under way before; it mostly doesn't come.
func (u *Updated) leaveLimbo(ctx context.Context, left mark) {
	ready := make(chan struct{})
	close(ready)
	select {
	case <-u.watchKexec(ctx, left == markSwitch, ready):
	case <-ctx.Done():
		return
	}
	reason := "the switch failed"
	var err error
	if left == markReady {
		reason = calledOff
	} else if err = u.Unload(ctx); err != nil {
		reason += "; and the next kernel is still loaded: " + err.Error()
	}
	if err == nil {
		u.unmark()
	}
	u.do(func(*update.Rounds, time.Time) {
		u.limbo = false
		u.tellAll(phase{0, update.Aborted, reason})
		u.tellAll(phase{0, update.Resumed, reason})
	})
}

// calledOff is why a round ends that somebody else was to switch after.
const calledOff = "the switch to the next kernel that was under way was called off"

// rejoinTimeout is how long those have to come back who took part in updates when another process ended. The library tries
// about once a second.
const rejoinTimeout = 5 * time.Second

// seat is a participant's, as the next process is told of it.
type seat struct {
	Name     string `json:"name"`
	Owner    string `json:"owner"`
	Required bool   `json:"required"`

	left bool // while it was looked whether an update may begin, and not before
}

func (u *Updated) seatsFile() string { return u.Mark + ".participants" }

// expect reads who took part when another process ended.
func (u *Updated) expect() {
	text, err := left(u.seatsFile())
	if err == nil {
		err = json.Unmarshal(text, &u.expected)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		u.Log.Warn("who took part in updates before can't be told, and is not waited for", "error", err)
	}
	u.expectedUntil = time.Now().Add(rejoinTimeout)
}

// cameBack strikes a participant off those who are expected. The lock is held.
func (u *Updated) cameBack(name, owner string) {
	if i := slices.IndexFunc(u.expected, func(s seat) bool { return s.Name == name && s.Owner == owner }); i >= 0 {
		u.expected = slices.Delete(u.expected, i, i+1)
	}
}

// leftWhileLooked expects a required participant back that leaves while it is looked whether an update may begin. The lock is
// held.
func (u *Updated) leftWhileLooked(p update.Participant, now time.Time) {
	if u.begins && p.Required && u.rounds.Phase().Over() {
		u.expected = append(u.expected, seat{Name: p.Name, Owner: p.Owner, Required: true, left: true})
		u.expectedUntil = now.Add(rejoinTimeout)
	}
}

// forgetWhoLeft has nobody waited for any more who has left while it was looked: what that was for has begun, or was refused. The
// lock is held.
func (u *Updated) forgetWhoLeft() {
	u.expected = slices.DeleteFunc(u.expected, func(s seat) bool { return s.left })
}

// noteSeats has the next process know who takes part, or is yet to come back.
func (u *Updated) noteSeats() {
	u.noting.Lock()
	defer u.noting.Unlock()
	u.mu.Lock()
	seats := slices.DeleteFunc(slices.Clone(u.expected), func(s seat) bool { return s.left })
	for _, p := range u.rounds.Snapshot().Participants {
		if p.State != update.Gone {
			seats = append(seats, seat{Name: p.Name, Owner: p.Owner, Required: p.Required})
		}
	}
	stopping := u.stopping
	u.mu.Unlock()
	if stopping {
		return // who loses its connection now is to come back
	}
	text, err := json.Marshal(seats)
	if err == nil {
		err = leave(u.seatsFile(), text)
	}
	if err != nil {
		u.Log.Warn("a later holdfast-updated will not wait for who takes part now", "error", err)
	}
}

// missed waits a while for those who took part before, and returns the required ones that haven't come back.
func (u *Updated) missed(ctx context.Context, o update.Options) []Finding {
	for {
		u.mu.Lock()
		missing, changed := u.missing(o), u.changed
		waits, left := len(u.expected) > 0, time.Until(u.expectedUntil)
		u.mu.Unlock()
		if !waits || left <= 0 {
			return missing
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return missing
		}
		timer.Stop()
	}
}

// missing are those who are required, and expected back. The lock is held.
func (u *Updated) missing(o update.Options) []Finding {
	var names []string
	for _, s := range u.expected {
		if s.Required && !o.Excuses(s.Name, s.Owner) {
			names = append(names, fmt.Sprintf("%s (%s)", s.Name, s.Owner))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []Finding{{ID: "participant", Severity: "error",
		Text: "required, and gone since holdfast-updated was restarted or the update was asked for: " + strings.Join(names, ", "),
		Hint: "start it again, or leave it out with --without NAME"}}
}
