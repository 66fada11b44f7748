// SPDX-License-Identifier: MIT

package qemu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestState(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(StateSize); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(f); !errors.Is(err, ErrSpent) {
		t.Errorf("of a new file: %v", err)
	}
	state := bytes.Repeat([]byte("state "), 1000)
	if err := WriteState(f, state); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadState(f); err != nil || !bytes.Equal(got, state) {
		t.Errorf("%d bytes of %d: %v", len(got), len(state), err)
	}
	if _, err := f.WriteAt([]byte{1}, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(f); !errors.Is(err, ErrNotWhole) {
		t.Errorf("with a byte changed: %v", err)
	}
	if err := WriteState(f, make([]byte, StateSize)); err == nil {
		t.Error("a state that is too big was written")
	}
	if err := SpendState(f); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(f); !errors.Is(err, ErrSpent) {
		t.Errorf("once spent: %v", err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() != StateSize {
		t.Errorf("its size has changed: %d, %v", info.Size(), err)
	}
}
