// SPDX-License-Identifier: MIT

package guest

import "testing"

func TestKernelsAlternate(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 2, 3: 1, 4: 2} {
		if got := KernelOf(n, 2); got != want {
			t.Errorf("boot %d of two kernels: %d, want %d", n, got, want)
		}
		if got := KernelOf(n, 1); got != 1 {
			t.Errorf("boot %d of one kernel: %d", n, got)
		}
	}
}

func TestTheCommandLineCountsBoots(t *testing.T) {
	if n := BootOf("console=ttyS0 kho=on"); n != 1 {
		t.Errorf("no word for it: boot %d, want 1", n)
	}
	line := `hfvm.boot=1 kho=on x="a  b"`
	for want := 2; want < 5; want++ {
		line = NextCmdline(line, want)
		if n := BootOf(line); n != want {
			t.Fatalf("%q: boot %d, want %d", line, n, want)
		}
	}
	if want := `hfvm.boot=4 kho=on x="a  b"`; line != want {
		t.Errorf("got %q, want %q", line, want)
	}
}
