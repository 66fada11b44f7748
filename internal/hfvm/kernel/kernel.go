// SPDX-License-Identifier: MIT

// Package kernel builds small kernels for guests, with the Live Update Orchestrator, without it, and with one
// that doesn't agree with the others', from Debian's packages of kernel source.
package kernel

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
	"github.com/holdfast-project/holdfast/internal/hfvm/debian"
)

//go:embed liveupdate.config
var fragment string

// schema changes when the way of building does, and not only the fragment.
const schema = "1"

// The suites that newer kernels come from. A series is in one of them for some months.
var suites = []string{"sid", "forky", "trixie-backports"}

var seriesName = regexp.MustCompile(`^\d+\.\d+$`)

// IsSeries says whether a kernel's name means a series or a variant of one ("7.2", "7.2-noluo"), and no file.
func IsSeries(name string) bool {
	series, variant, has := strings.Cut(name, "-")
	_, known := variants[variant]
	return seriesName.MatchString(series) && (known || !has)
}

// Image is the path of a kernel's bzImage: name is a series, which is built if need be, or a file.
func Image(ctx context.Context, c *cache.Cache, name string) (string, error) {
	if !IsSeries(name) {
		info, err := os.Stat(name)
		if err != nil {
			return "", fmt.Errorf("kernel %q is no series like 7.2 or 7.2-noluo, and as a file: %w", name, err)
		}
		if !info.Mode().IsRegular() {
			return "", fmt.Errorf("kernel %s is no file", name)
		}
		return name, nil
	}
	series, variantName, _ := strings.Cut(name, "-")
	source, err := resolve(ctx, c, series)
	if err != nil {
		return "", err
	}
	if source.Series() != series {
		fmt.Fprintf(c.Tell, "hfvm: kernel %s has left the archive; %s is the nearest newer one\n", series, source.Series())
	}
	v := variants[variantName]
	config := v.configure(fragment)
	suffix := strings.TrimPrefix(name, series)
	entry := fmt.Sprintf("kernels/%s%s-%s", source.Version, suffix, cache.Key(schema, config, v.header, v.format))
	dir, err := c.Entry(ctx, entry, func(dir string, log *cache.Log) error {
		return build(ctx, c, log, source, suffix, v, config, dir)
	})
	if err != nil {
		return "", fmt.Errorf("building kernel %s: %w", name, err)
	}
	return filepath.Join(dir, "bzImage"), nil
}

// resolve says which source package is taken for a series. It's looked up once and then remembered,
// so that a kernel in the cache needs no network.
func resolve(ctx context.Context, c *cache.Cache, series string) (debian.Source, error) {
	dir, err := c.Entry(ctx, "series/"+series, func(dir string, log *cache.Log) error {
		if err := debian.Need(ctx, c, Tools...); err != nil {
			return err
		}
		return log.Step(ctx, "looking for the source of kernel "+series, func() error {
			archive, err := debian.OpenArchive(ctx, c, log, suites...)
			if err != nil {
				return err
			}
			sources, err := archive.KernelSources(ctx)
			if err != nil {
				return err
			}
			source, err := nearest(sources, series)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "source"), []byte(source.String()+"\n"), 0o644)
		})
	})
	if err != nil {
		return debian.Source{}, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "source"))
	if err != nil {
		return debian.Source{}, err
	}
	return debian.ParseSource(string(text))
}

// nearest picks the source of a series, or of the first one after it.
func nearest(sources []debian.Source, series string) (debian.Source, error) {
	compare := func(a, b string) int {
		x, y := numbers(a), numbers(b)
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
	}
	sources = slices.Clone(sources)
	slices.SortFunc(sources, func(a, b debian.Source) int { return compare(a.Series(), b.Series()) })
	var have []string
	for _, s := range sources {
		if compare(s.Series(), series) >= 0 {
			return s, nil
		}
		have = append(have, s.Series())
	}
	return debian.Source{}, fmt.Errorf("the archive has no source of kernel %s or newer in %s, only of %s",
		series, strings.Join(suites, ", "), strings.Join(have, ", "))
}

func numbers(series string) (n [2]int) {
	major, minor, _ := strings.Cut(series, ".")
	n[0], _ = strconv.Atoi(major)
	n[1], _ = strconv.Atoi(minor)
	return n
}

// Tools are what has to be on the machine to build kernels.
var Tools = []debian.Tool{
	{Name: "gcc", Package: "gcc"}, {Name: "make", Package: "make"}, {Name: "flex", Package: "flex"},
	{Name: "bison", Package: "bison"}, {Name: "bc", Package: "bc"}, {Name: "xz", Package: "xz-utils"},
	{Name: "zstd", Package: "zstd"}, {Name: "lz4", Package: "lz4"}, {Name: "tar", Package: "tar"}, {Name: "dpkg-deb", Package: "dpkg"},
	{Name: "/usr/include/gelf.h", Package: "libelf-dev"},
	{Name: "/usr/include/openssl/opensslv.h", Package: "libssl-dev"},
	{Name: debian.Keyring, Package: "debian-archive-keyring"},
}

// Tree is the directory with the unpacked source of a version. It stays in the cache with the objects
// of the last build: a kernel that differs in a few options then takes a fraction of the time.
func Tree(c *cache.Cache, s debian.Source) string {
	return filepath.Join(c.Dir, "src", s.Version)
}

