// SPDX-License-Identifier: MIT

package kimage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Running tells what can be known of the kernel that runs: its configuration, from /proc/config.gz or where FindConfig looks;
// its formats from its image (those at ImagePaths, then images), which is taken only if it's the very same build; failing that those
// of KHO and LUO from debugfs, which needs root and CONFIG_KEXEC_HANDOVER_DEBUGFS; failing all that, /proc/kallsyms tells what
// was built in, but not in which version. root is the host's root directory.
//
// The error joins what stood in the way, such as an image that has been replaced since the boot; the kernel is returned
// with it unless nothing is known at all.
func Running(ctx context.Context, root fs.FS, images ...string) (*Kernel, error) {
	release, err := readText(root, "proc/sys/kernel/osrelease")
	if err != nil {
		return nil, fmt.Errorf("the running kernel: %w", err)
	}
	k := &Kernel{Release: release}
	var problems []error
	problem := func(name string, err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fmt.Errorf("%s: %w", path.Join("/", name), err))
		}
	}
	const version = "proc/version"
	k.Banner, err = readText(root, version)
	problem(version, err)

	const config = "proc/config.gz"
	if f, err := root.Open(config); err == nil {
		k.Config, err = gunzipConfig(f)
		problem(config, err)
		f.Close()
		if k.Config != nil {
			k.ConfigFrom = path.Join("/", config)
		}
	}
	before := len(problems)
	if err := k.image(ctx, root, append(ImagePaths(release), images...), problem); err != nil {
		return k, err
	}
	if k.Complete {
		problems = problems[:before] // an older image elsewhere takes nothing from that
	}
	if k.Config == nil {
		c, from, err := FindConfig(root, release)
		if err != nil {
			problems = append(problems, err)
		}
		k.Config, k.ConfigFrom = c, from
	}
	if !k.Complete {
		problem(debugfs, k.debugfs(ctx, root))
		const kallsyms = "proc/kallsyms"
		problem(kallsyms, k.kallsyms(ctx, root))
	}
	if err := errors.Join(problems...); err != nil {
		return k, fmt.Errorf("the running kernel: %w", err)
	}
	return k, nil
}

// ImagePaths is where distributions have the image of a release.
func ImagePaths(release string) []string {
	if !plainName(release) {
		return nil
	}
	return []string{"boot/vmlinuz-" + release, "usr/lib/modules/" + release + "/vmlinuz", "lib/modules/" + release + "/vmlinuz"}
}

// image takes the formats of the first of the images that is the running kernel's, and its configuration if it isn't known yet.
func (k *Kernel) image(ctx context.Context, root fs.FS, names []string, problem func(string, error)) error {
	for _, name := range names {
		image, err := readFile(ctx, root, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if image == nil || !image.Complete {
			problem(name, err)
			continue
		}
		// /proc/version has the same text (linux_proc_banner in init/version.c). A package that is updated often keeps its
		// release and brings another build.
		if image.Banner != k.Banner {
			problem(name, fmt.Errorf("it isn't the running kernel, but %q", image.Banner))
			continue
		}
		from := path.Join("/", name)
		k.setFormats(image.Formats, from, true)
		if k.Config == nil && image.Config != nil {
			k.Config, k.ConfigFrom = image.Config, from
		}
		return nil
	}
	return nil
}

func readFile(ctx context.Context, root fs.FS, name string) (*Image, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r, ok := f.(io.ReaderAt)
	if !ok {
		return nil, errors.New("the file can't be read at an offset")
	}
	return Read(ctx, r, info.Size())
}

// The tree that this kernel hands over, and LUO's part of it: kho_out_debugfs_init() and kho_debugfs_blob_add() in
// kernel/liveupdate/kexec_handover_debugfs.c, Linux 7.2.13.
const debugfs = "sys/kernel/debug/kho/out"

func (k *Kernel) debugfs(ctx context.Context, root fs.FS) error {
	s := &scan{}
	for _, name := range []string{"fdt", "sub_fdts/LUO"} {
		f, err := root.Open(path.Join(debugfs, name))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return err
		}
		err = s.read(ctx, f, windowSize)
		f.Close()
		if err != nil {
			return err
		}
	}
	if len(s.formats) > 0 {
		k.setFormats(s.formats, path.Join("/", debugfs), false)
	}
	return nil
}

// kallsyms has the names for everybody, even where the addresses are hidden.
func (k *Kernel) kallsyms(ctx context.Context, root fs.FS) error {
	f, err := root.Open("proc/kallsyms")
	if err != nil {
		return err
	}
	defer f.Close()
	symbols := map[string]bool{}
	wanted := map[string]bool{}
	for _, t := range traces {
		wanted[t.symbol] = true
	}
	n := 0
	lines := bufio.NewScanner(io.LimitReader(f, unpackedMax))
	for ; lines.Scan(); n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line := lines.Bytes()
		if name := line[bytes.LastIndexByte(line, ' ')+1:]; wanted[string(name)] {
			symbols[string(name)] = true
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	// Without CONFIG_KALLSYMS there is no file; an empty one says nothing either.
	if n > 0 {
		k.symbols = symbols
	}
	return nil
}

func readText(root fs.FS, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	return strings.TrimSpace(string(data)), err
}
