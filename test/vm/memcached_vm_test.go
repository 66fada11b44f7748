// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/test/memcached"
)

// memcached, with values that nobody in the machine has. The times are told, and not judged.
func TestMemcached(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	port := freePort(t)
	machine, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := exec.CommandContext(machine, "../../bin/hfvm", "run", "--quiet-console", "--add", tree+":/",
		"--package", "memcached", "--next-kernel", "7.3", "--memory", "2048", "--forward", port+":11211", "--timeout", "900", "memcached.sh")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(machine)
	defer cancel()
	ways := make(chan string, 4)
	go func() {
		defer close(ways)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			fmt.Printf("%s: %s\n", t.Name(), lines.Text())
			if way, ok := strings.CutPrefix(lines.Text(), "memcached: "); ok {
				ways <- way
			}
		}
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
	if err := cmd.Wait(); err != nil {
		t.Errorf("hfvm: %v", err)
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
	fmt.Printf("%s: %.0f s\n", t.Name(), time.Since(begun).Seconds())
}

// freePort is one that nobody has right now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