func build(ctx context.Context, c *cache.Cache, log *cache.Log, s debian.Source, suffix string, v variant, config, dir string) error {
	if err := debian.Need(ctx, c, Tools...); err != nil {
		return err
	}
	tree := Tree(c, s)
	unlock, err := lockedTree(ctx, c, log, s)
	if err != nil {
		return err
	}
	defer unlock()
	title := "kernel " + strings.SplitN(s.Version, "-", 2)[0] + suffix
	make := func(args ...string) error {
		return log.Command(ctx, "make", append([]string{"-C", tree}, args...)...).Run()
	}
	if err := log.Step(ctx, "configuring "+title, func() error {
		if err := v.edit(tree); err != nil {
			return err
		}
		if err := make("tinyconfig"); err != nil {
			return err
		}
		path := filepath.Join(tree, ".config")
		tiny, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, append(tiny, config...), 0o644); err != nil {
			return err
		}
		if err := make("olddefconfig"); err != nil {
			return err
		}
		made, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lost := lost(config, bytes.NewReader(made))
		if len(lost) == 0 {
			return nil
		}
		gone, err := gone(tree, lost)
		if err != nil {
			return err
		}
		for _, option := range lost {
			if !slices.Contains(gone, option) || strings.Contains(option, "LIVEUPDATE") || strings.Contains(option, "KEXEC") {
				return fmt.Errorf("%s did not survive make olddefconfig", option)
			}
		}
		fmt.Fprintf(c.Tell, "hfvm: %s has no such options any more: %s\n", title, strings.Join(gone, " "))
		return nil
	}); err != nil {
		return err
	}
	if err := log.Step(ctx, "building "+title, func() error {
		return make("-j"+strconv.Itoa(runtime.NumCPU()), "bzImage")
	}); err != nil {
		return err
	}
	for from, to := range map[string]string{"arch/x86/boot/bzImage": "bzImage", ".config": "config"} {
		if err := copyFile(filepath.Join(tree, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return nil
}

// Source unpacks the source of a series, if need be, and says where it is. Whoever writes there holds the lock
// "src/"+Version.
func Source(ctx context.Context, c *cache.Cache, series string) (debian.Source, string, error) {
	s, err := resolve(ctx, c, series)
	if err != nil {
		return s, "", err
	}
	if err := debian.Need(ctx, c, Tools...); err != nil {
		return s, "", err
	}
	log, err := c.NewLog("src/" + s.Version)
	if err != nil {
		return s, "", err
	}
	defer log.Close()
	unlock, err := lockedTree(ctx, c, log, s)
	if err != nil {
		return s, "", err
	}
	unlock()
	return s, Tree(c, s), nil
}

// lockedTree makes sure that the tree is there, and locks it.
func lockedTree(ctx context.Context, c *cache.Cache, log *cache.Log, s debian.Source) (unlock func(), err error) {
	unlock, err = c.Lock(ctx, "src/"+s.Version)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(Tree(c, s)); errors.Is(err, fs.ErrNotExist) {
		if err := unpack(ctx, c, log, s, Tree(c, s)); err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}

func unpack(ctx context.Context, c *cache.Cache, log *cache.Log, s debian.Source, tree string) error {
	tmp := tree + ".part"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(tmp, "tree"), 0o755); err != nil {
		return err
	}
	var deb string
	if err := log.Step(ctx, "fetching "+s.String(), func() error {
		archive, err := debian.OpenArchive(ctx, c, log, suites...)
		if err == nil {
			deb, err = archive.Download(ctx, log, s, tmp)
		}
		if err != nil {
			err = fmt.Errorf("%w (if the archive has moved on, remove %s to look anew)", err, filepath.Join(c.Dir, "series"))
		}
		return err
	}); err != nil {
		return err
	}
	if err := log.Step(ctx, "unpacking "+s.String(), func() error {
		// Three processes in a row, so that nothing but the tree is ever on the disk.
		return log.Command(ctx, "bash", "-o", "pipefail", "-ec",
			`dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/src/$2.tar.xz" | xz -dc | tar -x -C "$3" --strip-components=1`,
			"unpack", deb, s.Package, filepath.Join(tmp, "tree")).Run()
	}); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "tree"), tree); err != nil {
		return err
	}
	return os.RemoveAll(tmp)
}

// lost lists the options of the fragment that a finished configuration does not have as asked.
func lost(fragment string, config io.Reader) []string {
	set := map[string]bool{}
	for s := bufio.NewScanner(config); s.Scan(); {
		set[s.Text()] = true
	}
	var lost []string
	for _, line := range strings.Split(fragment, "\n") {
		option, off := strings.CutSuffix(line, "=n")
		switch {
		case !strings.HasPrefix(line, "CONFIG_"):
		case off && set[option+"=y"], !off && !set[line]:
			lost = append(lost, line)
		}
	}
	return lost
}

// gone lists those of the options that no Kconfig file of the tree defines. 7.3 has no PROC_SYSCTL
// any more, for example: it is part of SYSCTL.
func gone(tree string, options []string) ([]string, error) {
	defined := map[string]bool{}
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "Kconfig") {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if w := strings.Fields(lines.Text()); len(w) == 2 && (w[0] == "config" || w[0] == "menuconfig") {
				defined["CONFIG_"+w[1]] = true
			}
		}
		return lines.Err()
	})
	var gone []string
	for _, o := range options {
		if name, _, _ := strings.Cut(o, "="); !defined[name] {
			gone = append(gone, o)
		}
	}
	return gone, err
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
