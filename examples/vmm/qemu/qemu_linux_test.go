// SPDX-License-Identifier: MIT

package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// kernelVariable names the bzImage that a machine runs in tests, such as "hfvm build 7.2" makes.
const kernelVariable = "VMM_KERNEL"

var said = regexp.MustCompile(`tick (\d+) word ([0-9a-f]+) (ram .*?)\r?\n`)

// tick waits until the machine has said more than n ticks, and returns the last.
func tick(t *testing.T, ctx context.Context, console string, n int, m *Machine) (int, string) {
	t.Helper()
	for {
		data, err := os.ReadFile(console)
		if err != nil {
			t.Fatal(err)
		}
		all := said.FindAllSubmatch(data, -1)
		for i, one := range all {
			if string(one[1]) != strconv.Itoa(i+1) || string(one[2]) != string(all[0][2]) || string(one[3]) != "ram 8 MiB ok" {
				t.Fatalf("tick %d: %s", i+1, one[0])
			}
		}
		if len(all) > 0 {
			last := all[len(all)-1]
			if got, _ := strconv.Atoi(string(last[1])); got > n {
				return got, string(last[2])
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-m.Done():
			t.Fatalf("QEMU has ended: %v\n%s", m.err, data)
		case <-ctx.Done():
			t.Fatalf("no tick after %d:\n%s", n, data)
		}
	}
}

// TestMachineCrossesAnUpdate saves a machine in one boot and has it go on in the next, and again within that.
func TestMachineCrossesAnUpdate(t *testing.T) {
	kernel := os.Getenv(kernelVariable)
	if kernel == "" {
		t.Skipf("$%s names no kernel for the machine", kernelVariable)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	dir := os.Getenv("VMM_TEST_DIR")
	if dir == "" {
		dir = t.TempDir()
		t.Setenv("VMM_TEST_DIR", dir)
		build := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/init", "../guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		init, err := os.ReadFile(dir + "/init")
		if err != nil {
			t.Fatal(err)
		}
		var initrd bytes.Buffer
		if err := WriteInitrd(&initrd, init); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/initrd", initrd.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "console")
	config := func(t *testing.T) Config {
		console, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { console.Close() })
		return Config{Kernel: kernel, Initrd: dir + "/initrd", Append: "console=ttyS0 panic=-1 quiet no_timer_check FILL_MIB=8", Console: console, Log: os.Stderr}
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		ram, err := NewMemory("ram", 96<<20)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Start(ctx, config(t), ram)
		if err != nil {
			t.Fatal(err)
		}
		n, word := tick(t, ctx, path, 1, m)

		session, err := liveupdate.Device{}.Create(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		file, err := NewMemory("state", StateSize)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(session.Preserve(1, ram), session.Preserve(2, file)); err != nil {
			t.Fatal(err)
		}
		n, _ = tick(t, ctx, path, n, m) // the RAM is preserved while the machine runs
		begin := time.Now()
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		stopped := time.Since(begin)
		state, err := m.Save(ctx, StateMax)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteState(file, state); err != nil {
			t.Fatal(err)
		}
		t.Logf("tick %d, word %s; stopped in %v, %d bytes saved in %v", n, word, stopped, len(state), time.Since(begin)-stopped)
		m.Kill()
		if err := os.WriteFile(dir+"/word", []byte(word), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatal(luosim.Kexec())
	}, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		session, err := liveupdate.Device{}.Retrieve(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		ram, ramErr := session.Retrieve(1)
		file, fileErr := session.Retrieve(2)
		if err := errors.Join(ramErr, fileErr); err != nil {
			t.Fatal(err)
		}
		state, err := ReadState(file)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(dir + "/word")
		if err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(path)
		all := said.FindAllSubmatch(data, -1)
		before, _ := strconv.Atoi(string(all[len(all)-1][1]))
		begin := time.Now()
		m, err := Restore(ctx, config(t), ram, state)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(SpendState(file), m.Continue(ctx)); err != nil {
			t.Fatal(err)
		}
		t.Logf("restored in %v", time.Since(begin))
		n, word := tick(t, ctx, path, before+1, m)
		if word != string(want) {
			t.Errorf("the machine's word is %s, and was %s", word, want)
		}
		t.Logf("tick %d after %d, word %s", n, before, word)

		// A save that was called off leaves it going on, and so does one of a state that is too large.
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Stands(ctx); err != nil {
			t.Error(err)
		}
		if _, err := m.Save(ctx, 1000); err == nil || !strings.Contains(err.Error(), "there is room for 1000") {
			t.Errorf("saved into too little room: %v", err)
		}
		if err := m.Continue(ctx); err != nil {
			t.Fatal(err)
		}
		n, _ = tick(t, ctx, path, n, m)
		if err := m.Stands(ctx); err == nil {
			t.Error("a machine that runs stands still")
		}
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Save(ctx, StateMax); err != nil {
			t.Fatal(err)
		}
		if err := m.Continue(ctx); err != nil {
			t.Fatal(err)
		}
		tick(t, ctx, path, n, m)
		if _, err := ReadState(file); !errors.Is(err, ErrSpent) {
			t.Errorf("the state of a machine that runs: %v", err)
		}
		m.Kill()
	})
}
