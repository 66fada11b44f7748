// SPDX-License-Identifier: MIT

package luosim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// results runs the program script: one list of steps a boot.
func results(t *testing.T, flags []string, boots ...string) []string {
	t.Helper()
	return strings.Fields(emulate(t, flags, program("script", boots...)...).succeed())
}

func TestFaults(t *testing.T) {
	const carry = "create:s preserve:s:1 preserve:s:2 kexec"
	for _, c := range []struct {
		name   string
		faults []string
		boots  []string
		want   []string // of each boot; a kexec that works has no result
	}{
		{"none", nil,
			[]string{carry, "retrieve:s name:s get:s:2 get:s:1 finish:s close:s"}, []string{"ok ok ok", "ok ok ok ok ok ok"}},
		{"busy", []string{"busy"},
			[]string{"open open open open create:s"}, []string{"EBUSY EBUSY EBUSY EBUSY EBUSY"}},
		{"busy twice at each boot", []string{"busy=2"},
			[]string{"open open open open kexec", "open open open"}, []string{"EBUSY EBUSY ok ok", "EBUSY EBUSY ok"}},
		{"busy once, only at boot 2", []string{"busy=1@2"},
			[]string{"open kexec", "open open kexec", "open"}, []string{"ok", "EBUSY ok", "ok"}},
		{"eio at boot 2", []string{"eio@2"},
			[]string{carry, "open open retrieve:s kexec", "open"}, []string{"ok ok ok", "EIO EIO EIO", "ok"}},
		{"nodevice", []string{"nodevice"},
			[]string{"open open"}, []string{"ENOENT ENOENT"}},
		{"nodevice at boot 2", []string{"nodevice@2"},
			[]string{carry, "open kexec", "open retrieve:s"}, []string{"ok ok ok", "ENOENT", "ok ENOENT"}},
		{"lost at boot 2", []string{"lost@2"},
			[]string{carry, "open retrieve:s create:s preserve:s:3 kexec", "retrieve:s get:s:3"},
			[]string{"ok ok ok", "ok ENOENT ok ok", "ok ok"}},
		{"lost always", []string{"lost"},
			[]string{carry, "retrieve:s create:s kexec", "retrieve:s"}, []string{"ok ok ok", "ENOENT ok", "ENOENT"}},
		{"preserve", []string{"preserve"},
			[]string{"create:s preserve:s:1 preserve:s:1 preserve:s:2 name:s"}, []string{"ok ENOMEM ENOMEM ENOMEM ok"}},
		{"preserve of one token", []string{"preserve=18446744073709551615"},
			[]string{"create:s preserve:s:18446744073709551615 preserve:s:2 kexec", "retrieve:s get:s:2 get:s:18446744073709551615"},
			[]string{"ok ENOMEM ok", "ok ok ENOENT"}},
		{"retrieve of one token, for ever", []string{"retrieve=1"},
			[]string{carry, "retrieve:s get:s:1 get:s:2 get:s:1 get:s:1 finish:s"}, []string{"ok ok ok", "ok ENOMEM ok ENOMEM ENOMEM ok"}},
		{"retrieve", []string{"retrieve"},
			[]string{carry, "retrieve:s get:s:1 get:s:2 get:s:3"}, []string{"ok ok ok", "ok ENOMEM ENOMEM ENOENT"}},
		{"finish twice", []string{"finish=2"},
			[]string{carry, "retrieve:s get:s:1 finish:s finish:s get:s:2 finish:s close:s"}, []string{"ok ok ok", "ok ok EBUSY EBUSY ok ok ok"}},
		{"finish once", []string{"finish"},
			[]string{carry, "retrieve:s finish:s get:s:1 finish:s kexec", "retrieve:s"}, []string{"ok ok ok", "ok EBUSY ok ok", "ENOENT"}},
		{"several", []string{"busy=1@1", "preserve=1", "finish=1@2"},
			[]string{"open " + carry, "retrieve:s get:s:1 get:s:2 finish:s finish:s"}, []string{"EBUSY ok ENOMEM ok", "ok ENOENT ok EBUSY ok"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var flags, want []string
			for _, f := range c.faults {
				flags = append(flags, "--fault", f)
			}
			for i, results := range c.want {
				for _, r := range strings.Fields(results) {
					want = append(want, fmt.Sprint(i+1, ":", r))
				}
			}
			if got := results(t, flags, c.boots...); !slices.Equal(got, want) {
				t.Errorf("\n got %q\nwant %q", got, want)
			}
		})
	}
}

// A failed freeze leaves everything as it was: the old sessions go on, and the next try carries all of it. Which
// errno the reboot fails with is up to what could not be frozen.
func TestFreezeFails(t *testing.T) {
	got := results(t, []string{"--fault", "freeze=2"},
		"create:s preserve:s:1 kexec preserve:s:2 create:t kexec name:s preserve:t:3 kexec",
		"retrieve:s get:s:1 get:s:2 finish:s retrieve:t get:t:3 finish:t")
	for _, i := range []int{2, 5} {
		if len(got) > i && strings.HasPrefix(got[i], "1:E") {
			got[i] = "1:E"
		}
	}
	want := strings.Fields("1:ok 1:ok 1:E 1:ok 1:ok 1:E 1:ok 1:ok 2:ok 2:ok 2:ok 2:ok 2:ok 2:ok 2:ok")
	if !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// A fault is a machine's, not a run's: each boot counts anew.
func TestFreezeFailsAtEachBoot(t *testing.T) {
	got := results(t, []string{"--fault", "freeze=1@2"}, "kexec", "kexec kexec", "open")
	if len(got) != 2 || !strings.HasPrefix(got[0], "2:E") || got[1] != "3:ok" {
		t.Errorf("got %q, want an error at boot 2, and then boot 3", got)
	}
}
