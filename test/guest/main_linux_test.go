// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/luosim"

	// What holdfastd is made of: "go test" must not take an earlier result for today's when that has changed.
	_ "github.com/holdfast-project/holdfast/internal/journal"
	_ "github.com/holdfast-project/holdfast/internal/orchestrator"
	_ "github.com/holdfast-project/holdfast/internal/systemd"
)

// How this program is told to be something else than the tests' parent.
const (
	connectVariable = "GUEST_TEST_CONNECT" // a client, see [startClient]
	dirVariable     = "GUEST_TEST_DIR"     // the tests, with a holdfastd in that directory
)

// daemonSource has the rest of it.
const daemonSource = "../../cmd/holdfastd"

// TestMain runs the tests under luosim, with a holdfastd that was built for them; or on a real kernel, if $HOLDFAST_VM
// says that it is there, with the one that is installed.
func TestMain(m *testing.M) {
	if path := os.Getenv(connectVariable); path != "" {
		if err := lendConnection(path); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		return
	}
	dir := os.Getenv(dirVariable)
	if !inVM && dir == "" {
		status, err := runWithDaemon()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
		os.Exit(status)
	}
	var err error
	if inVM {
		here, err = machine()
	} else {
		luosim.Enter(luosim.Machine{})
		here, err = emulated(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fdtest.Main(m)
}

// runWithDaemon runs this program again, with a holdfastd that is gone afterwards, and returns its status.
func runWithDaemon() (int, error) {
	dir, err := os.MkdirTemp("", "holdfast-guest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // other users come to the socket there
		return 0, err
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir, daemonSource)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	tests := exec.Command(self, os.Args[1:]...)
	tests.Env = append(os.Environ(), dirVariable+"="+dir)
	tests.Stdin, tests.Stdout, tests.Stderr = os.Stdin, os.Stdout, os.Stderr
	// This is the main thread, which doesn't end before the process does: see package trace.
	tests.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A terminal tells the tests too, and this ends when they do.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	err = tests.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}
