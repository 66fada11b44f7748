// SPDX-License-Identifier: MIT

package rootfs

import (
	"slices"
	"testing"
)

func TestAnEntryIsNamedByWhatGoesIn(t *testing.T) {
	name := func(suite string, extra []string, dracut bool) string {
		n, _ := entry(suite, extra, dracut)
		return n
	}
	if a, b := name("forky", []string{"a", "b"}, false), name("forky", []string{"b", "a", "b"}, false); a != b {
		t.Errorf("order and repetition matter: %s, %s", a, b)
	}
	all := []string{
		name("forky", nil, false), name("trixie", nil, false), name("forky", nil, true),
		name("forky", []string{"memcached"}, false), name("forky", []string{"dracut"}, false),
	}
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("two entries have one name: %v", all)
	}
}

func TestPackageNames(t *testing.T) {
	if err := CheckPackages([]string{"memcached", "libstdc++6", "qemu-system-x86"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "a,b", "-x", "a b", "--variant=x"} {
		if CheckPackages([]string{bad}) == nil {
			t.Errorf("%q was taken for a package", bad)
		}
	}
}
