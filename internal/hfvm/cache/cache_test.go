// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func open(t *testing.T) (*Cache, func() string) {
	tell, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tell.Close() })
	return &Cache{Dir: t.TempDir(), Tell: tell}, func() string {
		text, err := os.ReadFile(tell.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func TestManyWantOneEntryAndItIsMadeOnce(t *testing.T) {
	c, _ := open(t)
	var made atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := c.Entry(context.Background(), "kind/key", func(dir string, _ *Log) error {
				made.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644)
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

func TestWhatFailedIsNoEntry(t *testing.T) {
	c, told := open(t)
	broken := errors.New("broken")
	_, err := c.Entry(context.Background(), "kind/key", func(_ string, log *Log) error {
		return log.Step(context.Background(), "the step", func() error {
			return errors.Join(broken, log.Command(context.Background(), "sh", "-c", "echo the reason >&2; exit 1").Run())
		})
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "the step") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(told(), "the reason") {
		t.Errorf("the user isn't shown the end of the log, only %q", told())
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "kind/*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if _, err := c.Entry(context.Background(), "kind/key", func(string, *Log) error { return nil }); err != nil {
		t.Errorf("the next try: %v", err)
	}
}

func TestWaitingForALockEnds(t *testing.T) {
	c, _ := open(t)
	unlock, err := c.Lock(context.Background(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Lock(ctx, "a/b"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestKeysTellPartsApart(t *testing.T) {
	if Key("ab", "c") == Key("a", "bc") {
		t.Error("parts run together")
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		text  string
		lines int
		want  string
	}{{"a\nb\nc\n", 2, "b\nc"}, {"a\n", 5, "a"}, {"", 3, ""}} {
		if got := string(Tail([]byte(c.text), c.lines)); got != c.want {
			t.Errorf("Tail(%q, %d) = %q, want %q", c.text, c.lines, got, c.want)
		}
	}
}
