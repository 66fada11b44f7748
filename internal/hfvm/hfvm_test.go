// SPDX-License-Identifier: MIT

package hfvm

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/hfvm/guest"
)

func valid(t *testing.T) Options {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{Kernel: "7.2", OS: "forky", Initrd: "none", Memory: 1024, Timeout: time.Minute, Script: script}
}

func TestCheck(t *testing.T) {
	o := valid(t)
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Options){
		"unknown system":             func(o *Options) { o.OS = "sarge" },
		"unknown initrd":             func(o *Options) { o.Initrd = "x" },
		"initrd without a system":    func(o *Options) { o.OS, o.Initrd = "none", "dracut" },
		"package without a system":   func(o *Options) { o.OS, o.Packages = "none", []string{"x"} },
		"option as a package":        func(o *Options) { o.Packages = []string{"--x"} },
		"no such kernel":             func(o *Options) { o.NextKernel = "/no/such" },
		"little memory":              func(o *Options) { o.Memory = 1 },
		"no time":                    func(o *Options) { o.Timeout = 0 },
		"env without a value":        func(o *Options) { o.Env = []string{"A"} },
		"forward of one port":        func(o *Options) { o.Forward = []string{"8080"} },
		"forward of an address":      func(o *Options) { o.Forward = []string{"127.0.0.1:80"} },
		"forward of no port":         func(o *Options) { o.Forward = []string{"0:80"} },
		"add without a destination":  func(o *Options) { o.Add = []string{plain} },
		"add to a relative path":     func(o *Options) { o.Add = []string{plain + ":x"} },
		"add of nothing":             func(o *Options) { o.Add = []string{"/no/such:/x"} },
		"no script":                  func(o *Options) { o.Script = "/no/such" },
		"script that can't be run":   func(o *Options) { o.Script = plain },
		"directory instead of a one": func(o *Options) { o.Script = t.TempDir() },
	} {
		o := valid(t)
		spoil(&o)
		if o.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheUsersWordsComeLast(t *testing.T) {
	for _, system := range []string{"none", "forky"} {
		line := (&Options{OS: system, Cmdline: "liveupdate=off x"}).cmdline()
		if !strings.HasSuffix(line, " liveupdate=off x") || !strings.Contains(line, " liveupdate=on ") {
			t.Errorf("%s: %q", system, line)
		}
		if onDisk := strings.Contains(line, "root=/dev/vda"); onDisk == (guest.BootOf(line) == 1 && strings.Contains(line, guest.BootWord)) {
			t.Errorf("%s: boots are counted by the disk or by the command line, not both or neither: %q", system, line)
		}
	}
}

func TestOneImageForEqualKernels(t *testing.T) {
	image := filepath.Join(t.TempDir(), "bzImage")
	other := filepath.Join(t.TempDir(), "bzImage")
	for _, p := range []string{image, other} {
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		next string
		want int
	}{{"", 1}, {image, 1}, {other, 2}} {
		got, err := (&Options{Kernel: image, NextKernel: c.next}).kernels(context.Background(), nil)
		if err != nil || len(got) != c.want {
			t.Errorf("next %q: %v, %v", c.next, got, err)
		}
	}
}

func TestWhy(t *testing.T) {
	boot := guest.Message{Kind: "boot", Boot: 2}
	for _, c := range []struct {
		last    guest.Message
		console string
		ended   error
		want    string
	}{
		{guest.Message{Kind: "fail", Boot: 3, Text: "no memory"}, "Kernel panic", nil, "at boot 3: no memory"},
		{boot, "x\n[1] Kernel panic - not syncing: y\nz", nil, "Kernel panic - not syncing: y"},
		{boot, "x", context.DeadlineExceeded, "at boot 2 or on the way to the next: no verdict within 1m0s"},
		{guest.Message{}, "x", context.DeadlineExceeded, "before the script ran"},
		{boot, "x", nil, "powered off"},
	} {
		if got := why(c.last, []byte(c.console), c.ended, time.Minute); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestASparseCopyIsEqualAndSparse(t *testing.T) {
	src, err := os.Create(filepath.Join(t.TempDir(), "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	const size = 64 << 20
	for _, at := range []int64{0, 10 << 20, size - 5} {
		if _, err := src.WriteAt([]byte("hello"), at); err != nil {
			t.Fatal(err)
		}
	}
	dst, err := os.Create(filepath.Join(t.TempDir(), "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := copySparse(dst, src.Name()); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(src.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(dst, 0, size+1))
	if err != nil || string(a) != string(b) {
		t.Errorf("the copy differs (%d bytes, %v)", len(b), err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(dst.Fd()), &stat); err != nil || stat.Blocks*512 > 1<<20 {
		t.Errorf("the copy of 3 blocks takes %d bytes (%v)", stat.Blocks*512, err)
	}
}
