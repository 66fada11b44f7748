// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/test/memcached"
)

// showMemcached runs memcached.sh, on real kernels and systemd in QEMU, and has the values that memcached is to have.
func showMemcached(ctx context.Context) error {
	fmt.Printf("Debian's memcached runs in a virtual machine. %d random values are drawn here, outside of it: nobody in there has them\n"+
		"but memcached. The machine's kernel is changed under it, by holdfast update and then by systemctl kexec alone.\n\n", memcached.Keys)
	port, err := memcached.FreePort()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := start(ctx, func(ctx context.Context, dir string) (*exec.Cmd, error) { return cacheHost(ctx, dir, port) })
	if err != nil {
		return err
	}
	defer m.stop()
	lines := m.told(ctx)
	type outcome struct {
		memcached.Stop
		err error
	}
	outcomes, said := make(chan outcome), make(chan string)
	var stops []memcached.Stop
	kernels := map[string]bool{}
	doing, changed := "the root file system and the kernels are made, where they aren't there yet, and the machine boots", time.Now()
	now := func(text string) { doing, changed = text, time.Now() }
	quiet := time.NewTicker(silence)
	defer quiet.Stop()
	for lines != nil {
		var line string
		var open bool
		select {
		case line, open = <-lines:
			if !open {
				lines = nil
			}
		case line = <-said:
			fmt.Printf("  %s\n", line)
			quiet.Reset(silence)
			continue
		case o := <-outcomes:
			if o.err != nil {
				return o.err
			}
			stops = append(stops, o.Stop)
			fmt.Println()
			now("the machine gets ready for what comes next")
			continue
		case <-quiet.C:
			fmt.Printf("  … %s (%.0f s)\n", doing, time.Since(changed).Seconds())
			continue
		}
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "kernel":
			fmt.Printf("The machine runs kernel %s\n", value)
			kernels[value] = true
			now("memcached comes up")
		case "runs":
			fmt.Printf("  %s\n", value)
		case "update":
			fmt.Println(value)
			now("the machine stops and starts the next kernel")
		case "ready":
			now("values go in, and are asked for")
			go func() {
				stop, err := memcached.Over(ctx, "127.0.0.1:"+port, value, func(format string, args ...any) {
					select {
					case said <- fmt.Sprintf(format, args...):
					case <-ctx.Done():
					}
				})
				select {
				case outcomes <- outcome{stop, err}:
				case <-ctx.Done():
				}
			}()
		}
	}
	if err := m.cmd.Wait(); ctx.Err() != nil {
		return errors.New("stopped")
	} else if err != nil {
		return fmt.Errorf("the machine did not get to the end: %w", err)
	}
	fmt.Print(memcached.Table(stops))
	return judge(stops, len(kernels))
}

// judge makes sure that all was seen: every key after the update, and none without Holdfast.
func judge(stops []memcached.Stop, kernels int) error {
	if len(stops) != 2 || kernels != 2 {
		return fmt.Errorf("there were %d stops of memcached and %d kernels, and not 2 of each", len(stops), kernels)
	}
	for i, want := range []memcached.Check{{Hits: memcached.Keys}, {Misses: memcached.Keys}} {
		if stops[i].After != want {
			return fmt.Errorf("%s: %v, and not %v", memcached.Ways[stops[i].Way], stops[i].After, want)
		}
	}
	return nil
}

// cacheHost is the machine, with memcached's port led to one here.
func cacheHost(ctx context.Context, dir, port string) (*exec.Cmd, error) {
	install := exec.CommandContext(ctx, "make", "-s", "install", "DESTDIR="+dir)
	install.Stderr = os.Stderr
	if err := install.Run(); err != nil {
		return nil, fmt.Errorf("make install: %w", err)
	}
	return exec.CommandContext(ctx, "bin/hfvm", "run", "--kernel", "7.2", "--next-kernel", "7.3", "--os", "forky", "--package", "memcached",
		"--memory", "2048", "--quiet-console", "--add", dir+":/", "--forward", port+":11211", "--timeout", "600", "demo/memcached.sh"), nil
}
