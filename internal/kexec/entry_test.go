// SPDX-License-Identifier: MIT

package kexec

import (
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: 0o644} }

const debian = `# made by kernel-install
title      Debian GNU/Linux forky/sid
version    7.3.4
machine-id 0123456789abcdef
options    root=UUID=1234 ro
options    kho=on liveupdate=on
linux      /0123/7.3.4/linux
initrd     /0123/microcode
initrd     /0123/7.3.4/initrd.img
`

func TestEntries(t *testing.T) {
	root := fstest.MapFS{
		"boot/loader/entries/0123-7.3.4+3-1.conf": file(debian),
		"boot/0123/7.3.4/linux":                   file("kernel"),
		"boot/loader/entries/fedora.conf":         file("linux /boot/vmlinuz-7.2\noptions root=/dev/vda\n"),
		"boot/vmlinuz-7.2":                        file("kernel"),
		"boot/loader/entries/notes.txt":           file("not an entry"),
		"efi/loader/entries/fedora.conf":          file("linux /other\n"),
		"efi/EFI/Linux/arch-7.3+2.efi":            file("MZ"),
		"boot/efi/loader/entries/uki.conf":        file("title Unified\nuki /EFI/Linux/x.efi\n"),
		"boot/efi/EFI/Linux/x.efi":                file("MZ"),
		"boot/loader/entries/grub.conf":           file("linux /vmlinuz\ninitrd /ucode.img /initrd.img\noptions ro memmap=64K$0x18690000\n"),
		"boot/loader/entries/blank.conf":          file("linux /vmlinuz\ninitrd /my initrd\n"),
		"boot/my initrd":                          file("initrd"),
		"boot/loader/entries/stub.conf":           file("efi /vmlinuz\ninitrd /initrd.img\noptions root=/dev/other\n"),
	}
	for id, want := range map[string]*Entry{
		"0123-7.3.4": {ID: "0123-7.3.4", Title: "Debian GNU/Linux forky/sid", Version: "7.3.4", Linux: "boot/0123/7.3.4/linux",
			Initrd: []string{"boot/0123/microcode", "boot/0123/7.3.4/initrd.img"}, Options: "root=UUID=1234 ro kho=on liveupdate=on"},
		// Where /boot is no partition, paths begin at the root directory. Of the same ID in two places the first counts.
		"fedora.conf": {ID: "fedora", Linux: "boot/vmlinuz-7.2", Options: "root=/dev/vda"},
		// As GRUB has it.
		"grub":  {ID: "grub", Linux: "boot/vmlinuz", Initrd: []string{"boot/ucode.img", "boot/initrd.img"}, Options: "ro memmap=64K$0x18690000"},
		"blank": {ID: "blank", Linux: "boot/vmlinuz", Initrd: []string{"boot/my initrd"}},
		// A kernel with an EFI stub.
		"stub":         {ID: "stub", Linux: "boot/vmlinuz", Initrd: []string{"boot/initrd.img"}, Options: "root=/dev/other"},
		"arch-7.3":     {ID: "arch-7.3.efi", Linux: "efi/EFI/Linux/arch-7.3+2.efi"},
		"arch-7.3.efi": {ID: "arch-7.3.efi", Linux: "efi/EFI/Linux/arch-7.3+2.efi"},
		"uki":          {ID: "uki", Title: "Unified", Linux: "boot/efi/EFI/Linux/x.efi"},
		"x.efi":        {ID: "x.efi", Linux: "boot/efi/EFI/Linux/x.efi"},
	} {
		got, err := FindEntry(root, id)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", id, got, err, want)
		}
	}
	if _, err := FindEntry(root, "nonsense"); err == nil || !strings.Contains(err.Error(), "there are: 0123-7.3.4, arch-7.3.efi, blank, fedora, grub, stub, uki, x.efi") {
		t.Error(err)
	}
	if _, err := FindEntry(fstest.MapFS{}, "nonsense"); err == nil || !strings.Contains(err.Error(), "no boot entries") {
		t.Error(err)
	}
}

func TestBrokenEntries(t *testing.T) {
	for text, want := range map[string]string{
		"":                                        `no line "linux"`,
		"title x":                                 `no line "linux"`,
		"linux /x\noptions $kernelopts":           "$kernelopts, which only GRUB knows",
		"linux /x\ninitrd /a $tuned_initrd":       "$tuned_initrd, which only GRUB knows",
		"linux /x\noptions root=$rootdev ro":      "$rootdev, which only GRUB knows",
		"linux /x\noptions ro quiet${x}":          "${x}, which only GRUB knows",
		"linux $root/x":                           "$root, which only GRUB knows",
		"uki /x\nprofile 2":                       "profile 2 of a unified image",
		"linux /" + strings.Repeat("x", entryMax): "more than 65536 bytes",
	} {
		root := fstest.MapFS{"boot/loader/entries/x.conf": file(text), "boot/loader/entries/good.conf": file("linux /y")}
		if _, err := FindEntry(root, "x"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "/boot/loader/entries/x.conf") {
			t.Errorf("%.40q: %v", text, err)
		}
		if e, err := FindEntry(root, "good"); err != nil || e.Linux != "boot/y" {
			t.Errorf("beside %.40q: %+v, %v", text, e, err)
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(debian))
	f.Add([]byte("linux ../../../etc/passwd\ninitrd /../x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		root := fstest.MapFS{"boot/loader/entries/x.conf": {Data: text, Mode: 0o644}}
		e, err := readEntry(root, "boot", "boot/loader/entries/x.conf")
		if err != nil {
			return
		}
		for _, name := range append([]string{e.Linux}, e.Initrd...) {
			if name != "boot" && !strings.HasPrefix(name, "boot/") {
				t.Errorf("%q leads to %q", text, name)
			}
		}
	})
}

func TestUncounted(t *testing.T) {
	for name, want := range map[string]string{"a.conf": "a", "a+3.conf": "a", "a+3-1.conf": "a", "a+b.conf": "a+b", "a+3-b.conf": "a+3-b", "a+.conf": "a+", "1+2+3.conf": "1+2"} {
		if got := uncounted(name, ".conf"); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
