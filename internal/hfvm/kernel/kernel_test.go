// SPDX-License-Identifier: MIT

package kernel

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"7.2": true, "7.10": true, "7.2-noluo": true, "./7.2": false, "bzImage": false, "7": false, "7.2.13": false, "7.2-x": false,
	} {
		if got := IsSeries(name); got != want {
			t.Errorf("IsSeries(%q) = %v", name, got)
		}
	}
}

func TestTheNearestNewerSeriesIsTaken(t *testing.T) {
	have := []debian.Source{
		{Package: "linux-source-7.10", Version: "7.10.1-1"}, {Package: "linux-source-6.12", Version: "6.12.9-1"},
		{Package: "linux-source-7.3", Version: "7.3.4-1"}, {Package: "linux-source-7.9", Version: "7.9.2-1"},
	}
	for series, want := range map[string]string{"7.3": "7.3.4-1", "7.2": "7.3.4-1", "7.4": "7.9.2-1", "7.10": "7.10.1-1"} {
		got, err := nearest(have, series)
		if err != nil || got.Version != want {
			t.Errorf("%s: got %v, %v, want %s", series, got, err, want)
		}
	}
	if got, err := nearest(have, "7.11"); err == nil {
		t.Errorf("7.11: got %v, want an error", got)
	}
}

func TestTheFragmentIsChecked(t *testing.T) {
	const fragment = "# comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=0\nCONFIG_D=y\n"
	if got := lost(fragment, strings.NewReader("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=0\nCONFIG_D=y\n")); got != nil {
		t.Errorf("lost %v, want none", got)
	}
	got := lost(fragment, strings.NewReader("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=8\n"))
	if want := []string{"CONFIG_B=n", "CONFIG_C=0", "CONFIG_D=y"}; !slices.Equal(got, want) {
		t.Errorf("lost %v, want %v", got, want)
	}
}

func TestNoLUO(t *testing.T) {
	without := dropLUO(fragment)
	for _, option := range []string{"CONFIG_LIVEUPDATE=y", "CONFIG_LIVEUPDATE_MEMFD=y", "CONFIG_KEXEC_HANDOVER=y"} {
		if !strings.Contains(fragment, option+"\n") || strings.Contains(without, option) {
			t.Errorf("%s: it belongs into the fragment, and not into that of a noluo kernel", option)
		}
	}
	if !strings.Contains(without, "CONFIG_KEXEC_FILE=y\n") {
		t.Error("a noluo kernel can't kexec")
	}
}

func TestGoneOptions(t *testing.T) {
	tree := t.TempDir()
	if err := os.MkdirAll(filepath.Join(tree, "fs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "fs/Kconfig"), []byte("menuconfig A\n\tbool\nconfig B\n\tbool\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := gone(tree, []string{"CONFIG_A=y", "CONFIG_B=y", "CONFIG_C=y"})
	if err != nil || !slices.Equal(got, []string{"CONFIG_C=y"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestACachedKernelNeedsNothing runs with no PATH, so neither apt nor make can be called.
func TestACachedKernelNeedsNothing(t *testing.T) {
	t.Setenv("PATH", "")
	c := &cache.Cache{Dir: t.TempDir(), Tell: os.Stderr}
	want := filepath.Join(c.Dir, "kernels/7.2.13-1-"+cache.Key(schema, fragment), "bzImage")
	for path, content := range map[string]string{
		filepath.Join(c.Dir, "series/7.2/source"): "linux-source-7.2 7.2.13-1\n", want: "image",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Image(context.Background(), c, "7.2")
	if err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
