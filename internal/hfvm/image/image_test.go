// SPDX-License-Identifier: MIT

package image

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tree with all that can be added to a guest.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree/sub dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"tree/sub dir/a file": "hello", "tree/tool": "#!/bin/sh\n", "tree/empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tree/tool"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub dir/a file", filepath.Join(dir, "tree/link")); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "tree")
}

func TestWalkKeepsModesAndLinks(t *testing.T) {
	tree := sample(t)
	entries, err := Walk(tree, "/opt/x")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Path+" "+e.Mode.String()+" "+e.Link)
	}
	want := []string{
		"/opt/x drwxr-xr-x ", "/opt/x/empty -rw-r--r-- ", "/opt/x/link Lrwxrwxrwx sub dir/a file",
		"/opt/x/sub dir drwxr-xr-x ", "/opt/x/sub dir/a file -rw-r--r-- ", "/opt/x/tool urwxr-xr-x ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if one, err := Walk(filepath.Join(tree, "link"), "/x"); err != nil || len(one) != 1 || !one[0].Mode.IsRegular() {
		t.Errorf("a link given as such is not followed: %v, %v", one, err)
	}
	if _, err := Walk(tree, "relative"); err == nil {
		t.Error("a relative path in the guest was taken")
	}
}

func TestCPIOHasTheKernelsFormat(t *testing.T) {
	var archive bytes.Buffer
	entries := []Entry{
		Text("/a/b", "12345", 0o640),
		Symlink("/l", "a/b"),
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Rdev: [2]uint32{5, 1}},
		Text("/l2", "first", 0o600),
		Text("/l2", "second", 0o755),
	}
	if err := WriteCPIO(&archive, entries); err != nil {
		t.Fatal(err)
	}
	type member struct{ name, mode, rdev, content string }
	var got []member
	for rest := archive.Bytes(); ; {
		field := func(i int) string { return string(rest[6+8*i : 14+8*i]) }
		number := func(i int) int {
			n := 0
			for _, c := range field(i) {
				n = n*16 + strings.IndexRune("0123456789ABCDEF", c)
			}
			return n
		}
		if string(rest[:6]) != "070701" {
			t.Fatalf("no header at %q", rest[:min(len(rest), 20)])
		}
		if uid, gid := number(2), number(3); uid != 0 || gid != 0 {
			t.Errorf("owner %d:%d", uid, gid)
		}
		size, nameSize := number(6), number(11)
		name := string(rest[110 : 110+nameSize-1])
		if name == "TRAILER!!!" {
			break
		}
		data := (110 + nameSize + 3) &^ 3
		got = append(got, member{name, field(1), field(9) + field(10), string(rest[data : data+size])})
		rest = rest[(data+size+3)&^3:]
	}
	want := []member{
		{"a", "000041ED", "0000000000000000", ""},
		{"a/b", "000081A0", "0000000000000000", "12345"},
		{"l", "0000A1FF", "0000000000000000", "a/b"},
		{"dev", "000041ED", "0000000000000000", ""},
		{"dev/console", "00002180", "0000000500000001", ""},
		{"l2", "000081ED", "0000000000000000", "second"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

func inlineIn(dir string) func([]byte) (string, error) {
	return func(data []byte) (string, error) {
		p := filepath.Join(dir, "inline")
		return p, os.WriteFile(p, data, 0o600)
	}
}

func TestScriptFollowsTheImagesLinks(t *testing.T) {
	l := Listing{"/": isDir, "/usr": isDir, "/usr/bin": isDir, "/bin": "usr/bin", "/usr/bin/old": "", "/loop": "loop", "/file": ""}
	script, err := l.Script([]Entry{
		File("/bin/old", "/src", 0o755),
		Dir("/bin"),
		Symlink("/new/dir/link", "target"),
	}, inlineIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	want := `cd "/usr/bin"
rm "old"
write "/src" "old"
sif "old" mode 0100755
sif "old" uid 0
sif "old" gid 0
cd "/"
mkdir "new"
sif "new" mode 040755
sif "new" uid 0
sif "new" gid 0
cd "/new"
mkdir "dir"
sif "dir" mode 040755
sif "dir" uid 0
sif "dir" gid 0
cd "/new/dir"
symlink "link" "target"
`
	if script != want {
		t.Errorf("got\n%s\nwant\n%s", script, want)
	}
	for name, e := range map[string]Entry{
		"file over a directory":    File("/usr", "/src", 0o644),
		"directory over a file":    Dir("/file"),
		"file below a file":        File("/file/x", "/src", 0o644),
		"links that never end":     File("/loop/x", "/src", 0o644),
		"name with a line break":   File("/a\nrm b", "/src", 0o644),
		"source with a quote":      File("/a", `/s"rc`, 0o644),
		"something not to be made": {Path: "/dev/x", Mode: fs.ModeDevice | fs.ModeCharDevice},
	} {
		if script, err := l.Script([]Entry{e}, inlineIn(t.TempDir())); err == nil {
			t.Errorf("%s: no error, but\n%s", name, script)
		}
	}
}

// TestExt4 goes through the real debugfs.
func TestExt4(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; install e2fsprogs", err)
		}
	}
	base := t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(base, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "usr/bin/tool"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	listing, err := List(base)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", base, path, "4096").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	img, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	entries, err := Walk(sample(t), "/bin")
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteExt4(context.Background(), img, listing, append(entries, Text("/etc/x", "inline", 0o600))); err != nil {
		t.Fatal(err)
	}
	ask := func(request string) string {
		out, err := exec.Command("debugfs", "-R", request, path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for request, want := range map[string]string{
		`cat "/usr/bin/sub dir/a file"`: "hello", "cat /usr/bin/tool": "#!/bin/sh\n", "cat /etc/x": "inline",
	} {
		if got := ask(request); got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
	if stat := ask("stat /usr/bin/tool"); !strings.Contains(stat, "Mode:  04755") {
		t.Errorf("the mode is lost:\n%s", stat)
	}
	if stat := ask("stat /usr/bin/link"); !strings.Contains(stat, `"sub dir/a file"`) {
		t.Errorf("the link is lost:\n%s", stat)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}

	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("x"), 5<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteExt4(context.Background(), img, listing, []Entry{File("/big", big, 0o644)}); err == nil {
		t.Error("5 MiB went into an image of 4 with no error")
	}
}
