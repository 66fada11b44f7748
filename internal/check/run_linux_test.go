// SPDX-License-Identifier: MIT

package check

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// held are kept open up to the kexec.
var held []any

// hold makes a session with a memfd of that size in it, mostly holes.
func hold(t *testing.T, kernelName string, size int64) {
	t.Helper()
	s, err := liveupdate.Device{}.Create(t.Context(), kernelName)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "ram")
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := s.Preserve(1, f); err != nil {
		t.Fatal(err)
	}
	held = append(held, s, f)
}

// want looks for a finding, of any severity if that is "".
func want(t *testing.T, findings []Finding, severity Severity, id string, parts ...string) {
	t.Helper()
next:
	for _, f := range findings {
		if f.ID != id || severity != "" && f.Severity != severity {
			continue
		}
		for _, part := range parts {
			if !strings.Contains(f.Text, part) {
				continue next
			}
		}
		return
	}
	t.Errorf("no %s %s with %q in", severity, id, parts)
	for _, f := range findings {
		t.Logf("%s %s: %s", f.Severity, f.ID, f.Text)
	}
}

// TestRun looks at a machine with sessions that only this process holds: one of a participant, a foreign one, and after an update
// the one that came back.
func TestRun(t *testing.T) {
	const owner = "/cache.service"
	ours := name.Kernel(owner, "ram")
	me := fmt.Sprintf("PID %d", os.Getpid())
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) {
			hold(t, "foreign", 64<<20)
			hold(t, ours, 16<<20)
			findings, err := Run(t.Context(), Target{Participants: []string{owner}})
			if err != nil {
				t.Fatal(err)
			}
			want(t, findings, "", "uncommitted", `"foreign" is`, me)
			want(t, findings, OK, "uncommitted", ours, "takes part in the update")
			want(t, findings, OK, "pinned-memory", "80 MiB in 2 memfds", "of it holes")
			want(t, findings, Warning, "next-kernel", "no kernel was named")
			want(t, findings, OK, "loaded", "no kernel is loaded")
			want(t, findings, OK, "incoming")

			findings, err = Run(t.Context(), Target{})
			if err != nil {
				t.Fatal(err)
			}
			want(t, findings, "", "uncommitted", ours, `"foreign"`, "are", me)
		},
		func(t *testing.T) {
			s, err := liveupdate.Device{}.Retrieve(t.Context(), ours)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			findings, err := Run(t.Context(), Target{})
			if err != nil {
				t.Fatal(err)
			}
			want(t, findings, Error, "incoming", ours, "has not been renewed")
			want(t, findings, OK, "uncommitted", "committed: 0 sessions")
		})
}

