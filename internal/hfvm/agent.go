// SPDX-License-Identifier: MIT

package hfvm

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
)

// agent is the path of the binary that goes into the guest: this one, if it is static. One that "go
// run" or "go build" made with cgo is not; then a static one is built from the same source.
func agent(ctx context.Context, c *cache.Cache) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := elf.Open(self)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return self, nil
	}
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(here), "../../cmd/hfvm")
	if _, err := os.Stat(source); err != nil {
		return "", fmt.Errorf("%s is no static binary, so it can't go into a guest; build it with CGO_ENABLED=0", self)
	}
	// The go command has a cache of its own and knows what has changed.
	path := filepath.Join(c.Dir, "agent")
	unlock, err := c.Lock(ctx, "agent")
	if err != nil {
		return "", err
	}
	defer unlock()
	log, err := c.NewLog("agent")
	if err != nil {
		return "", err
	}
	defer log.Close()
	cmd := log.Command(ctx, "go", "build", "-C", source, "-o", path, ".")
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building a static hfvm for the guest (see %s): %w", log.Name(), err)
	}
	return path, nil
}
