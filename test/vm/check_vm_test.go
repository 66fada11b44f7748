// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"bufio"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
	"github.com/holdfast-project/holdfast/internal/hfvm/rootfs"
	"github.com/holdfast-project/holdfast/internal/kimage/kimagetest"
)

// nextKernels are those that a machine has in /good and /bad.
var nextKernels = map[string]string{
	"7.2-noluo": "/bad/noluo", "7.3-kho": "/bad/kho", "7.3-nomemfd": "/bad/nomemfd", "7.3-nextluo": "/bad/nextluo", "7.3-nextmemfd": "/bad/nextmemfd",
	"7.3-gzip": "/good/gzip", "7.3-xz": "/good/xz", "7.3-lz4": "/good/lz4",
}

// variants are the arguments by which hfvm builds them: those of one series one after the other, as they share their objects.
func variants() (args []string) {
	for _, name := range slices.Sorted(maps.Keys(nextKernels)) {
		args = append(args, "--kernel", name)
	}
	return args
}

// machine are the arguments for a machine with next kernels.
func machine(t *testing.T) []string {
	t.Helper()
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	// All files of a guest without an operating system are in its memory.
	args := []string{"--os", "none", "--next-kernel", "7.3", "--memory", "2048", "--timeout", "600"}
	for name, where := range nextKernels {
		file, err := kernel.Image(t.Context(), c, name)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--add", file+":"+where)
	}
	this, err := kernel.Image(t.Context(), c, "7.2")
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "--add", filepath.Join(filepath.Dir(this), "config")+":/config-7.2")
	file, err := kernel.Image(t.Context(), c, "7.3")
	if err != nil {
		t.Fatal(err)
	}
	return append(args, "--add", unified(t, ".linux", file)+":/good/7.3.efi")
}

// What holdfast check says of next kernels, and what happens after a kexec to them.
func TestCheckKernels(t *testing.T) {
	guest(t, "kernels.sh", machine(t)...)
}

// The kernels that end the machine: what holdfast check calls damaged doesn't start, and one with another version of LUO doesn't just take
// nothing over, it panics.
func TestCheckKernelsThatDoNotStart(t *testing.T) {
	for _, last := range []struct{ what, kernel, wants string }{
		{"another version", "/bad/nextluo", "Kernel panic - not syncing: The incoming tree failed to initialize"},
		// The code that unpacks the kernel is behind it, and missing too: the processor is reset.
		{"truncated", "/tmp/cut", "on the way to the next: the machine stopped with no verdict"},
		// It is unpacked up to the damage, and then the processor is halted ("System halted", arch/x86/boot/compressed/error.c), where nobody
		// sees it without CONFIG_EARLY_PRINTK.
		{"corrupt", "/tmp/corrupt", "loaded /tmp/corrupt"},
	} {
		t.Run(last.what, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"run", "--add", tree + ":/", "--env", "LAST=" + last.kernel}, machine(t)...)
			cmd := exec.CommandContext(t.Context(), "../../bin/hfvm", append(args, "kernels.sh")...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for lines := bufio.NewScanner(out); lines.Scan(); {
				all.WriteString(lines.Text() + "\n")
				if strings.HasPrefix(lines.Text(), "loaded ") {
					// A kernel that starts takes a few seconds, and one that has halted for ever.
					halted := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Signal(os.Interrupt) })
					defer halted.Stop()
				}
			}
			if err := cmd.Wait(); err == nil || !strings.Contains(all.String(), last.wants) || strings.Contains(all.String(), "hfvm: boot 2") {
				t.Errorf("%v, and it should end with %q at boot 1:\n%s", err, last.wants, all.String())
			}
		})
	}
}

// What holdfast check says of sessions and units, and what comes of them.
func TestCheckSessions(t *testing.T) {
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	linux, err := kernel.Image(t.Context(), c, "7.3")
	if err != nil {
		t.Fatal(err)
	}
	trixie, err := rootfs.Open(t.Context(), c, "trixie", nil, true)
	if err != nil {
		t.Fatal(err)
	}
	guest(t, "check.sh", "--next-kernel", "7.3", "--timeout", "600", "--add", unified(t, ".linux", linux, ".initrd", trixie.Initrd)+":/bad/257.efi")
}

// unified makes a UKI of sections and the files that are their contents.
func unified(t *testing.T, parts ...string) string {
	t.Helper()
	for i := 1; i < len(parts); i += 2 {
		content, err := os.ReadFile(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		parts[i] = string(content)
	}
	uki := filepath.Join(t.TempDir(), "uki")
	if err := os.WriteFile(uki, kimagetest.UKI(parts...), 0o644); err != nil {
		t.Fatal(err)
	}
	return uki
}
