// SPDX-License-Identifier: MIT

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// A Listing says what an image holds: path to the target of a symbolic link, "/" for a directory
// (no link can have it as target there), "" for anything else. debugfs has no way to ask whether a
// name exists in the middle of a list of commands, so whoever makes an image keeps its listing.
type Listing map[string]string

const isDir = "/"

// List reads the listing of a tree that is to become an image.
func List(root string) (Listing, error) {
	l := Listing{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		at := path.Join("/", rel)
		switch {
		case d.IsDir():
			l[at] = isDir
		case d.Type()&fs.ModeSymlink != 0:
			if l[at], err = os.Readlink(p); err != nil {
				return err
			}
		default:
			l[at] = ""
		}
		return nil
	})
	return l, err
}

// resolve follows the symbolic links in a directory's path, since debugfs takes names as they are:
// /bin/x has to be written to /usr/bin.
func (l Listing) resolve(dir string) (string, error) {
	done := "/"
	rest := strings.Split(strings.Trim(dir, "/"), "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		target, there := l[next]
		if !there || target == isDir || target == "" {
			if there && target == "" {
				return "", fmt.Errorf("%s is no directory", next)
			}
			done = next
			continue
		}
		if hops++; hops > 40 {
			return "", fmt.Errorf("%s: too many symbolic links", dir)
		}
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
		done = "/"
	}
	return done, nil
}

// Script is the list of debugfs commands that puts entries into an image with this listing, and
// says in the listing what is there then. A file in the way is replaced. inline is called for
// content that is on no file yet, and says on which file it put it.
func (l Listing) Script(entries []Entry, inline func([]byte) (string, error)) (string, error) {
	var b strings.Builder
	l["/"] = isDir
	for _, e := range withParents(entries) {
		dir, err := l.resolve(path.Dir(e.Path))
		if err != nil {
			return "", fmt.Errorf("adding %s: %w", e.Path, err)
		}
		name := path.Base(e.Path)
		at := path.Join(dir, name)
		was, there := l[at]
		if e.Mode.IsDir() && there {
			if r, err := l.resolve(at); err != nil || l[r] != isDir {
				return "", fmt.Errorf("adding %s: the image has a file there, no directory", e.Path)
			}
			continue
		}
		if there && was == isDir {
			return "", fmt.Errorf("adding %s: the image has a directory there", e.Path)
		}
		for _, s := range []string{at, e.Source, e.Link} {
			// libss, debugfs' parser, knows quotes but no way to write one inside them that
			// all of its commands understand.
			if strings.ContainsAny(s, "\"\n") {
				return "", fmt.Errorf("adding %s: \"%s\" has a quote or a line break, which debugfs can't take", e.Path, s)
			}
		}
		// "write" and "mknod" put a file into the current directory whatever slashes its name has.
		fmt.Fprintf(&b, "cd \"%s\"\n", dir)
		if there {
			fmt.Fprintf(&b, "rm \"%s\"\n", name)
		}
		switch {
		case e.Mode.IsDir():
			fmt.Fprintf(&b, "mkdir \"%s\"\n", name)
			l[at] = isDir
		case e.Mode&fs.ModeSymlink != 0:
			fmt.Fprintf(&b, "symlink \"%s\" \"%s\"\n", name, e.Link)
			l[at] = e.Link
			continue
		case e.Mode.IsRegular():
			source := e.Source
			if source == "" {
				if source, err = inline(e.Data); err != nil {
					return "", err
				}
			}
			fmt.Fprintf(&b, "write \"%s\" \"%s\"\n", source, name)
			l[at] = ""
		default:
			return "", fmt.Errorf("adding %s: %s can't be added", e.Path, e.Mode.Type())
		}
		fmt.Fprintf(&b, "sif \"%[1]s\" mode 0%[2]o\nsif \"%[1]s\" uid 0\nsif \"%[1]s\" gid 0\n", name, e.unixMode())
	}
	return b.String(), nil
}

// WriteExt4 puts entries into the ext4 image img, whose listing is l.
func WriteExt4(ctx context.Context, img *os.File, l Listing, entries []Entry) error {
	tmp, err := os.MkdirTemp("", "hfvm-add-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	n := 0
	script, err := l.Script(entries, func(data []byte) (string, error) {
		n++
		p := filepath.Join(tmp, fmt.Sprint(n))
		return p, os.WriteFile(p, data, 0o600)
	})
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "debugfs", "-w", "-f", "-", "/dev/fd/3")
	cmd.Stdin = strings.NewReader(script)
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{img}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, &stderr)
	}
	// debugfs ends with 0 whatever its commands did; all that it says besides its version is an error.
	_, said, _ := strings.Cut(stderr.String(), "\n")
	if said = strings.TrimSpace(said); said != "" {
		return errors.New("debugfs: " + said + "\n(adding files to the guest's disk; is it full?)")
	}
	return nil
}
