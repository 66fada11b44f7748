// SPDX-License-Identifier: MIT

//go:build linux

package fdtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// Main is to be a package's TestMain:
//
//	func TestMain(m *testing.M) { fdtest.Main(m) }
//
// It runs the tests and ends the process. The run fails if an [fd.FD] is still open afterwards, or if the
// process has a descriptor that it hadn't before. Where benchmarks run, they are not slowed down by remembering
// where each FD was made.
func Main(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		fd.Track()
	}
	before := descriptors()
	code := m.Run()
	if leaks := settle(before); len(leaks) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: %d descriptors leaked:\n%s\n", len(leaks), strings.Join(leaks, "\n"))
		if code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

// settle looks for leaks until there are none. Connections and files of the standard library are closed by
// their goroutines, or by the garbage collector, some time after a test that has dropped them ends.
func settle(before map[string]string) []string {
	var leaks []string
	for range 50 {
		leaks = append(fd.Tracked(), strangers(before)...)
		if len(leaks) == 0 {
			break
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	return leaks
}

// strangers are the descriptors that were not there before. Those of an [fd.FD] come up here too: their number
// leads to the stack.
func strangers(before map[string]string) []string {
	var found []string
	for number, target := range descriptors() {
		if before[number] == target {
			continue
		}
		// The Go runtime's network poller, made at first use and kept.
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		found = append(found, fmt.Sprintf("descriptor %s -> %s was not open before the tests", number, target))
	}
	slices.Sort(found)
	return found
}

// descriptors maps the number of each open descriptor to what it is.
func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		panic(fmt.Sprintf("fdtest: cannot tell leaks: %v", err))
	}
	open := make(map[string]string, len(entries))
	for _, entry := range entries {
		// The descriptor that read the directory is listed and gone by now.
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			open[entry.Name()] = target
		}
	}
	return open
}
