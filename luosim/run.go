// SPDX-License-Identifier: MIT

package luosim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// What a test is told that runs under luosim because of Run: which call of which test, and a file to leave the number of each boot in
// whose function has returned.
const (
	nameVariable = "LUOSIM_TEST"
	fileVariable = "LUOSIM_TEST_BOOTS"
)

// Run runs the calling test again under luosim, where each of the functions is one boot: all of it that is kept
// in memory is lost between them, but for what sessions hold. A boot whose function fails or skips is the last.
// Arguments and environment of the test binary are the same, and so is its working directory.
//
// What is outside of Run in a test function runs in the test binary and in each boot; other calls of Run return at once
// there.
func Run(t *testing.T, m Machine, boots ...func(t *testing.T)) {
	t.Helper()
	call := nextCall(t)
	if under := os.Getenv(nameVariable); under == call {
		runBoot(t, boots)
		return
	} else if under != "" {
		return // this machine is another call's
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
	cmd.Env = append(os.Environ(), nameVariable+"="+call, fileVariable+"="+reached)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	err = m.Run(t.Context(), cmd)
	last, _ := os.ReadFile(reached)
	switch {
	case err != nil:
		t.Errorf("under luosim: %v\n%s", err, out)
	case string(last) == skipped:
		t.Skipf("under luosim:\n%s", out)
	case string(last) != strconv.Itoa(len(boots)):
		t.Errorf("under luosim: boot %d was not reached, the last one is %q\n%s", len(boots), last, out)
	case testing.Verbose():
		t.Logf("under luosim:\n%s", out)
	}
}

// calls counts the calls of Run in each test that is running.
var calls struct {
	sync.Mutex
	of map[string]int
}

func nextCall(t *testing.T) string {
	calls.Lock()
	defer calls.Unlock()
	if calls.of == nil {
		calls.of = map[string]int{}
	}
	if calls.of[t.Name()] == 0 {
		t.Cleanup(func() { // with -count it runs again
			calls.Lock()
			defer calls.Unlock()
			delete(calls.of, t.Name())
		})
	}
	calls.of[t.Name()]++
	return fmt.Sprintf("%s#%d", t.Name(), calls.of[t.Name()])
}

// skipped is left in the file instead of a number by a boot that was skipped.
const skipped = "skipped"

func runBoot(t *testing.T, boots []func(t *testing.T)) {
	t.Helper()
	boot := Boot()
	if boot < 1 || boot > len(boots) {
		t.Fatalf("luosim: boot %d of a test with %d", boot, len(boots))
	}
	leave := func(word string) {
		if err := os.WriteFile(os.Getenv(fileVariable), []byte(word), 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		if t.Skipped() {
			leave(skipped)
		}
	})
	boots[boot-1](t)
	leave(strconv.Itoa(boot))
	if boot < len(boots) && !t.Failed() {
		t.Fatal(Kexec())
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
