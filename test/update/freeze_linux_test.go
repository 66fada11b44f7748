// SPDX-License-Identifier: MIT

package update

import (
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-project/holdfast/internal/systemd"
)

// The switch fails on a real kernel, which freezes no memfd that has its position too far out: everybody runs on, and is told.
// Then it succeeds.
func TestFrozenGuest(t *testing.T) {
	boot := os.Getenv("HFVM_BOOT")
	if booted, err := systemd.Booted(); boot == "" || booted || err != nil {
		t.Skip("it takes a virtual machine without an operating system: test/vm/freeze.sh")
	}
	h := newHost(t, three)
	if boot == "2" {
		for i, m := range three {
			h.participants[i].back(m)
		}
		return
	}
	args := []string{"update", "--yes", "/hfvm/kernel-next", "--initrd", "/hfvm/initrd", "--cmdline", nextCommandLine(t)}
	for range 2 {
		h.participants[1].manner("unfrozen")
		got := h.tool(args...)
		got.failed(t, 1, "the switch failed: reboot(KEXEC): input/output error; ", "dmesg")
		fmt.Print(got.stderr)
		h.runsOn("the switch failed")
	}
	h.start(args...)
	h.switches()
}
