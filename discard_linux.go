// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Discard gives up what came back: it is taken out of the fd store of one's own unit, or of the orchestrator's keeping, and
// will not come back again. Files that were retrieved stay with whoever has them open, and can be put into another session.
// c is closed then; after an error, Discard may be called again.
//
// It is for memory that nothing in a session is to fit to while the program writes to it. [Renew] instead keeps it.
func (c *Committed) Discard(ctx context.Context, client *Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wrap := func(err error) error { return fmt.Errorf("holdfast: discard %q: %w", c.manifest.Name, err) }
	if c.closed() {
		return wrap(os.ErrClosed)
	}
	if c.reclaimed {
		for _, direction := range []liveupdate.Direction{liveupdate.Outgoing, liveupdate.Incoming} {
			if err := client.release(ctx, c.manifest.Name, &direction); err != nil && !errors.Is(err, ErrNoSuchSession) {
				return err
			}
		}
	} else if err := removeFromStore(ctx, name.Kernel(c.manifest.Owner, c.manifest.Name)); err != nil {
		return wrap(err)
	}
	// The kernel refuses to preserve files again that are in a session of the previous kernel.
	for _, old := range []**liveupdate.Session{&c.incoming, &c.replaced} {
		if *old == nil {
			continue
		}
		if err := (*old).Finish(); err != nil {
			return wrap(err)
		}
		c.finished, *old = append(c.finished, *old), nil
	}
	c.close()
	return nil
}

// removeFromStore takes all that has a kernel name out of the fd store of this process's unit, sessions first: without
// one, nothing there promises anything.
func removeFromStore(ctx context.Context, kernelName string) error {
	store, err := systemd.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	entries, err := store.Entries(ctx)
	if err != nil {
		return err
	}
	var sessions, files []string
	for _, e := range entries {
		switch n, ours := fdname.Parse(e.Name); {
		case !ours || n.KernelName != kernelName || slices.Contains(files, e.Name) || slices.Contains(sessions, e.Name):
		case n.File == "":
			sessions = append(sessions, e.Name)
		default:
			files = append(files, e.Name)
		}
	}
	for _, name := range append(sessions, files...) {
		if err := store.Remove(name); err != nil {
			return err
		}
	}
	return systemd.Barrier(ctx)
}
