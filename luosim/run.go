// SPDX-License-Identifier: MIT

package luosim

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// variable names the test that runs under luosim because of Run.
const variable = "LUOSIM_TEST"

// Run runs the calling test again under luosim, where each of the functions is one boot: all of it that is kept
// in memory is lost between them, but for what sessions hold. A boot whose function fails or skips is the last.
// Arguments and environment of the test binary are the same, and so is its working directory.
//
// What is outside of Run in a test function runs in the test binary and in each boot.
func Run(t *testing.T, m Machine, boots ...func(t *testing.T)) {
	t.Helper()
	if os.Getenv(variable) == t.Name() {
		boot := Boot()
		if boot < 1 || boot > len(boots) {
			t.Fatalf("luosim: boot %d of a test with %d", boot, len(boots))
		}
		boots[boot-1](t)
		if boot < len(boots) && !t.Failed() && !t.Skipped() {
			t.Fatal(Kexec())
		}
		return
	}
	if Boot() > 0 {
		t.Fatal("luosim: this test starts a machine, and runs on one already: luosim doesn't nest")
	}
	cmd := exec.Command(os.Args[0], testArguments(os.Args[1:], t.Name())...)
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	err := m.Run(t.Context(), cmd)
	if err != nil {
		t.Errorf("under luosim: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("under luosim:\n%s", out)
	}
}

// testArguments are those of this run, for one test alone, and without what files it writes.
func testArguments(args []string, name string) []string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
	}
	out := []string{"-test.run=" + strings.Join(parts, "/"), "-test.count=1", "-test.parallel=1"}
	for _, a := range args {
		switch name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "="); name {
		case "test.v", "test.short", "test.timeout":
			out = append(out, a)
		}
	}
	return out
}
