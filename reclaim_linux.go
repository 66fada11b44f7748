// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// reclaimTimeout is for an orchestrator that doesn't answer at all. It is longer than it waits for the
// device and for PID 1.
const reclaimTimeout = 90 * time.Second

// Reclaim gets back by its name what the caller has committed, where no fd store hands it over (see [Restored]): what was
// parked, and, after an update, what only the kernel has until somebody asks. Next comes [Renew].
//
// [ErrNoSuchSession]: nothing was committed under this name, so this is the first start. A session without a manifest
// was never committed. [ErrDamaged]: there is something, and not all of what was committed; don't start afresh.
// [liveupdate.ErrAlreadyRetrieved]: some process has it that isn't the orchestrator; don't start
// afresh.
//
// The orchestrator keeps its copy until Renew is through, or [Client.Release] is called, so whoever dies meanwhile may
// reclaim again. Where it has no keeper (see [Client.Describe]) its copy is lost with its process. Once the orchestrator
// was asked, the end of the context doesn't break that off. A busy device is waited for up to 5 seconds.
func (c *Client) Reclaim(ctx context.Context, name string) (*Committed, error) {
	op := fmt.Sprintf("reclaim %q", name)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reclaimTimeout)
	defer cancel()
	r, err := c.reclaim(ctx, op, name, nil)
	if err != nil {
		return nil, err
	}
	all := []*reclaimed{r}
	if r.direction == liveupdate.Incoming {
		// One of this kernel is there too if somebody died in a renewal, or has committed afresh.
		outgoing := liveupdate.Outgoing
		switch r, err = c.reclaim(ctx, op, name, &outgoing); {
		case err == nil:
			all = append(all, r)
		case !errors.Is(err, ErrNoSuchSession):
			all[0].close()
			return nil, err
		}
	}
	return pick(op, name, all)
}

// pick makes a Committed of what was lent under a name, and closes the rest. What was committed in this kernel is newer
// than what came over the update. That must be finished all the same, before files that were in it can be preserved again.
func pick(op, name string, all []*reclaimed) (*Committed, error) {
	defer func() {
		for _, r := range all {
			r.close()
		}
	}()
	take := func(d liveupdate.Direction) *reclaimed {
		for i, r := range all {
			if r.direction == d {
				all = slices.Delete(all, i, i+1)
				return r
			}
		}
		return nil
	}
	there := false
	for _, try := range []struct {
		direction liveupdate.Direction
		whole     func(*reclaimed) (*Committed, error)
	}{
		{liveupdate.Outgoing, (*reclaimed).committed},
		{liveupdate.Incoming, (*reclaimed).whole},
		{liveupdate.Incoming, (*reclaimed).scattered},
	} {
		r := take(try.direction)
		if r == nil {
			continue
		}
		there = there || len(r.files) > 0
		committed, err := try.whole(r)
		if err != nil {
			all = append(all, r)
			if !errors.Is(err, errNotCommitted) {
				return nil, fmt.Errorf("holdfast: %s: %w", op, err)
			}
			continue
		}
		committed.memory = r.memory // it has all else of r
		if r.direction == liveupdate.Outgoing {
			if old := take(liveupdate.Incoming); old != nil {
				committed.replaced = old.lu
				closeFiles(old.files)
			}
		}
		return committed, nil
	}
	if there {
		return nil, fmt.Errorf("holdfast: %s: %w", op, ErrDamaged)
	}
	return nil, &Error{Op: op, Kind: ErrNoSuchSession.Kind, Name: name}
}

// whole makes what came over the update a Committed, which owns it then. Without a manifest, the error is errNotCommitted.
func (r *reclaimed) whole() (*Committed, error) {
	manifest, manifestFD, err := incomingManifest(r.lu, r.lu.Name())
	if err == nil {
		closeFiles(r.files) // the session has all of it
		return &Committed{manifest: manifest, manifestFD: manifestFD, incoming: r.lu, reclaimed: true}, nil
	}
	if !errors.Is(err, liveupdate.ErrNoSuchToken) {
		return nil, err
	}
	committed, err := r.committed()
	if err == nil {
		// If an update came before a renewal had put anything into its session, the files came over by themselves.
		committed.finished, committed.outgoing, committed.parked = append(committed.finished, committed.outgoing), nil, false
	}
	return committed, err
}

// scattered is whole for what an update found in the middle of a renewal: the manifest and some files came over by
// themselves, the other files in the session, which has no manifest.
func (r *reclaimed) scattered() (*Committed, error) {
	var c *Committed
	for _, f := range r.files {
		if !strings.HasPrefix(f.name, parkedManifest) {
			continue
		}
		if m, err := readManifest(f.fd, r.lu.Name()); err == nil && (c == nil || c.manifest.Generation < m.Generation) {
			c = &Committed{manifest: m, manifestFD: f.fd, incoming: r.lu, reclaimed: true}
		}
	}
	if c == nil {
		return nil, errNotCommitted
	}
	for _, f := range r.files {
		switch i := slices.IndexFunc(c.manifest.Files, func(m ManifestFile) bool { return m.Name == f.name }); {
		case f.fd == c.manifestFD:
		case i >= 0 && checkSize(f.fd, c.manifest.Files[i]) == nil:
			c.beside = append(c.beside, f)
		default:
			f.fd.Close()
		}
	}
	return c, nil
}
