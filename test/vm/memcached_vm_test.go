// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/test/memcached"
)

// memcached, with values that nobody in the machine has. The times are told, and not judged.
func TestMemcached(t *testing.T) {
	t.Parallel()
	port, err := memcached.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	machine, stop := context.WithCancel(t.Context())
	defer stop()
	ctx, cancel := context.WithCancel(machine)
	defer cancel()
	ways, ended := make(chan string, 4), make(chan error, 1)
	go func() {
		defer close(ways)
		ended <- heard(machine, t, func(line string) {
			if way, ok := strings.CutPrefix(line, "memcached: "); ok {
				ways <- way
			}
		}, "memcached.sh", "--package", "memcached", "--next-kernel", "7.3", "--memory", "2048", "--forward", port+":11211", "--timeout", "900")
		cancel() // what still waits for memcached need not any more
	}()
	var stops []memcached.Stop
	for way := range ways {
		over, err := memcached.Over(ctx, "127.0.0.1:"+port, way, func(format string, args ...any) {
			fmt.Printf("%s: %s: %s\n", t.Name(), memcached.Ways[way], fmt.Sprintf(format, args...))
		})
		if err != nil {
			t.Errorf("%s: %v", way, err)
			break
		}
		stops = append(stops, over)
	}
	if t.Failed() {
		stop()
	}
	for range ways {
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(memcached.Table(stops)) {
		fmt.Printf("%s: %s", t.Name(), line)
	}
	seen := map[string]memcached.Check{}
	for _, s := range stops {
		seen[s.Way] = s.After
		if s.Bytes < 100_000_000 {
			t.Errorf("%s: the values have %d bytes", s.Way, s.Bytes)
		}
	}
	all := memcached.Check{Hits: memcached.Keys}
	for way, want := range map[string]memcached.Check{"holdfast": all, "restart": all, "store": all, "cold": {Misses: memcached.Keys}} {
		if got, ok := seen[way]; !ok || got != want {
			t.Errorf("%s: %v; expected %v", memcached.Ways[way], got, want)
		}
	}
}
