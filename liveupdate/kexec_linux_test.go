// SPDX-License-Identifier: MIT

package liveupdate

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/luosim"
)

// Tests on two kernels. On real ones, the script test/vm/liveupdate.sh runs TestAcrossKexec once in each boot.

// What the first kernel puts into the session "across" for the second.
var crossing = []struct {
	what   string
	token  uint64
	size   int
	offset int64 // the file's position
	seals  int
}{
	{what: "small", token: 0, size: 11},
	{what: "empty", token: math.MaxUint64, size: 0},
	{what: "with seals and a position", token: 1, size: 1<<20 + 123, offset: 4711, seals: unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE},
	{what: "positioned at its end", token: 1 << 63, size: 4096, offset: 4096},
}

var longName = strings.Repeat("\xfe", MaxName)

// content is the same in both kernels.
func content(token uint64, size int) []byte {
	var seed [32]byte
	copy(seed[:], strconv.FormatUint(token, 16))
	b := make([]byte, size)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// crossed is set once the sessions of the first kernel are used up, as with -count.
var crossed bool

func TestAcrossKexec(t *testing.T) {
	needKernel(t)
	boot := os.Getenv("HFVM_BOOT")
	if luosim.Boot() > 0 {
		boot = strconv.Itoa(luosim.Boot())
	}
	switch boot {
	case "1":
		if luosim.Boot() > 0 {
			loadAnything(t)
		}
		beforeKexec(t)
	case "2":
		if crossed {
			t.Skip("what came over was taken by the first run in this boot")
		}
		crossed = true
		t.Run("session and files", afterKexec)
		t.Run("files that nobody wants", finishUnretrieved)
		t.Run("closing finishes", closeUnretrieved)
		t.Run("file lost for want of memory", loseFile)
	default:
		t.Fatalf("HFVM_BOOT is %q; `make test` runs this test in the first and second boot of a VM", boot)
	}
}

// loadAnything is enough for the emulated kernel.
func loadAnything(t *testing.T) {
	t.Helper()
	if err := unix.KexecFileLoad(int(memfd(t, "kernel").Fd()), -1, "", unix.KEXEC_FILE_NO_INITRAMFS); err != nil {
		t.Fatal(err)
	}
}

func beforeKexec(t *testing.T) {
	if loaded, err := os.ReadFile("/sys/kernel/kexec_loaded"); err != nil || strings.TrimSpace(string(loaded)) != "1" {
		t.Fatalf("no kernel to go to is loaded: kexec_loaded is %q (%v)", loaded, err)
	}
	across := create(t, "across")
	for _, c := range crossing {
		f := memfd(t, string(content(c.token, c.size)))
		if _, err := f.Seek(c.offset, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, c.seals); err != nil {
			t.Fatal(err)
		}
		if err := across.Preserve(c.token, f); err != nil {
			t.Fatal(err)
		}
	}
	// What is written after Preserve crosses too, and so does a file that only the session holds.
	late := memfd(t, "early")
	if err := across.Preserve(2, late); err != nil {
		t.Fatal(err)
	}
	if _, err := late.WriteAt([]byte("later"), 0); err != nil {
		t.Fatal(err)
	}
	late.Close()

	for _, name := range []string{longName, "unwanted", "closing"} {
		if err := create(t, name).Preserve(1, memfd(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	create(t, "empty")
	create(t, "either way")
	if err := create(t, "too big").Preserve(1, memfd(t, strings.Repeat("x", 64<<20))); err != nil {
		t.Fatal(err)
	}
	create(t, "closed before").Close()

	unix.Sync()
	t.Fatalf("reboot(KEXEC) came back: %v", unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC))
}

// retrieve gets an incoming session that is closed when the test ends.
func retrieve(t *testing.T, name string) *Session {
	t.Helper()
	s, err := Device{}.Retrieve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if s.Name() != name {
		t.Errorf("retrieved %q, got %q", name, s.Name())
	}
	wantDirection(t, s, Incoming)
	return s
}

// retrieveFile gets a file that is closed when the test ends.
func retrieveFile(t *testing.T, s *Session, token uint64) *os.File {
	t.Helper()
	f, err := s.Retrieve(token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantContent(t *testing.T, what string, f *os.File, want []byte) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes came over (%v), which are not the %d that were put in", what, len(got), err, len(want))
	}
}

func afterKexec(t *testing.T) {
	// The same name again, at once, does not disturb the incoming one.
	again := create(t, "across")
	s := retrieve(t, "across")
	_, err := Device{}.Retrieve(t.Context(), "across")
	wantError(t, "retrieving a session twice", err, ErrAlreadyRetrieved)
	_, err = Device{}.Retrieve(t.Context(), "closed before")
	wantError(t, "a session closed before the kexec", err, ErrNoSuchSession)
	wantDirection(t, again, Outgoing)

	for _, c := range crossing {
		f := retrieveFile(t, s, c.token)
		wantContent(t, c.what, f, content(c.token, c.size))
		if offset, err := f.Seek(0, io.SeekCurrent); offset != c.offset || err != nil {
			t.Errorf("%s: the position is %d (%v), was %d", c.what, offset, err, c.offset)
		}
		if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); seals != c.seals || err != nil {
			t.Errorf("%s: the seals are %#x (%v), were %#x", c.what, seals, err, c.seals)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: it is not close-on-exec (%v)", c.what, err)
		}
	}
	late := retrieveFile(t, s, 2)
	wantContent(t, "written after Preserve", late, []byte("later"))
	// A second time it is the same open file.
	twin := retrieveFile(t, s, 2)
	if _, err := twin.Seek(3, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if offset, err := late.Seek(0, io.SeekCurrent); offset != 3 || err != nil {
		t.Errorf("retrieved twice, its position moved to 3 by one is %d (%v) for the other", offset, err)
	}
	_, err = s.Retrieve(3)
	wantError(t, "a token that nothing was preserved under", err, ErrNoSuchToken)
	wantError(t, "preserving in an incoming session", s.Preserve(3, memfd(t, "x")), ErrWrongSide)
	wantError(t, "preserving before Finish", again.Preserve(2, late), ErrAlreadyPreserved)

	for range 2 {
		if err := s.Finish(); err != nil {
			t.Errorf("Finish: %v", err)
		}
	}
	_, err = s.Retrieve(2)
	wantError(t, "a token after Finish", err, ErrNoSuchToken)
	wantDirection(t, s, Incoming)
	wantContent(t, "after Finish", late, []byte("later"))
	if err := again.Preserve(2, late); err != nil {
		t.Errorf("preserving after Finish: %v", err)
	}

	_, err = Device{}.Retrieve(t.Context(), "across")
	wantError(t, "a finished session that is open", err, ErrAlreadyRetrieved)
	s.Close()
	_, err = Device{}.Retrieve(t.Context(), "across")
	wantError(t, "a finished session that is closed", err, ErrNoSuchSession)

	long := retrieve(t, longName)
	wantContent(t, "in the session with the longest name", retrieveFile(t, long, 1), []byte(longName))
	raw := long.Disown()
	if long, err = FromFD(raw); err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if long.Name() != longName {
		t.Errorf("got %q, want %q", long.Name(), longName)
	}
	wantDirection(t, long, Incoming)

	either, direction, err := Device{}.RetrieveOrCreate(t.Context(), "either way")
	if err != nil || direction != Incoming {
		t.Fatalf("RetrieveOrCreate: %v, %v", direction, err)
	}
	defer either.Close()
	second, direction, err := Device{}.RetrieveOrCreate(t.Context(), "either way")
	if err != nil || direction != Outgoing {
		t.Fatalf("RetrieveOrCreate of what was retrieved: %v, %v", direction, err)
	}
	second.Close()

	if err := retrieve(t, "empty").Finish(); err != nil {
		t.Errorf("finishing a session without files: %v", err)
	}
}

func finishUnretrieved(t *testing.T) {
	s := retrieve(t, "unwanted")
	if err := s.Finish(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Retrieve(1)
	wantError(t, "its file", err, ErrNoSuchToken)
}

func closeUnretrieved(t *testing.T) {
	s := retrieve(t, "closing")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Device{}.Retrieve(t.Context(), "closing")
	wantError(t, "after Close", err, ErrNoSuchSession)
}

// A process whose cgroup has too little room is killed while it retrieves, and the file is gone.
func loseFile(t *testing.T) {
	const inChild = "HOLDFAST_RETRIEVE"
	if os.Getenv(inChild) != "" {
		s, err := FromFD(3)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Retrieve(1)
		wantError(t, "in the cgroup", err, ErrNoMemory)
		return
	}

	needReal(t, "nobody is charged for an emulated file")
	s := retrieve(t, "too big")
	root := t.TempDir()
	if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	small := filepath.Join(root, "small")
	write := func(path, value string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "cgroup.subtree_control"), "+memory")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(small)
	write(filepath.Join(small, "memory.max"), "32M")
	cgroup, err := os.Open(small)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()

	dup, err := s.Dup()
	if err != nil {
		t.Fatal(err)
	}
	file := dup.File()
	defer file.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAcrossKexec$/^file_lost")
	cmd.Env = append(os.Environ(), inChild+"=1")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; err != nil && !killed {
		t.Fatalf("in the cgroup: %v\n%s", err, out)
	}

	for range 2 {
		_, err := s.Retrieve(1)
		wantError(t, "with room enough", err, ErrNoMemory)
		wantError(t, "with room enough", err, ErrFileLost)
	}
	wantDirection(t, s, Incoming)
	if err := s.Finish(); err != nil {
		t.Errorf("Finish: %v", err)
	}
}
