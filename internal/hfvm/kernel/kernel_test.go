// SPDX-License-Identifier: MIT

package kernel

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"7.2": true, "7.10": true, "7.2-noluo": true, "7.10-nextluo": true, "7.2-": false, "7.2-noluo-xz": false, "./7.2": false, "bzImage": false, "7": false, "7.2.13": false, "7.2-x": false,
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

// TestVariants: what a variant says of an option comes in place of what the fragment says.
func TestVariants(t *testing.T) {
	for _, name := range Variants() {
		v := variants[name]
		options := map[string]string{}
		for _, line := range strings.Split(v.configure(fragment), "\n") {
			option, value, _ := strings.Cut(line, "=")
			if _, twice := options[option]; twice && strings.HasPrefix(line, "CONFIG_") {
				t.Errorf("%s: %s is there twice", name, option)
			}
			options[option] = value
		}
		for _, line := range v.options {
			if option, value, _ := strings.Cut(line, "="); options[option] != value {
				t.Errorf("%s: %s is %q, and should be %q", name, option, options[option], value)
			}
		}
		if options["CONFIG_KEXEC_FILE"] != "y" {
			t.Errorf("%s can't kexec", name)
		}
	}
	if (variant{}).configure(fragment) != fragment {
		t.Error("the series' own kernel differs from the fragment")
	}
	without := variants["noluo"].configure(fragment)
	for _, option := range []string{"CONFIG_LIVEUPDATE=y", "CONFIG_LIVEUPDATE_MEMFD=y", "CONFIG_KEXEC_HANDOVER=y"} {
		if !strings.Contains(fragment, option+"\n") || strings.Contains(without, option) {
			t.Errorf("%s: it belongs into the fragment, and not into that of a noluo kernel", option)
		}
	}
}

// TestHeadersOfVariants: one variant's header is not in the way of the next kernel that is built in the tree, and one that stays
// the same keeps its time, so that make has nothing to do for it.
func TestHeadersOfVariants(t *testing.T) {
	tree := t.TempDir()
	luo, memfd := filepath.Join(tree, variants["nextluo"].header), filepath.Join(tree, variants["nextmemfd"].header)
	if err := os.MkdirAll(filepath.Dir(luo), 0o755); err != nil {
		t.Fatal(err)
	}
	const luoText, memfdText = "/* luo-v5 */\n#define LUO \"luo-v5\"\n", "#define MEMFD \"memfd-v9\"\n"
	old := time.Unix(1e9, 0)
	for file, text := range map[string]string{luo: luoText, memfd: memfdText} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	isOld := func(file string) bool {
		info, err := os.Stat(file)
		return err == nil && info.ModTime().Equal(old)
	}
	for _, step := range []struct{ variant, luo, memfd string }{
		{"", luoText, memfdText},
		{"nextluo", "/* luo-v5 */\n#define LUO \"luo-v6\"\n", memfdText},
		{"nextluo", "/* luo-v5 */\n#define LUO \"luo-v6\"\n", memfdText},
		{"nextmemfd", luoText, "#define MEMFD \"memfd-v10\"\n"},
		{"xz", luoText, memfdText},
	} {
		if err := variants[step.variant].edit(tree); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]string{luo: step.luo, memfd: step.memfd} {
			if got, err := os.ReadFile(file); string(got) != want || err != nil {
				t.Errorf("%q: %s is %q, %v; want %q", step.variant, file, got, err, want)
			}
		}
		if step.variant == "" && !isOld(luo) || step.variant == "nextluo" && (!isOld(memfd) || isOld(luo)) {
			t.Errorf("%q: make would not go by the headers' times", step.variant)
		}
	}
	if err := os.WriteFile(luo+".orig", []byte("another header"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := variants["nextluo"].edit(tree); err == nil || !strings.Contains(err.Error(), "0 strings like luo-v1") {
		t.Error(err)
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
	want := filepath.Join(c.Dir, "kernels/7.2.13-1-"+cache.Key(schema, fragment, "", ""), "bzImage")
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
