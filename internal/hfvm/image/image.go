// SPDX-License-Identifier: MIT

// Package image puts files into what a guest boots from: a cpio archive for an initramfs, or an
// ext4 image by way of debugfs, so that neither needs root or a mount.
package image

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// An Entry is one file of the guest. Its owner is always root. Where it comes from depends on the
// type in Mode: a directory needs nothing more, a symbolic link Link, a regular file Source or Data.
type Entry struct {
	Path   string // absolute, clean
	Mode   fs.FileMode
	Link   string // target of a symbolic link
	Source string // file on the host with the content
	Data   []byte // content, if Source is empty
	Rdev   [2]uint32
}

// Dir is a directory.
func Dir(p string) Entry { return Entry{Path: p, Mode: fs.ModeDir | 0o755} }

// File is a regular file with the content of a file on the host.
func File(p, source string, perm fs.FileMode) Entry {
	return Entry{Path: p, Mode: perm, Source: source}
}

// Text is a regular file with the given content.
func Text(p, content string, perm fs.FileMode) Entry {
	return Entry{Path: p, Mode: perm, Data: []byte(content)}
}

// Symlink is a symbolic link.
func Symlink(p, target string) Entry {
	return Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: target}
}

// Walk lists src, a file or a whole tree on the host, as it shall appear at dst in the guest. A
// symbolic link given as src itself is followed, links inside a tree are kept as links.
func Walk(src, dst string) ([]Entry, error) {
	if !path.IsAbs(dst) || strings.ContainsAny(dst, "\x00\n") {
		return nil, fmt.Errorf("%q is no absolute path in the guest", dst)
	}
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		e := Entry{Path: path.Join(dst, filepath.ToSlash(rel)), Mode: info.Mode()}
		switch {
		case info.IsDir():
		case info.Mode().IsRegular():
			e.Source = p
		case info.Mode()&fs.ModeSymlink != 0:
			if e.Link, err = os.Readlink(p); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: only files, directories and symbolic links can be added to a guest, this is %s", p, info.Mode().Type())
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// withParents adds the directories that entries lie in and that nobody listed, and puts each
// directory before what is in it. Of two entries with one path the later one counts, but a
// directory never replaces a directory that is there already.
func withParents(entries []Entry) []Entry {
	at := map[string]int{"/": -1}
	var all []Entry
	var add func(Entry)
	add = func(e Entry) {
		if parent := path.Dir(e.Path); parent != e.Path {
			if _, ok := at[parent]; !ok {
				add(Dir(parent))
			}
		}
		if i, ok := at[e.Path]; ok {
			if i >= 0 {
				all[i] = e
			}
			return
		}
		at[e.Path] = len(all)
		all = append(all, e)
	}
	for _, e := range entries {
		add(e)
	}
	return slices.Clip(all)
}

func (e Entry) open() (io.ReadCloser, int64, error) {
	if e.Source == "" {
		return io.NopCloser(strings.NewReader(string(e.Data))), int64(len(e.Data)), nil
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// unixMode is the file's mode as the kernel and both formats write it.
func (e Entry) unixMode() uint32 {
	mode := uint32(e.Mode.Perm())
	for bit, flag := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if e.Mode&bit != 0 {
			mode |= flag
		}
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		return mode | 0o040000
	case fs.ModeSymlink:
		return mode | 0o120000
	case fs.ModeDevice | fs.ModeCharDevice:
		return mode | 0o020000
	}
	return mode | 0o100000
}
