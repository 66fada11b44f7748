// SPDX-License-Identifier: MIT

package kexec

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/kimage/kimagetest"
)

func write[T []byte | string](t *testing.T, content T) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func isLoaded(t *testing.T, want bool) {
	t.Helper()
	if got, err := Loaded(); got != want || err != nil {
		t.Errorf("loaded: %v, %v; want %v", got, err, want)
	}
}

func TestLoadAndUnload(t *testing.T) {
	isLoaded(t, false)
	if err := Load(t.Context(), write(t, "kernel"), nil, "kho=on"); err != nil {
		t.Fatal(err)
	}
	isLoaded(t, true)
	if err := Load(t.Context(), write(t, "another"), write(t, "initrd"), ""); err != nil {
		t.Fatal(err)
	}
	isLoaded(t, true)
	for range 2 {
		if err := Unload(); err != nil {
			t.Fatal(err)
		}
		isLoaded(t, false)
	}
}

func TestNotLoaded(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Load(ended, write(t, "kernel"), nil, ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Load(t.Context(), write(t, "kernel"), nil, "a\x00b"); err == nil || !strings.Contains(err.Error(), "NUL") {
		t.Error(err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Load(t.Context(), dir, nil, ""); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Error(err)
	}
	closed := write(t, "kernel")
	closed.Close()
	if err := Load(t.Context(), closed, nil, ""); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	writer, err := os.OpenFile(filepath.Join(t.TempDir(), "x"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := Load(t.Context(), write(t, "kernel"), writer, ""); !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "loading the next kernel: kexec_file_load: ") {
		t.Error(err)
	}
	isLoaded(t, false)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for errno, want := range map[error]string{unix.EPERM: "CAP_SYS_BOOT", unix.ENOEXEC: "no image", unix.EADDRNOTAVAIL: "kho_scratch=", unix.EKEYREJECTED: "signature", unix.ENOSYS: "CONFIG_KEXEC_FILE"} {
		if err := (&Error{"loading the next kernel", errno}); !strings.Contains(err.Error(), want) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// TestLoadChecked: what is loaded is what was checked, or nothing is.
func TestLoadChecked(t *testing.T) {
	kernel, initrd := write(t, "a kernel"), write(t, "an initrd")
	refused := errors.New("refused")
	if err := LoadChecked(t.Context(), kernel, initrd, "kho=on", func() error { return refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	isLoaded(t, false)
	for _, file := range []*os.File{kernel, initrd} {
		err := LoadChecked(t.Context(), kernel, initrd, "kho=on", func() error { return os.WriteFile(file.Name(), []byte("another"), 0o600) })
		if err == nil || !strings.Contains(err.Error(), file.Name()+" was changed") {
			t.Error(err)
		}
		isLoaded(t, false)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := LoadChecked(ctx, kernel, nil, "kho=on", func() error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	isLoaded(t, false)
	if err := LoadChecked(t.Context(), kernel, initrd, "kho=on", func() error { return nil }); err != nil {
		t.Error(err)
	}
	isLoaded(t, true)
	if err := Unload(); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(kernel.Name(), 1<<40); err != nil {
		t.Skip("no sparse file of 1 TiB can be made here:", err)
	}
	if err := LoadChecked(t.Context(), kernel, nil, "kho=on", func() error { return nil }); err == nil || !strings.Contains(err.Error(), "more than 4 GiB") {
		t.Error(err)
	}
}

// TestTooLarge: a sparse file doesn't fill the memory.
func TestTooLarge(t *testing.T) {
	if f, err := memory(t.Context(), "initrd", 1<<20, strings.NewReader("x"), io.LimitReader(zeros{}, 1<<40)); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Error(f, err)
	}
	f, err := memory(t.Context(), "initrd", 4, strings.NewReader("ab"), strings.NewReader("cd"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); string(got) != "abcd" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	image := kimagetest.UKI(".linux", "a kernel", ".cmdline", "quiet")
	for _, size := range []int{8, 16} { // of the kernel, in memory and in the file
		binary.LittleEndian.PutUint32(image[64+24+size:], 3<<30)
	}
	sparse := write(t, image)
	if err := os.Truncate(sparse.Name(), 1<<40); err != nil {
		t.Skip("no sparse file of 1 TiB can be made here:", err)
	}
	if line, err := CommandLine(sparse); line != "quiet" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if err := Load(t.Context(), sparse, nil, ""); err == nil || !strings.Contains(err.Error(), "the linux in the image has 3072 MiB") {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestUnpack(t *testing.T) {
	parts, err := Unpack(t.Context(), write(t, kimagetest.UKI(".linux", "a kernel", ".initrd", "an initrd", ".cmdline", "root=/dev/vda\n")))
	if err != nil || parts == nil {
		t.Fatal(parts, err)
	}
	defer parts.Close()
	for f, want := range map[*os.File]string{parts.Linux: "a kernel", parts.Initrd: "an initrd"} {
		if got, err := io.ReadAll(f); string(got) != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		// Else the kernel would refuse it (ETXTBSY).
		if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EBADF) {
			t.Errorf("it can be written: %v", err)
		}
	}
	if parts.CommandLine != "root=/dev/vda" {
		t.Errorf("%q", parts.CommandLine)
	}
	if err := Load(t.Context(), write(t, kimagetest.UKI(".linux", "a kernel")), nil, ""); err != nil {
		t.Error(err)
	}
	isLoaded(t, true)
	if err := Unload(); err != nil {
		t.Error(err)
	}
	for _, other := range [][]byte{nil, []byte("x"), []byte("MZ"), []byte("MZ and no PE header"), kimagetest.UKI(".text", "x")} {
		if parts, err := Unpack(t.Context(), write(t, other)); parts != nil || err != nil {
			t.Errorf("%.20q: %v, %v", other, parts, err)
		}
	}
}

// TestAPipeIsNoEntry: nor is its other end waited for.
func TestAPipeIsNoEntry(t *testing.T) {
	dir := t.TempDir()
	entries := filepath.Join(dir, "boot/loader/entries")
	if err := os.MkdirAll(entries, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(entries, "x.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := Entries(os.DirFS(dir))
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "no file") {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it waits for somebody to write")
	}
}