func TestTarget(t *testing.T) {
	words := "x"
	if _, err := Run(t.Context(), Target{CommandLine: &words}); err == nil || !strings.Contains(err.Error(), "without the kernel") {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if findings, err := Run(ended, Target{}); err == nil {
		t.Errorf("a check that nobody waits for: %v", findings)
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, []byte("this is no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	findings, err := RunKernel(t.Context(), Target{Kernel: f, Initrd: f})
	if err != nil {
		t.Fatal(err)
	}
	want(t, findings, Error, "next-kernel", "no kernel image")
	want(t, findings, Error, "next-initrd", "neither a cpio archive nor compressed")
	want(t, findings, "", "next-cmdline", "(this kernel's)")
	for _, f := range findings {
		if f.ID == "uncommitted" {
			t.Errorf("about a kernel alone: %+v", f)
		}
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if findings, err = RunKernel(t.Context(), Target{Kernel: dir}); err != nil {
		t.Fatal(err)
	}
	want(t, findings, Error, "next-kernel", "no regular file")
}

func TestCompanions(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"EFI/Linux/a.efi", "EFI/Linux/b.efi", "EFI/Linux/a.efi.extra.d/a.addon.efi", "EFI/Linux/a.efi.extra.d/x.cred", "EFI/Linux/a.efi.extra.d/README",
		"loader/addons/all.addon.efi", "loader/credentials/y.cred", "a.efi"} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const all = " loader/addons/all.addon.efi loader/credentials/y.cred"
	for name, want := range map[string]string{"EFI/Linux/a.efi": "EFI/Linux/a.efi.extra.d/a.addon.efi EFI/Linux/a.efi.extra.d/x.cred" + all, "EFI/Linux/b.efi": all[1:], "a.efi": ""} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := strings.ReplaceAll(strings.Join(companions(f), " "), dir+"/", ""); got != want {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
	}
}

func TestNeighbour(t *testing.T) {
	root := fstest.MapFS{"boot/initrd.img-7.3.4": {}, "boot/initramfs-7.2.img": {}, "boot/initrd-7.1": {Mode: fs.ModeDir}}
	for release, want := range map[string]string{"7.3.4": "/boot/initrd.img-7.3.4", "7.2": "/boot/initramfs-7.2.img", "7.1": "", "": "", "../x": ""} {
		if got := neighbour(root, release); got != want {
			t.Errorf("%s: %q", release, got)
		}
	}
}

func TestExitrd(t *testing.T) {
	for _, test := range []struct {
		what  string
		files map[string]os.FileMode
		link  string
		want  Exitrd // with the directory left out of Reason
	}{
		{"none", nil, "", Exitrd{}},
		{"not a program", map[string]os.FileMode{"shutdown": 0o644}, "", Exitrd{}},
		{"dracut's", map[string]os.FileMode{"shutdown": 0o755, "usr/lib/systemd/libsystemd-shared-262.so": 0o644}, "", Exitrd{Reason: "/shutdown"}},
		{"dracut's to come", map[string]os.FileMode{".need_shutdown": 0o644}, "", Exitrd{Reason: "/.need_shutdown, by which dracut makes one"}},
		{"systemd's", map[string]os.FileMode{"usr/lib/systemd/systemd-shutdown": 0o755, "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-262.so": 0o644},
			"usr/lib/systemd/systemd-shutdown", Exitrd{"/shutdown", 262}},
	} {
		dir := t.TempDir()
		for file, mode := range test.files {
			file = filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, nil, mode); err != nil {
				t.Fatal(err)
			}
		}
		if test.link != "" {
			if err := os.Symlink(test.link, filepath.Join(dir, "shutdown")); err != nil {
				t.Fatal(err)
			}
		}
		got, err := findExitrd(t.Context(), dir)
		got.Reason = strings.TrimPrefix(got.Reason, dir)
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.what, got, err, test.want)
		}
	}
}

func TestMemory(t *testing.T) {
	for text, want := range map[string]Memory{
		"MemTotal:  9 kB\nMemAvailable:    1000 kB\nCmaFree:     300 kB\n": {700 << 10, 300 << 10},
		"MemAvailable:    1000 kB":          {1000 << 10, 0},
		"MemAvailable: 1 kB\nCmaFree: 2 kB": {0, 2 << 10},
	} {
		if got, err := parseMemory(text); got != want || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "CmaFree: 1 kB", "MemAvailable: x kB", "MemAvailable: 99999999999999999 kB"} {
		if got, err := parseMemory(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if m, err := memory(); err != nil || m.Available == 0 {
		t.Errorf("here: %+v, %v", m, err)
	}
}

func TestSlicePath(t *testing.T) {
	for slice, want := range map[string]string{"system.slice": "/system.slice", "-.slice": "/", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "": "/"} {
		if got := slicePath(slice); got != want {
			t.Errorf("%s: %s", slice, got)
		}
	}
}

// TestMemfds tells one of huge pages from others, where there are huge pages.
func TestMemfds(t *testing.T) {
	ordinary, err := memfdDevice()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("plain", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	huge, hugeErr := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if hugeErr == nil {
		defer unix.Close(huge)
	} else {
		t.Logf("this kernel has no huge pages: %v", hugeErr)
	}
	files, err := memfds(os.Getpid(), ordinary)
	if err != nil {
		t.Fatal(err)
	}
	hugeSeen := false
	plainSeen := false
	for _, f := range files {
		hugeSeen = hugeSeen || f.Huge
		if f == (File{Dev: st.Dev, Inode: st.Ino, Size: 5000, Allocated: uint64(st.Blocks) * 512}) {
			plainSeen = true
		}
	}
	if !plainSeen || hugeSeen != (hugeErr == nil) {
		t.Errorf("%+v", files)
	}
}
