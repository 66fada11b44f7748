// SPDX-License-Identifier: MIT

//go:build linux

package peer

import (
	"reflect"
	"testing"
	"testing/fstest"
)

func TestMemoryLimits(t *testing.T) {
	group := func(dir, limit, current, stat string) fstest.MapFS {
		return fstest.MapFS{
			dir + "memory.max":     {Data: []byte(limit + "\n")},
			dir + "memory.current": {Data: []byte(current + "\n")},
			dir + "memory.stat":    {Data: []byte("anon 5\n" + stat)},
		}
	}
	tree := fstest.MapFS{"memory.stat": {Data: nil}}
	for _, g := range []fstest.MapFS{
		group("a.slice/", "1000000000", "900000000", "inactive_file 100000000\nactive_file 0\n"),
		group("a.slice/small.service/", "24000000", "1000000", ""),
		group("a.slice/free.service/", "max", "1000000", ""),
		group("a.slice/cached.service/", "200000000", "199000000", "inactive_file 100000000\nactive_file 50000000\n"),
	} {
		for name, file := range g {
			tree[name] = file
		}
	}
	for cgroup, want := range map[string]*Memory{
		"/a.slice/small.service":                  {"/a.slice/small.service", 24000000, 23000000},
		"/a.slice/small.service/delegated/deeper": {"/a.slice/small.service", 24000000, 23000000},
		"/a.slice/free.service":                   {"/a.slice", 1000000000, 200000000},
		"/a.slice/cached.service":                 {"/a.slice/cached.service", 200000000, 151000000},
		"/no/controller":                          nil,
		"/":                                       nil,
	} {
		if got, err := memoryIn(tree, cgroup); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", cgroup, got, err, want)
		}
	}
}
