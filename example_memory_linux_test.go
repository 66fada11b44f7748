// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

var _ = keptMemory // shown in README.md

// keptMemory is 64 MiB: new at the first start, and the same at every later one, whatever lay in between.
func keptMemory(ctx context.Context) (*os.File, error) {
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()

	restored, err := holdfast.Restored(ctx, client)
	if err != nil { // don't start afresh: something is there
		return nil, err
	}
	if len(restored) > 0 { // after a crash, a restart or an update
		old := restored[0]
		files, err := old.Retrieve()
		if err != nil {
			return nil, err
		}
		session, err := holdfast.Renew(ctx, client, old) // ready for the next update
		if err != nil {
			return nil, err
		}
		return files["data"], session.Close()
	}

	fd, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	data := os.NewFile(uintptr(fd), "data")
	if err := data.Truncate(64 << 20); err != nil { // once preserved, it can't be resized
		return nil, err
	}
	session, err := client.Acquire(ctx, "cache")
	if err != nil {
		return nil, err
	}
	defer session.Close() // the fd store has its own
	if err := session.Preserve("data", data); err != nil {
		return nil, err
	}
	return data, session.Store(ctx)
}
