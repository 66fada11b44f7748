// SPDX-License-Identifier: MIT

// Package cache keeps what took long to make. An entry is a directory that appears whole or not at
// all and never changes afterwards, so whoever finds one needs no lock. What went into it is in its
// name. Deleting any of it is safe while no hfvm runs.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Cache is a directory, and the terminal or file that is told what is being made.
type Cache struct {
	Dir  string
	Tell *os.File
}

// Open finds the user's cache.
func Open(tell *os.File) (*Cache, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(base, "holdfast")
	return &Cache{Dir: dir, Tell: tell}, os.MkdirAll(dir, 0o755)
}

// Key is the short hash of all that went into an entry and is too long for its name.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// Entry is the directory of the entry called name ("kind/key"). If there is none, build makes it in
// the directory that it is given, while everybody else who wants it waits.
func (c *Cache) Entry(ctx context.Context, name string, build func(dir string, log *Log) error) (string, error) {
	dir := filepath.Join(c.Dir, name)
	if there, err := exists(dir); there || err != nil {
		return dir, err
	}
	unlock, err := c.Lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if there, err := exists(dir); there || err != nil {
		return dir, err
	}
	log, err := c.NewLog(name)
	if err != nil {
		return "", err
	}
	defer log.Close()
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return "", err
	}
	if err := build(part, log); err != nil {
		return "", errors.Join(err, os.RemoveAll(part))
	}
	return dir, os.Rename(part, dir)
}

// Lock makes other processes that lock the same name wait.
func (c *Cache) Lock(ctx context.Context, name string) (unlock func(), err error) {
	dir := filepath.Join(c.Dir, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, strings.ReplaceAll(name, "/", "-")), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		fmt.Fprintf(c.Tell, "hfvm: waiting for another hfvm, which is making %s\n", name)
		locked := make(chan error, 1)
		go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
		select {
		case err = <-locked:
		case <-ctx.Done():
			// The goroutine and its descriptor stay until the process ends, which is now.
			return nil, ctx.Err()
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
