// SPDX-License-Identifier: MIT

// Keep runs memcached on a memfd that lies in its unit's fd store and nowhere else: what systemd 261 and newer carries over a kexec
// by itself, when everything has stopped. Holdfast is measured beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/systemd"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "keep:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: keep MIB DIRECTORY [OPTIONS OF MEMCACHED]")
	}
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	mem, meta := filepath.Join(args[1], "mem"), filepath.Join(args[1], "mem.meta")
	kept := map[string]*os.File{}
	for _, l := range systemd.ListenFDs() {
		kept[l.Name] = os.NewFile(uintptr(l.Raw), l.Name)
	}
	if f := kept["meta"]; f != nil {
		data, err := readAll(f)
		if err != nil {
			return err
		}
		if err := errors.Join(os.WriteFile(meta, data, 0o600), systemd.Notify("FDSTOREREMOVE=1\nFDNAME=meta")); err != nil {
			return err
		}
	}
	memory := kept["mem"]
	if memory == nil {
		if memory, err = store("mem", int64(mib)<<20, nil); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/self/fd/3", mem); err != nil {
		return err
	}
	defer os.Remove(mem)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	cmd := exec.Command("/usr/bin/memcached", append([]string{"-m", args[0], "-e", mem}, args[2:]...)...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{memory}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := systemd.Notify("READY=1"); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return fmt.Errorf("memcached has ended: %v", err)
	case <-term:
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGUSR1), <-ended); err != nil {
		return fmt.Errorf("stopping memcached: %w", err)
	}
	data, err := os.ReadFile(meta)
	if err != nil {
		return err
	}
	_, err = store("meta", int64(len(data)), data)
	return err
}

func readAll(f *os.File) ([]byte, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, stat.Size())
	_, err = f.ReadAt(data, 0)
	return data, err
}

// store makes a memfd and has PID 1 keep it.
func store(name string, size int64, data []byte) (*os.File, error) {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(raw), name)
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return f, errors.Join(systemd.Notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, raw), systemd.Barrier(ctx))
}
