// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// reclaimTimeout is for an orchestrator that doesn't answer at all. It is longer than it waits for the device.
const reclaimTimeout = 30 * time.Second

// Reclaim gets back by its name what the caller has committed, where no fd store hands it over (see [Restored]): what was
// parked, and, after an update, what only the kernel has until somebody asks. Next comes [Renew].
//
// [ErrNoSuchSession]: nothing was committed under this name, so this is the first start. A session without a manifest
// was never committed. [liveupdate.ErrAlreadyRetrieved]: some process has it that isn't the orchestrator; don't start
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
	if r.direction == liveupdate.Incoming {
		manifest, manifestFD, err := incomingManifest(r.lu, r.lu.Name())
		if err == nil {
			closeFiles(r.files) // the session has all of it
			return &Committed{manifest: manifest, manifestFD: manifestFD, incoming: r.lu, reclaimed: true}, nil
		}
		if !errors.Is(err, liveupdate.ErrNoSuchToken) {
			r.close()
			return nil, fmt.Errorf("holdfast: %s: %w", op, err)
		}
		// Finished, by a renewal that somebody died in, or never committed. If an update came before that was done, the
		// files came over by themselves.
		if committed, err := r.committed(); err == nil {
			committed.finished, committed.outgoing, committed.parked = append(committed.finished, committed.outgoing), nil, false
			return committed, nil
		}
		closeFiles(r.files)
		finished := r.lu
		outgoing := liveupdate.Outgoing
		if r, err = c.reclaim(ctx, op, name, &outgoing); err != nil {
			finished.Close()
			return nil, err
		}
		defer finished.Close()
	}
	committed, err := r.committed()
	if err != nil {
		r.close()
		return nil, &Error{Op: op, Kind: ErrNoSuchSession.Kind, Name: name}
	}
	return committed, nil
}
