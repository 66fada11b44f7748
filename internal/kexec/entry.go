// SPDX-License-Identifier: MIT

package kexec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Entry is a boot entry (https://uapi-group.org/specifications/specs/boot_loader_specification/): one of type 1, a file in
// loader/entries, or of type 2, a unified kernel image in EFI/Linux.
type Entry struct {
	// ID is the name of the file, without .conf and without a boot counter.
	ID             string
	Title, Version string
	// Linux and Initrd are paths below the root directory, without the leading slash. Of type 2 Linux is the whole image.
	Linux  string
	Initrd []string
	// Options are the kernel's command line. A unified image that is given none has its own.
	Options string
}

// partitions are where the boot partitions are mounted (BOOT/ESP in the specification), the ones that count first.
var partitions = []string{"boot", "efi", "boot/efi"}

const (
	entryMax   = 64 << 10
	entriesMax = 1024
)

// Entries are all boot entries that there are, by their IDs. Of two with the same ID the first counts, as it does for boot
// loaders. An entry that can't be read is part of the error, next to which there are the others. root is the host's root directory.
func Entries(root fs.FS) (entries []*Entry, err error) {
	var problems []error
	add := func(e *Entry, err error) {
		if err != nil {
			problems = append(problems, err)
		} else if !slices.ContainsFunc(entries, func(other *Entry) bool { return other.ID == e.ID }) {
			entries = append(entries, e)
		}
	}
	for _, partition := range partitions {
		for _, file := range list(root, path.Join(partition, "loader/entries"), ".conf", &problems) {
			add(readEntry(root, partition, file))
		}
		for _, file := range list(root, path.Join(partition, "EFI/Linux"), ".efi", &problems) {
			add(&Entry{ID: uncounted(path.Base(file), ".efi") + ".efi", Linux: file}, nil)
		}
	}
	slices.SortFunc(entries, func(a, b *Entry) int { return strings.Compare(a.ID, b.ID) })
	return entries, errors.Join(problems...)
}

// FindEntry is the entry of that ID, which may be given with or without .conf or .efi.
func FindEntry(root fs.FS, id string) (*Entry, error) {
	entries, problems := Entries(root)
	var ids []string
	for _, e := range entries {
		if e.ID == id || e.ID == strings.TrimSuffix(id, ".conf") || e.ID == id+".efi" {
			return e, nil
		}
		ids = append(ids, e.ID)
	}
	err := fmt.Errorf("there is no boot entry %q in loader/entries or EFI/Linux of %s; there are: %s", id, "/"+strings.Join(partitions, ", /"), strings.Join(ids, ", "))
	if ids == nil {
		err = fmt.Errorf("there are no boot entries in loader/entries or EFI/Linux of %s; name the kernel's image instead", "/"+strings.Join(partitions, ", /"))
	}
	return nil, errors.Join(err, problems)
}

// list are the files of a directory that end so. One that isn't there has none.
func list(root fs.FS, dir, suffix string, problems *[]error) (files []string) {
	found, err := fs.ReadDir(root, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		*problems = append(*problems, err)
	}
	for _, f := range found[:min(len(found), entriesMax)] {
		if strings.HasSuffix(f.Name(), suffix) {
			files = append(files, path.Join(dir, f.Name()))
		}
	}
	return files
}

func readEntry(root fs.FS, partition, file string) (*Entry, error) {
	// To open a pipe is to wait for its other end.
	if info, err := fs.Stat(root, file); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s: it is no file", file)
	}
	f, err := root.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, entryMax+1))
	if err == nil && len(text) > entryMax {
		err = fmt.Errorf("it has more than %d bytes", entryMax)
	}
	var e *Entry
	if err == nil {
		e, err = parseEntry(text)
	}
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", file, err)
	}
	e.ID = uncounted(path.Base(file), ".conf")
	e.Linux = below(root, partition, e.Linux)
	var initrds []string
	for _, value := range e.Initrd {
		names := []string{value}
		if !isThere(root, below(root, partition, value)) {
			names = strings.Fields(value) // GRUB takes several on one line
		}
		for _, name := range names {
			initrds = append(initrds, below(root, partition, name))
		}
	}
	e.Initrd = initrds
	return e, nil
}

// parseEntry reads an entry of type 1. What it doesn't know it passes over.
func parseEntry(text []byte) (*Entry, error) {
	e := &Entry{}
	var options []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, entryMax+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		end := strings.IndexAny(line, " \t")
		if end < 0 || line[0] == '#' {
			continue
		}
		value := strings.TrimSpace(line[end:])
		switch line[:end] {
		case "title":
			e.Title = value
		case "version":
			e.Version = value
		case "linux", "uki":
			e.Linux = value
		case "profile":
			if strings.Trim(value, "0") != "" {
				return nil, fmt.Errorf("it starts profile %s of a unified image, and of those only the first can be loaded", value)
			}
		case "initrd":
			e.Initrd = append(e.Initrd, value)
		case "options":
			options = append(options, value)
		case "efi":
			if e.Linux == "" {
				e.Linux = value
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if e.Options = strings.Join(options, " "); e.Linux == "" {
		return nil, errors.New("it has no line \"linux\"")
	}
	for _, value := range append([]string{e.Linux, e.Options}, e.Initrd...) {
		// GRUB puts variables of its own in place of them, and of what it has set only some are in a file.
		if found := variable.FindString(value); found != "" {
			return nil, fmt.Errorf("it has the variable %s, which only GRUB knows: name the kernel, the initrd and the command line instead", found)
		}
	}
	return e, nil
}

// variable is what is one to GRUB, and not the "$" in memmap=64K$0x18690000.
var variable = regexp.MustCompile(`\$(?:[A-Za-z_]\w*|\{[^}]*\}?)`)

// below is a path as an entry has it, on this host. They count from the root of the entry's partition; where /boot is no
// partition of its own, that is the root directory (as on Fedora).
func below(root fs.FS, partition, name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if inside := path.Join(partition, name); isThere(root, inside) || !isThere(root, name) {
		return inside
	}
	return name
}

func isThere(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

// uncounted is a file's name without its end and without "+LEFT" or "+LEFT-DONE" before that, which count attempts to boot.
func uncounted(name, suffix string) string {
	name = strings.TrimSuffix(name, suffix)
	plus := strings.LastIndexByte(name, '+')
	if plus < 0 {
		return name
	}
	left, done, counted := strings.Cut(name[plus+1:], "-")
	if isNumber(left) && (!counted || isNumber(done)) {
		return name[:plus]
	}
	return name
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
