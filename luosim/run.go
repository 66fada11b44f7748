// SPDX-License-Identifier: MIT

package luosim

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What a test is told that runs under luosim because of Run: its name, and a file to leave the number of each boot in
// whose function has returned.
const (
	nameVariable = "LUOSIM_TEST"
	fileVariable = "LUOSIM_TEST_BOOTS"
)

// Run runs the calling test again under luosim, where each of the functions is one boot: all of it that is kept
// in memory is lost between them, but for what sessions hold. A boot whose function fails or skips is the last.
// Arguments and environment of the test binary are the same, and so is its working directory.
//
// What is outside of Run in a test function runs in the test binary and in each boot.
func Run(t *testing.T, m Machine, boots ...func(t *testing.T)) {
	t.Helper()
	if os.Getenv(nameVariable) == t.Name() {
		boot := Boot()
		if boot < 1 || boot > len(boots) {
			t.Fatalf("luosim: boot %d of a test with %d", boot, len(boots))
		}
		boots[boot-1](t)
		if err := os.WriteFile(os.Getenv(fileVariable), []byte(strconv.Itoa(boot)), 0o600); err != nil {
			t.Fatal(err)
		}
		if boot < len(boots) && !t.Failed() && !t.Skipped() {
			t.Fatal(Kexec())
		}
		return
	}
	if Boot() > 0 {
		t.Fatal("luosim: this test starts a machine, and runs on one already: luosim doesn't nest")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	reached := filepath.Join(t.TempDir(), "boots")
	cmd := exec.Command(self, testArguments(os.Args[1:], t.Name())...)
	cmd.Env = append(os.Environ(), nameVariable+"="+t.Name(), fileVariable+"="+reached)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	err = m.Run(t.Context(), cmd)
	last, _ := os.ReadFile(reached)
	switch {
	case err != nil:
		t.Errorf("under luosim: %v\n%s", err, out)
	case string(last) != strconv.Itoa(len(boots)) && !strings.Contains(out.String(), "--- SKIP"):
		t.Errorf("under luosim: boot %d was not reached, the last one is %q\n%s", len(boots), last, out)
	case testing.Verbose():
		t.Logf("under luosim:\n%s", out)
	}
}

// testArguments are those of this run, for one test alone, and without what files it writes.
func testArguments(args []string, name string) []string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
	}
	out := []string{"-test.run=" + strings.Join(parts, "/"), "-test.count=1", "-test.parallel=1", "-test.v"}
	for _, a := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if name == "test.short" || name == "test.timeout" || !strings.HasPrefix(name, "test.") {
			out = append(out, a)
		}
	}
	return out
}
