// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
)

// Two machines of QEMU go on after each of two updates; save one that dies while the second is prepared.
func TestMachines(t *testing.T) {
	guest(t, "machines.sh", append(nested(t), "--next-kernel", "7.3", "--memory", "2048",
		"--add", "../../examples/vmm:/test/vmm", "--env", "FILL_MIB=16", "--timeout", "900")...)
}

// A machine of QEMU by the packaged unit, which knows nothing of updates.
func TestQEMU(t *testing.T) {
	guest(t, "qemu.sh", append(nested(t), "--next-kernel", "7.3", "--memory", "1280", "--timeout", "600")...)
}

// nested is what a guest needs to run examples/vmm's guest in a QEMU of its own: flags of hfvm run.
func nested(t *testing.T) []string {
	t.Helper()
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	image, err := kernel.Image(t.Context(), c, "7.2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	vmm, guestInit, initrd := filepath.Join(dir, "vmm"), filepath.Join(dir, "guest"), filepath.Join(dir, "initrd")
	for _, command := range [][]string{
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", vmm, "../../examples/vmm"},
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", guestInit, "../../examples/vmm/guest"},
		{"sh", "-c", `"$1" initrd "$2" >"$3"`, "sh", vmm, guestInit, initrd},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	return []string{"--package", "qemu-system-x86", "--add", vmm + ":/usr/bin/vmm",
		"--add", image + ":/var/lib/vmm/kernel", "--add", initrd + ":/var/lib/vmm/initrd"}
}
