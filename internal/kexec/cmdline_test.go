// SPDX-License-Identifier: MIT

package kexec

import (
	"slices"
	"strings"
	"testing"
)

func TestEnable(t *testing.T) {
	for _, test := range []struct{ line, want, added string }{
		{"", "kho=on liveupdate=on", "kho=on liveupdate=on"},
		{"root=/dev/vda2 ro", "root=/dev/vda2 ro kho=on liveupdate=on", "kho=on liveupdate=on"},
		{"kho=on quiet liveupdate=on", "kho=on quiet liveupdate=on", ""},
		{"kho=1 liveupdate=Yes", "kho=1 liveupdate=Yes", ""},
		{"kho=on", "kho=on liveupdate=on", "liveupdate=on"},
		// The last word that means something counts.
		{"kho=on liveupdate=on liveupdate=off", "kho=on liveupdate=on liveupdate=off liveupdate=on", "liveupdate=on"},
		{"kho=on liveupdate=off liveupdate=on", "kho=on liveupdate=off liveupdate=on", ""},
		{"kho=on liveupdate=on liveupdate=maybe liveupdate", "kho=on liveupdate=on liveupdate=maybe liveupdate", ""},
		{"kho liveupdate=", "kho liveupdate= kho=on liveupdate=on", "kho=on liveupdate=on"},
		// What is behind "--" is for init.
		{"quiet -- kho=on liveupdate=on", "quiet kho=on liveupdate=on -- kho=on liveupdate=on", "kho=on liveupdate=on"},
		{"-- x", "kho=on liveupdate=on -- x", "kho=on liveupdate=on"},
		{"kho=on liveupdate=on -- x", "kho=on liveupdate=on -- x", ""},
		// Quotes.
		{`x="kho=on liveupdate=on" y`, `x="kho=on liveupdate=on" y kho=on liveupdate=on`, "kho=on liveupdate=on"},
		{`x="a -- b" kho="on"`, `x="a -- b" kho="on" liveupdate=on`, "liveupdate=on"},
		{"xkho=on kho=on liveupdate=on", "xkho=on kho=on liveupdate=on", ""},
	} {
		got, added := Enable(test.line)
		if got != test.want || strings.Join(added, " ") != test.added {
			t.Errorf("%q: %q, added %q; want %q, %q", test.line, got, added, test.want, test.added)
		}
	}
}

func FuzzEnable(f *testing.F) {
	f.Add(`root=x kho=off -- y`)
	f.Add(`a="b c`)
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Count(line, `"`)%2 == 1 {
			t.Skip("the kernel takes all that follows for a part of that word")
		}
		enabled, _ := Enable(line)
		for _, name := range Needed {
			if on, _ := On(enabled, name); !on {
				t.Errorf("%q became %q, without %s", line, enabled, name)
			}
		}
		if again, added := Enable(enabled); added != nil || again != enabled {
			t.Errorf("%q became %q, and that %q", line, enabled, again)
		}
	})
}

func TestParam(t *testing.T) {
	const line = `a=1 b a=2 "c=3 4" d="5 6" -- e=7`
	for name, want := range map[string]string{"a": "2", "b": "", "c": "3 4", "d": "5 6"} {
		if got, found := Param(line, name); got != want || !found {
			t.Errorf("%s: %q, %v", name, got, found)
		}
	}
	for _, name := range []string{"e", "x", ""} {
		if got, found := Param(line, name); found {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestReuse(t *testing.T) {
	if got := Reuse("BOOT_IMAGE=/boot/vmlinuz-7.2 root=UUID=x  ro x=\"a  b\" -- BOOT_IMAGE=y"); got != "root=UUID=x ro x=\"a  b\" -- BOOT_IMAGE=y" {
		t.Errorf("%q", got)
	}
	if list, after := words("a  b\tc"); !slices.Equal(list, []string{"a", "b", "c"}) || after != 6 {
		t.Errorf("%q, %d", list, after)
	}
}
