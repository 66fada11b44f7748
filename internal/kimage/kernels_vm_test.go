// SPDX-License-Identifier: MIT

//go:build vm

package kimage

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-project/holdfast/internal/decompress"
	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/kernel"
)

// TestRealKernels reads the images of the tests' kernels, and compares with what they were built with.
func TestRealKernels(t *testing.T) {
	c, err := cache.Open(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	kernels := map[string]*Image{}
	for _, name := range []string{"7.2", "7.3", "7.2-noluo", "7.3-kho", "7.3-nomemfd", "7.3-nextluo", "7.3-nextmemfd", "7.3-gzip", "7.3-xz", "7.3-lz4"} {
		file, err := kernel.Image(t.Context(), c, name)
		if err != nil {
			t.Fatal(err)
		}
		i, err := readPath(t.Context(), file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s: %s, %s, %s, %v", name, i.Kind, i.Compression, i.Banner, i.Formats)
		kernels[name] = i

		built, _, err := FindConfig(os.DirFS(filepath.Dir(file)), "", "config")
		if err != nil || built == nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, option := range []string{KexecHandover, LiveUpdate, LiveUpdateMemfd} {
			if answer, _ := i.Option(option); (answer == Yes) != (built[option] == "y") {
				t.Errorf("%s: %s is %v by the image, %q in the configuration", name, option, answer, built[option])
			}
		}
		if err := i.Setup.KexecFile(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"7.2", "7.3"} {
		for _, f := range []Format{{KHO, "kho-v4"}, {LUO, "luo-v5"}, {Memfd, "memfd-v2"}} {
			if !slices.Contains(kernels[name].Formats, f) {
				t.Errorf("%s: no %s", name, f.Compatible)
			}
		}
	}
	if d := Compare(&kernels["7.2"].Kernel, &kernels["7.3"].Kernel); len(d) > 0 {
		t.Errorf("7.2 to 7.3: %v", d)
	}
	for name, want := range map[string]decompress.Method{"7.3-gzip": decompress.Gzip, "7.3-xz": decompress.XZ, "7.3-lz4": decompress.LZ4, "7.3": decompress.Zstd} {
		if i := kernels[name]; i.Compression != want || len(Compare(&kernels["7.2"].Kernel, &i.Kernel)) > 0 {
			t.Errorf("%s is packed with %q, and differs from 7.2 in %v", name, i.Compression, Compare(&kernels["7.2"].Kernel, &i.Kernel))
		}
	}
	for name, format := range map[string]string{"7.3-nextluo": LUO, "7.3-nextmemfd": Memfd, "7.3-nomemfd": Memfd} {
		if d := Compare(&kernels["7.2"].Kernel, &kernels[name].Kernel); len(d) != 1 || !d[0].Certain || d[0].Name != format {
			t.Errorf("7.2 to %s: %v", name, d)
		}
	}
	if d := Compare(&kernels["7.2"].Kernel, &kernels["7.3-kho"].Kernel); len(d) < 2 || d[0].Name != LUO {
		t.Errorf("7.2 to a kernel with KHO alone: %v", d)
	}
	if d := Compare(&kernels["7.2"].Kernel, &kernels["7.2-noluo"].Kernel); len(d) < 3 || !d[0].Certain || d[0].Name != KHO || d[1].Name != LUO {
		t.Errorf("7.2 to a kernel without live update: %v", d)
	}
}

func readPath(ctx context.Context, path string) (*Image, error) {
	return readFile(ctx, os.DirFS(filepath.Dir(path)), filepath.Base(path))
}
