// SPDX-License-Identifier: MIT

package liveupdate

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestNamesThatTheKernelWouldRefuse(t *testing.T) {
	for what, name := range map[string]string{
		"empty":      "",
		"too long":   strings.Repeat("x", MaxName+1),
		"NUL inside": "a\x00b",
	} {
		t.Run(what, func(t *testing.T) {
			err := checkName(OpCreate, name)
			if !errors.Is(err, ErrNameInvalid) {
				t.Errorf("got %v, want ErrNameInvalid", err)
			}
		})
	}
	if err := checkName(OpCreate, strings.Repeat("\xff", MaxName)); err != nil {
		t.Errorf("63 odd bytes are a name: %v", err)
	}
}

func TestErrorSaysWhatWasTriedAndWhatToDo(t *testing.T) {
	refused := errors.New("no such file or directory")
	for _, test := range []struct {
		err  error
		want string
	}{
		{
			&Error{Op: OpCreate, Name: "ram", Path: "/dev/liveupdate", Kind: ErrNoDevice, Err: refused, Hint: "buy one"},
			`liveupdate: create session "ram": /dev/liveupdate: there is no live update device (no such file or directory); buy one`,
		},
		{
			&Error{Op: OpPreserve, Name: "ram", Token: 7, Kind: ErrTokenTaken},
			`liveupdate: preserve file as token 7 in session "ram": the session has a file under this token already`,
		},
		{
			&Error{Op: OpRetrieve, Name: "ram", Token: 7, Err: context.Canceled},
			`liveupdate: retrieve file of token 7 from session "ram": context canceled`,
		},
		{
			&BusyError{Op: OpCreate, Name: "ram", Path: "/dev/liveupdate", Waited: 1234567890, Holders: []Holder{{1, "systemd"}, {42, "a b"}}},
			`liveupdate: create session "ram": /dev/liveupdate was busy for 1.235s, held by process 1 ("systemd") and process 42 ("a b"); have its holder close it, or wait for longer`,
		},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestLostForWantOfMemoryIsLost(t *testing.T) {
	err := error(&Error{Op: OpRetrieve, Kind: ErrNoMemory})
	if !errors.Is(err, ErrFileLost) || !errors.Is(err, ErrNoMemory) {
		t.Errorf("%v is not both ErrNoMemory and ErrFileLost", err)
	}
	if err := error(&Error{Op: OpRetrieve, Kind: ErrFileLost}); errors.Is(err, ErrNoMemory) {
		t.Errorf("%v is an ErrNoMemory", err)
	}
	if err := error(&Error{Kind: ErrNotSupported}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v is not an errors.ErrUnsupported", err)
	}
}

func TestDirectionString(t *testing.T) {
	for d, want := range map[Direction]string{Outgoing: "outgoing", Incoming: "incoming", 0: "Direction(0)"} {
		if got := d.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
