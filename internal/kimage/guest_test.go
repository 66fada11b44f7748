// SPDX-License-Identifier: MIT

package kimage

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

// without hides a directory.
type without struct {
	fs.FS
	dir string
}

func (w without) Open(name string) (fs.File, error) {
	if strings.HasPrefix(name, w.dir) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return w.FS.Open(name)
}

// TestTheRunningKernel compares what a running kernel tells with what its image does, as root in a virtual machine with the
// image in /boot and debugfs mounted.
func TestTheRunningKernel(t *testing.T) {
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("needs a kernel with live update and its image: run test/vm")
	}
	byImage, err := Running(context.Background(), os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v from %s", byImage.Release, byImage.Formats, byImage.FormatsFrom)
	if !byImage.Complete {
		t.Error("the image wasn't taken for the running kernel's")
	}
	byItself, err := Running(context.Background(), without{os.DirFS("/"), "boot/"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v from %s", byItself.Release, byItself.Formats, byItself.FormatsFrom)
	for _, name := range []string{KHO, LUO} {
		if got, want := byItself.formats(name), byImage.formats(name); len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("%s: debugfs has %q, the image %q", name, got, want)
		}
	}
	for _, k := range []*Kernel{byImage, byItself} {
		for _, option := range []string{KexecFile, KexecHandover, LiveUpdate, LiveUpdateMemfd} {
			if answer, from := k.Option(option); answer != Yes {
				t.Errorf("%s is %v, from %q", option, answer, from)
			}
		}
	}
	for _, d := range Compare(byItself, byImage) {
		if d.Certain {
			t.Error(d)
		}
	}
}
