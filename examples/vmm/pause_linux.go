// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/timeline"
)

// stopped is the first line of what is saved, before QEMU's state: when that was, on a clock that goes on over a kexec.
type stopped struct {
	Stop  time.Duration    `json:"stopNSec"`
	Save  time.Duration    `json:"saveNSec"`
	Clock timeline.Reading `json:"clock"` // once it was saved
}

func (s *stopped) with(state []byte) ([]byte, error) {
	line, err := json.Marshal(s)
	return append(append(line, '\n'), state...), err
}

// parseSaved undoes with.
func parseSaved(saved []byte) (s stopped, state []byte, err error) {
	line, state, found := bytes.Cut(saved, []byte{'\n'})
	if !found {
		return s, nil, errors.New("the state doesn't begin with a line about when it was saved: was it another version of vmm?")
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, nil, fmt.Errorf("when the state was saved: %w", err)
	}
	return s, state, nil
}

// pause is for how long a machine stood still, and its parts in their order.
type pause struct {
	Clock string `json:"clock"` // counter: the processor's; wall: parts may be a second off
	Total int64  `json:"totalUSec"`
	Stop  int64  `json:"stopUSec"` // of the processors
	Save  int64  `json:"saveUSec"`
	// Kexec is from there to the next kernel's start: until others are saved, services have stopped, and it is switched.
	Kexec int64 `json:"kexecUSec,omitempty"`
	// Boot is from there to the machine's being asked for again.
	Boot int64 `json:"bootUSec,omitempty"`
	// Parked is both, where the kernel is the same.
	Parked  int64 `json:"parkedUSec,omitempty"`
	Restore int64 `json:"restoreUSec"`
}

// since is the pause of a machine that goes on now. At begin, the restoring began.
func (s *stopped) since(begin, now timeline.Reading, update bool) *pause {
	p := &pause{Clock: "wall", Stop: s.Stop.Microseconds(), Save: s.Save.Microseconds()}
	elapsed := now.RealTime - s.Clock.RealTime
	if s.Clock.Counter > 0 && begin.Counter > s.Clock.Counter && now.Raw > begin.Raw {
		p.Clock = "counter"
		hz := float64(now.Counter-begin.Counter) / float64(now.Raw-begin.Raw) * 1e9
		elapsed = int64(float64(now.Counter-s.Clock.Counter) / hz * 1e9)
	}
	restore := now.BootTime - begin.BootTime
	before := max(0, elapsed-restore)
	p.Restore = restore / 1e3
	if update {
		boot := min(begin.BootTime, before) // each kernel's clock begins with it
		p.Boot, p.Kexec = boot/1e3, (before-boot)/1e3
	} else {
		p.Parked = before / 1e3
	}
	p.Total = p.Stop + p.Save + p.Kexec + p.Boot + p.Parked + p.Restore
	return p
}

func (p *pause) String() string {
	var parts []string
	for _, part := range []struct {
		name string
		usec int64
	}{{"stop", p.Stop}, {"save", p.Save}, {"kexec", p.Kexec}, {"boot", p.Boot}, {"parked", p.Parked}, {"restore", p.Restore}} {
		if part.usec > 0 {
			parts = append(parts, part.name+" "+short(part.usec))
		}
	}
	return fmt.Sprintf("stood still for %s: %s", short(p.Total), strings.Join(parts, ", "))
}

func short(usec int64) string {
	d := time.Duration(usec) * time.Microsecond
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
