// SPDX-License-Identifier: MIT

package run

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is in the directories, and not what this process was told, may be the doing of the command's user.

func TestRootFollowsNoLinksToWhereFilesAre(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root: others follow them")
	}
	dir := t.TempDir()
	elsewhere, state := filepath.Join(dir, "elsewhere"), filepath.Join(dir, "state")
	if err := errors.Join(os.Mkdir(elsewhere, 0o755), os.Symlink(elsewhere, state)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "meta"} {
		if err := os.WriteFile(filepath.Join(elsewhere, name), []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := []File{{"meta", filepath.Join(state, "meta")}}
	m := &memory{carried: map[string][]byte{"meta": []byte("ours")}, modes: map[string]fs.FileMode{"meta": 0o600}}
	_, _, carried := carry(files)
	for what, err := range map[string]error{
		"link":  link([]Memory{{Name: "data", Path: filepath.Join(state, "new")}}),
		"place": m.place(files, t.Logf),
		"carry": carried,
	} {
		if err == nil || !strings.Contains(err.Error(), "one of its directories is a symbolic link") {
			t.Errorf("%s: %v", what, err)
		}
	}
	os.Remove(filepath.Join(elsewhere, "link"))
	os.Symlink("/proc/self/fd/3", filepath.Join(elsewhere, "link"))
	unlink([]Memory{{Name: "data", Path: filepath.Join(state, "link")}})
	entries, err := os.ReadDir(elsewhere)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	if text, err := os.ReadFile(filepath.Join(elsewhere, "meta")); string(text) != "theirs" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestOnlyARegularFileIsCarried(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	p := filepath.Join(dir, "meta")
	for what, put := range map[string]func() error{
		"a link":         func() error { return os.Symlink(secret, p) },
		"a FIFO":         func() error { return unix.Mkfifo(p, 0o600) },
		"a directory":    func() error { return os.Mkdir(p, 0o700) },
		"an endless one": func() error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)) },
		"a device":       func() error { return unix.Mknod(p, unix.S_IFCHR|0o600, 1<<8|5) }, // /dev/zero
		"one too large":  func() error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, CarriedMax+1)) },
	} {
		if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := put(); errors.Is(err, unix.EPERM) {
			continue // devices take root
		} else if err != nil {
			t.Fatal(what, err)
		}
		records, memfds, err := carry([]File{{"meta", p}})
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v, %v", what, records, err)
		}
		closeAll(memfds)
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

// A FIFO there must not be waited for, and what a link leads to not be written.
func TestWhatIsFoundIsNotWrittenThrough(t *testing.T) {
	dir := t.TempDir()
	secret, p := filepath.Join(dir, "secret"), filepath.Join(dir, "meta")
	files := []File{{"meta", p}}
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Symlink(secret, p+".x"), os.Symlink(secret, p)); err != nil {
		t.Fatal(err)
	}
	m := &memory{carried: map[string][]byte{"meta": []byte("ours")}, modes: map[string]fs.FileMode{"meta": 0o640}}
	if err := m.place(files, t.Logf); err == nil || !strings.Contains(err.Error(), "isn't a regular file") {
		t.Errorf("a link: %v", err)
	}
	os.Remove(p)
	if err := unix.Mkfifo(p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.place(files, t.Logf); err == nil || !strings.Contains(err.Error(), "isn't a regular file") {
		t.Errorf("a FIFO: %v", err)
	}
	if err := link([]Memory{{Name: "data", Path: p}}); err == nil || !strings.Contains(err.Error(), "isn't a link") {
		t.Errorf("a FIFO where the link belongs: %v", err)
	}
	os.Remove(p)
	// Another's file, of two names, is not written to either.
	if err := os.Link(secret, p); err != nil {
		t.Fatal(err)
	}
	if err := m.place(files, t.Logf); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{secret: "secret", p: "ours", p + old: "secret"} {
		if text, err := os.ReadFile(name); string(text) != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if stat, err := os.Stat(p); err != nil || stat.Mode() != 0o640 {
		t.Errorf("%v, %v", stat.Mode(), err)
	}
}
