// SPDX-License-Identifier: MIT

package name

import (
	"strings"
	"testing"
)

func TestVectors(t *testing.T) {
	if got := Kernel("/vmm.service", "ram"); got != "h1-ok2ohkddat64npei.ram" {
		t.Errorf("Kernel: %s", got)
	}
	if got := Digest("qemu/vm1"); got != "64uquh73osmtlhp5" {
		t.Errorf("Digest: %s", got)
	}
	if got := Token("ram"); got != 11975621476549492130 {
		t.Errorf("Token: %d", got)
	}
	if Max != 43 || LinkMax != 18 {
		t.Errorf("Max %d, LinkMax %d", Max, LinkMax)
	}
}

func TestCheck(t *testing.T) {
	for _, good := range []string{"a", "0", "ram", "A.b_c@d-e", strings.Repeat("x", 43)} {
		if err := Check(good, Max); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, reason := range map[string]string{
		"":                      "it is empty",
		strings.Repeat("x", 44): "it has 44 bytes, the longest here is 43",
		"../x":                  "it must start with a letter or a digit",
		"-x":                    "it must start with a letter or a digit",
		"a/b":                   "byte 1 is none of A-Z a-z 0-9 _ . @ -",
		"a\x00":                 "byte 1 is none of A-Z a-z 0-9 _ . @ -",
		"bär":                   "byte 1 is none of A-Z a-z 0-9 _ . @ -",
		"ä":                     "it must start with a letter or a digit",
	} {
		err, ok := Check(bad, Max).(*InvalidError)
		if !ok || err.Reason != reason {
			t.Errorf("%q: %v, want %q", bad, err, reason)
		}
	}
	if err := Check(strings.Repeat("x", 19), LinkMax); err == nil {
		t.Error("19 bytes accepted where the kernel has no GET_NAME")
	}
}

func TestParse(t *testing.T) {
	k := Kernel("/vmm.service", strings.Repeat("n", Max))
	if len(k) != KernelMax {
		t.Errorf("the longest kernel name has %d bytes", len(k))
	}
	digest, name, ok := Parse(k)
	if !ok || digest != Digest("/vmm.service") || name != strings.Repeat("n", Max) {
		t.Errorf("Parse(%q) = %q, %q, %v", k, digest, name, ok)
	}
	for _, foreign := range []string{
		"", "h1-", "systemd", "h1-ok2ohkddat64npei", "h1-ok2ohkddat64npei.", "h1-ok2ohkddat64npei.-x",
		"h1-OK2OHKDDAT64NPEI.ram", "h1-ok2ohkddat64npe1.ram", "h2-ok2ohkddat64npei.ram", "h1-ok2ohkddat64npei/ram",
		"h1-ok2ohkddat64npei." + strings.Repeat("n", Max+1),
	} {
		if _, _, ok := Parse(foreign); ok {
			t.Errorf("Parse(%q) takes it for one of ours", foreign)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("h1-ok2ohkddat64npei.ram")
	f.Fuzz(func(t *testing.T, kernel string) {
		if digest, name, ok := Parse(kernel); ok && "h1-"+digest+"."+name != kernel {
			t.Errorf("Parse(%q) = %q, %q", kernel, digest, name)
		}
	})
}
