// SPDX-License-Identifier: MIT

package hfvm

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
)

// agent is the path of the binary that goes into the guest: this one, if it is static. One that "go
// run" or "go build" made with cgo is not; then a static one is built from the same source.
func agent(ctx context.Context, c *cache.Cache) (string, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	f, err := elf.NewFile(self)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return os.Executable()
	}
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(here), "../../cmd/hfvm")
	if _, err := os.Stat(source); err != nil {
		return "", fmt.Errorf("this hfvm is no static binary, so it can't go into a guest; build it with CGO_ENABLED=0")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, self); err != nil {
		return "", err
	}
	dir, err := c.Entry(ctx, "agents/"+hex.EncodeToString(sum.Sum(nil))[:12], func(dir string, log *cache.Log) error {
		return log.Step(ctx, "building the agent for guests (go build)", func() error {
			cmd := log.Command(ctx, "go", "build", "-C", source, "-o", filepath.Join(dir, "agent"), ".")
			cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
			return cmd.Run()
		})
	})
	return filepath.Join(dir, "agent"), err
}
