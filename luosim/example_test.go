// SPDX-License-Identifier: MIT

package luosim_test

import (
	"context"
	"log"
	"os"
	"os/exec"
	"testing"

	"github.com/holdfast-project/holdfast/luosim"
)

// A test over one update: what the first function leaves in sessions, the second one finds.
func ExampleRun() {
	// As in: func TestGuestMemoryComesBack(t *testing.T) { … }
	_ = func(t *testing.T) {
		luosim.Run(t, luosim.Machine{},
			func(t *testing.T) {
				// Make a session, preserve a memfd in it, and leave both open.
			},
			func(t *testing.T) {
				// Retrieve the session, and the memfd from it, and look at its bytes.
			})
	}
}

// The program restarts itself for an update, and must cope with a device that is busy at first and memory that the
// second kernel can't restore.
func ExampleMachine_Run() {
	m := luosim.Machine{Faults: []string{"busy=2@1", "retrieve@2"}}
	cmd := exec.Command("./vmm", "--test-live-update")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := m.Run(context.Background(), cmd); err != nil {
		log.Fatal(err)
	}
}

// All tests of a package get a device.
func ExampleEnter() {
	// As in: func TestMain(m *testing.M) { … }
	_ = func(m *testing.M) {
		luosim.Enter(luosim.Machine{})
		m.Run()
	}
}
