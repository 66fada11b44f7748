// SPDX-License-Identifier: MIT

package run

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMemoryOnTheCommandLine(t *testing.T) {
	for s, want := range map[string]Memory{
		"ram=4096":            {"ram", 4096, ""},
		"ram=64M:/run/x/ram":  {"ram", 64 << 20, "/run/x/ram"},
		"Ram_2=1G:/run/x:1/r": {"Ram_2", 1 << 30, "/run/x:1/r"},
		"ram=1:/run//x/../y/": {"ram", 1, "/run/y"},
	} {
		if got, err := ParseMemory(s); got != want || err != nil {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for s, says := range map[string]string{
		"ram": "NAME=SIZE", "=1": "1 to 32", "2=1": "first a letter", "a-b=1": "letters", "ram=": "SIZE", "ram=0": "SIZE", "ram=-1": "SIZE",
		"ram=1X": "SIZE", "ram=9000000T": "SIZE", "ram=1:x": "must begin with /", "ram=1:": "must begin with /",
	} {
		if _, err := ParseMemory(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", s, err, says)
		}
	}
	if f, err := ParseFile("meta:/run//x/m"); f != (File{"meta", "/run/x/m"}) || err != nil {
		t.Error(f, err)
	}
	for _, s := range []string{"meta", "meta:x", ":/x"} {
		if _, err := ParseFile(s); err == nil {
			t.Errorf("%s was taken", s)
		}
	}
}

func TestNothingTwice(t *testing.T) {
	for says, c := range map[string]struct {
		memory []Memory
		files  []File
	}{
		"no --mem": {},
		"--mem A":  {[]Memory{{Name: "a"}, {Name: "A"}}, nil},
		"/x":       {[]Memory{{Name: "a", Path: "/x"}}, []File{{"f", "/x"}}},
		"--file f": {[]Memory{{Name: "a"}}, []File{{"f", "/x"}, {"f", "/y"}}},
	} {
		if err := Check(c.memory, c.files); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

func TestTheCommandFindsItsMemory(t *testing.T) {
	memory := []Memory{{Name: "ram"}, {Name: "log"}}
	if got := expand([]string{"qemu", "mem-path={ram},x={log}", "{other}"}, memory); !slices.Equal(got, []string{"qemu", "mem-path=/proc/self/fd/3,x=/proc/self/fd/4", "{other}"}) {
		t.Error(got)
	}
	if got := variables(memory, "update", 7); !slices.Equal(got, []string{"HOLDFAST_START=update", "HOLDFAST_GENERATION=7", "HOLDFAST_MEM_RAM=/proc/self/fd/3", "HOLDFAST_MEM_LOG=/proc/self/fd/4"}) {
		t.Error(got)
	}
}

func TestARecordTellsWholeFromHalf(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "record"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(recordSize)
	if _, err := readRecord(f); !errors.Is(err, errInUse) {
		t.Errorf("a new one: %v", err)
	}
	if err := writeRecord(f, record{Generation: 7, Memory: []recordFile{{"ram", 4096}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := readRecord(f); err != nil || r.Generation != 7 || len(r.Memory) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	var half *halfError
	f.WriteAt([]byte("8"), recordHead+14)
	if _, err := readRecord(f); !errors.As(err, &half) {
		t.Errorf("a record that was changed: %v", err)
	}
	f.WriteAt([]byte{0xff}, recordHead-1)
	if _, err := readRecord(f); !errors.As(err, &half) {
		t.Errorf("a record of an endless length: %v", err)
	}
	if err := takeBack(f); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(f); !errors.Is(err, errInUse) {
		t.Errorf("one taken back: %v", err)
	}
}
