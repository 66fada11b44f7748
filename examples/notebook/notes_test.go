// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"strings"
	"testing"
)

func memory(t *testing.T) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNotesComeBackAsTheyWere(t *testing.T) {
	f := memory(t)
	n, err := newNotes(f)
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{"put word two words": "ok", "get none": "none", "put ": "error a key has 1 to 65535 bytes and a value at most 4194304", "sing": `error "sing" is none of put, get, sum, status`} {
		if got := n.answer(line, nil); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
	n.answer("put word three", nil)
	before := n.answer("sum", nil)

	again, err := openNotes(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.answer("get word", nil); got != "value three" {
		t.Error(got)
	}
	if after := again.answer("sum", nil); after != before || !strings.HasPrefix(after, "sum ") {
		t.Errorf("%q, then %q", before, after)
	}
}

func TestAnEntryThatWasNotFinishedIsNotThere(t *testing.T) {
	f := memory(t)
	n, _ := newNotes(f)
	n.put("first", []byte("1"))
	f.WriteAt([]byte("half an entry"), n.end)
	again, err := openNotes(f)
	if err != nil || len(again.values) != 1 {
		t.Errorf("%v, %v", again.values, err)
	}
}

func TestMemoryThatIsNoNotebook(t *testing.T) {
	f := memory(t)
	if _, err := openNotes(f); err == nil {
		t.Error("zeroes were taken for a notebook")
	}
	n, _ := newNotes(f)
	n.put("key", []byte("value"))
	f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, logStart+2) // the value's length
	if _, err := openNotes(f); err == nil {
		t.Error("an entry longer than the log was taken")
	}
}

func TestFull(t *testing.T) {
	n, _ := newNotes(memory(t))
	value := make([]byte, valueMax)
	for i := range size / valueMax {
		if err := n.put("key", value); (err != nil) != (i == size/valueMax-1) {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if err := n.put("small", []byte("still fits")); err != nil {
		t.Error(err)
	}
}
