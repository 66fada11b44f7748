// SPDX-License-Identifier: MIT

//go:build vm

package luosim

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
)

// The kernel's own tests of live update (tools/testing/selftests/liveupdate) are the emulator's judges, from both
// series and as they are.
var (
	series    = []string{"7.2", "7.3"}
	selftests = []string{"liveupdate", "luo_kexec_simple", "luo_multi_session", "luo_stress_sessions", "luo_stress_files"}
)

// twoStages does by luosim what the selftests' do_kexec.sh does by kexec-tools. Stage 1 leaves a daemon with the
// sessions behind. 7.3 knows the option only as -s.
const twoStages = `
if test "$LUOSIM_BOOT" = 1; then
	"$1" -s 1 && exec "$0" kexec
else
	exec "$1" -s 2
fi`

// A verdict is that of one selftest.
type verdict struct {
	version, test           string
	pass                    bool
	passed, failed, skipped int
	took                    time.Duration
}

var totals = regexp.MustCompile(`(?m)^# Totals: pass:(\d+) fail:(\d+) xfail:(\d+) xpass:(\d+) skip:(\d+) error:(\d+)$`)

func TestKernelSelftests(t *testing.T) {
	var verdicts []verdict
	for _, s := range series {
		version, binaries := build(t, s)
		for _, test := range selftests {
			t.Run(version+"/"+test, func(t *testing.T) {
				verdicts = append(verdicts, judge(t, version, test, filepath.Join(binaries, test)))
			})
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-20s %-20s %-7s %6s %6s %7s %7s\n", "kernel source", "selftest", "verdict", "passed", "failed", "skipped", "seconds")
	for _, v := range verdicts {
		word := "FAIL"
		if v.pass {
			word = "pass"
		}
		fmt.Fprintf(&table, "%-20s %-20s %-7s %6d %6d %7d %7.2f\n", v.version, v.test, word, v.passed, v.failed, v.skipped, v.took.Seconds())
	}
	fmt.Print("\n", &table, "\n")
	if want := len(series) * len(selftests); len(verdicts) != want {
		t.Errorf("%d of %d selftests ran to their end", len(verdicts), want)
	}
}

func judge(t *testing.T, version, test, binary string) verdict {
	command := []string{binary}
	if test != "liveupdate" {
		command = []string{"sh", "-c", twoStages, luosim, binary}
	}
	e := emulate(t, nil, command...)
	start := time.Now()
	status := e.status()
	v := verdict{version: version, test: test, took: time.Since(start)}
	if m := totals.FindStringSubmatch(e.stdout.String()); m != nil {
		count := func(i int) int { n, _ := strconv.Atoi(m[i]); return n }
		v.passed, v.failed, v.skipped = count(1), count(2)+count(3)+count(4)+count(6), count(5)
	} else if strings.Contains(e.stdout.String(), "TEST PASSED") {
		v.passed = 1
	} else {
		v.failed = 1
	}
	v.pass = status == 0 && v.passed > 0 && v.failed == 0 && v.skipped == 0
	if !v.pass {
		t.Errorf("status %d, passed %d, failed %d, skipped %d\nstdout: %s\nstderr: %s", status, v.passed, v.failed, v.skipped, &e.stdout, &e.stderr)
	}
	return v
}

// build makes the selftests of a series by their own Makefile, against the headers of the same source.
func build(t *testing.T, series string) (version, binaries string) {
	ctx := t.Context()
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := debian.Need(ctx, c, append(kernel.Tools, debian.Tool{Name: "/usr/include/stdlib.h", Package: "libc6-dev"})...); err != nil {
		t.Fatal(err)
	}
	source, tree, err := kernel.Source(ctx, c, series)
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := exec.CommandContext(ctx, "gcc", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	compiler, _, _ = bytes.Cut(compiler, []byte("\n"))
	entry := fmt.Sprintf("selftests/%s-%s", source.Version, cache.Key(string(compiler)))
	binaries, err = c.Entry(ctx, entry, func(dir string, log *cache.Log) error {
		// hfvm builds kernels in this tree too.
		unlock, err := c.Lock(ctx, "src/"+source.Version)
		if err != nil {
			return err
		}
		defer unlock()
		return log.Step(ctx, "building the selftests of kernel "+source.Version, func() error {
			if err := log.Command(ctx, "make", "-C", tree, "headers").Run(); err != nil {
				return err
			}
			// Static, so that they run wherever luosim does.
			return log.Command(ctx, "make", "-C", filepath.Join(tree, "tools/testing/selftests/liveupdate"),
				"OUTPUT="+dir, "LDFLAGS=-static").Run()
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return source.Version, binaries
}
