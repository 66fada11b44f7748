// SPDX-License-Identifier: MIT

//go:build vm

package vm

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
)

// A session that can't be frozen has reboot(KEXEC) fail. With memfds alone that can't be brought about from outside of the kernel:
// memfd_luo_freeze() (mm/memfd_luo.c, Linux 7.2.13) returns 0, and room for what is written then was made before
// (kho_block_set_grow(), kernel/liveupdate/luo_file.c). So the kernel's image is changed a little.
func TestFreezeFails(t *testing.T) {
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	image, err := kernel.Image(t.Context(), c, "7.2")
	if err != nil {
		t.Fatal(err)
	}
	guest(t, "freeze.sh", "--os", "none", "--kernel", failingFreeze(t, image, filepath.Join(t.TempDir(), "freeze")), "--next-kernel", "7.3", "--timeout", "600")
}

// memfdFreeze is the end of memfd_luo_freeze() as gcc makes it, from
//
//	ser->pos = args->file->f_pos;	mov %rcx,(%rdx,%rax,1)
//	return 0;			xor %eax,%eax; ret
//
// to the warning that there is no ser, and its -EINVAL. In place of the second line and all behind it, frozen has
//
//	return -(args->file->f_pos >> 32);	shr $32,%rcx; mov %ecx,%eax; neg %eax; ret
const (
	memfdFreeze = "\x48\x89\x0c\x02\x31\xc0\xc3\x0f\x0b\xb8\xea\xff\xff\xff\xc3"
	frozen      = "\x48\x89\x0c\x02\x48\xc1\xe9\x20\x89\xc8\xf7\xd8\xc3\x90\x90"
)

// failingFreeze writes a bzImage of which the upper half of a memfd's position is the errno that freezing it fails with, 0
// being none. Its kernel is unpacked, changed and packed again. The place that it is packed into is as large as before, and what isn't
// needed of it is a frame that decompressors skip.
func failingFreeze(t *testing.T, image, name string) string {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	// Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length. Behind the payload is its unpacked size.
	payload := b[(int(b[0x1f1])+1)*512+int(binary.LittleEndian.Uint32(b[0x248:])):][:binary.LittleEndian.Uint32(b[0x24c:])-4]
	plain := zstd(t, payload, "-dc")
	if n := bytes.Count(plain, []byte(memfdFreeze)); n != 1 {
		t.Fatalf("%s: memfd_luo_freeze() is there %d times: what has the compiler made of it?", image, n)
	}
	plain = bytes.Replace(plain, []byte(memfdFreeze), []byte(frozen), 1)
	// So that it doesn't grow, some messages are left out that a guest never sees.
	for _, message := range []string{
		"Disabling liveupdate because KHO is disabled",
		"Failed to reserve scratch area, disabling kexec handover",
		"failed exposing handover FDT in debugfs",
		"The swapaccount=0 commandline option is deprecated in favor of configuring swap control via cgroupfs. Please report your usecase",
		"A link change request failed with some changes committed already. Interface %s may have been left with an inconsistent configuration, please check.",
		"Warning: mounting with data=journal disables delayed allocation, dioread_nolock, O_DIRECT and fast_commit support!",
		"ConnectX-4: FW %u.%u.%u doesn't support INTx masking, disabling. Please upgrade FW to %d.14.1100 and up for INTx support",
	} {
		plain = bytes.ReplaceAll(plain, []byte(message), make([]byte, len(message)))
	}
	packed := zstd(t, plain, "-22", "--ultra", "-c")
	const skippable, header = 0x184d2a50, 8
	rest := len(payload) - len(packed)
	if rest < header {
		t.Fatalf("%s: changed it takes %d bytes, and there is room for %d", image, len(packed), len(payload)-header)
	}
	clear(payload[copy(payload, packed):])
	binary.LittleEndian.PutUint32(payload[len(packed):], skippable)
	binary.LittleEndian.PutUint32(payload[len(packed)+4:], uint32(rest-header))
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func zstd(t *testing.T, in []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("zstd", append([]string{"-q"}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zstd: %v", err)
	}
	return out
}
