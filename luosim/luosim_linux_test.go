// SPDX-License-Identifier: MIT

package luosim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

func memfd(t *testing.T, content string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// carry retrieves the word of the previous boot and gives the next one a word.
func carry(t *testing.T, want, next string) {
	t.Helper()
	if want != "" {
		in, err := liveupdate.Device{}.Retrieve(t.Context(), "word")
		if err != nil {
			t.Fatal(err)
		}
		f, err := in.Retrieve(1)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		if err != nil || string(got) != want {
			t.Errorf("boot %d: got %q (%v), want %q", luosim.Boot(), got, err, want)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if next != "" {
		// Left open: what is closed doesn't go over.
		out, err := liveupdate.Device{}.Create(t.Context(), "word")
		if err != nil {
			t.Fatal(err)
		}
		keptFile = memfd(t, next)
		if err := out.Preserve(1, keptFile); err != nil {
			t.Fatal(err)
		}
		kept = out
	}
}

var (
	kept     *liveupdate.Session
	keptFile *os.File
)

func TestEachFunctionIsABoot(t *testing.T) {
	luosim.Run(t, luosim.Machine{},
		func(t *testing.T) { carry(t, "", "kelp") },
		func(t *testing.T) { carry(t, "kelp", "rock") },
		func(t *testing.T) { carry(t, "rock", "") })
}

// Each call's functions run in its own boots, and in no other's.
func TestTwoMachinesInOneTest(t *testing.T) {
	const variable = "LUOSIM_TEST_RAN"
	if luosim.Boot() == 0 {
		t.Setenv(variable, filepath.Join(t.TempDir(), "ran"))
	}
	ran := func(t *testing.T, word string) {
		t.Helper()
		f, err := os.OpenFile(os.Getenv(variable), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fmt.Fprintln(f, word, luosim.Boot()); err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range []string{"kelp", "rock"} {
		luosim.Run(t, luosim.Machine{},
			func(t *testing.T) { ran(t, word); carry(t, "", word) },
			func(t *testing.T) { ran(t, word); carry(t, word, "") })
	}
	if luosim.Boot() > 0 {
		return
	}
	if got, err := os.ReadFile(os.Getenv(variable)); err != nil || string(got) != "kelp 1\nkelp 2\nrock 1\nrock 2\n" {
		t.Errorf("what ran: %q, %v", got, err)
	}
}

// Whoever still runs, and writes to what is preserved, while others of the tree are killed already, must not make it
// look as if the dead had closed their sessions.
func TestWritersDuringTheKexec(t *testing.T) {
	write := func(t *testing.T) {
		for range 4 {
			cmd := exec.Command("sh", "-c", "while :; do echo x >&3; done")
			cmd.ExtraFiles = []*os.File{keptFile}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var boots []func(t *testing.T)
	for i := range 12 {
		boots = append(boots, func(t *testing.T) {
			before, after := "", "kelp"
			if i > 0 {
				before = "kelp"
			}
			carry(t, before, after)
			write(t)
		})
	}
	boots = append(boots, func(t *testing.T) { carry(t, "kelp", "") })
	luosim.Run(t, luosim.Machine{}, boots...)
}

func TestSubtest(t *testing.T) {
	t.Run("with a name (and more)", func(t *testing.T) {
		luosim.Run(t, luosim.Machine{},
			func(t *testing.T) { carry(t, "", "kelp") },
			func(t *testing.T) { carry(t, "kelp", "") })
	})
}

func TestFault(t *testing.T) {
	luosim.Run(t, luosim.Machine{Faults: []string{"retrieve=1@2"}},
		func(t *testing.T) { carry(t, "", "kelp") },
		func(t *testing.T) {
			in, err := liveupdate.Device{}.Retrieve(t.Context(), "word")
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := in.Retrieve(1); !errors.Is(err, liveupdate.ErrNoMemory) {
				t.Errorf("got %v", err)
			}
		})
}

func TestKernelWithoutGetName(t *testing.T) {
	luosim.Run(t, luosim.Machine{Kernel: "7.0"}, func(t *testing.T) {
		features, err := liveupdate.Device{}.Features(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if features.GetName {
			t.Error("there is a GET_NAME")
		}
	})
}

func command(script string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command("sh", "-c", script)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func TestAnyProgram(t *testing.T) {
	cmd, out := command("test -c /dev/liveupdate && echo boot $LUOSIM_BOOT; exit 3")
	err := luosim.Machine{}.Run(t.Context(), cmd)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || out.String() != "boot 1\n" {
		t.Errorf("got %v, %q", err, out)
	}
}

func TestContextEndsTheMachine(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd, _ := command("echo started; trap '' TERM INT; while :; do sleep 100; done")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd.Stdout = write
	done := make(chan error)
	go func() { done <- luosim.Machine{}.Run(ctx, cmd) }()
	first := make([]byte, 8)
	if _, err := io.ReadFull(read, first); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	write.Close()
	// Nobody has the other end any more: all processes are gone.
	if rest, err := io.ReadAll(read); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestWhatTheMachineCanNotDo(t *testing.T) {
	for text, m := range map[string]luosim.Machine{
		"no kernel \"6.1\"": {Kernel: "6.1"},
		"no fault \"rust\"": {Faults: []string{"rust"}},
	} {
		cmd, _ := command(":")
		if err := m.Run(t.Context(), cmd); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want it to say %q", err, text)
		}
	}
	if luosim.Boot() == 0 && luosim.Kexec() == nil {
		t.Error("Kexec worked on the real machine")
	}
}
