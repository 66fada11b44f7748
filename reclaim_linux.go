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

// Reclaim gets back by its name what the caller committed in the previous kernel, where no fd store hands it over (see
// [Restored]): from the kernel itself, which keeps what nobody has asked for yet. Next comes [Renew], with
// [WithoutStore] where there is still no fd store.
//
// [ErrNoSuchSession]: nothing was committed under this name, so this is the first start. A session without a manifest
// was never committed, and is given up. [liveupdate.ErrAlreadyRetrieved]: some process has it; don't start afresh.
//
// A session can be had once in each kernel, and the orchestrator keeps no copy yet: from now on the memory is there as
// long as this process is, or until Renew has put it into an fd store. So after a [*MemoryLimitError] of
// [Committed.Retrieve] don't end, but have the limit raised and call it again. Once the orchestrator was asked, the end of
// the context doesn't break that off: an answer that nobody takes would be the end of the session. A busy device is
// waited for up to 5 seconds.
func (c *Client) Reclaim(ctx context.Context, name string) (*Committed, error) {
	op := fmt.Sprintf("reclaim %q", name)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reclaimTimeout)
	defer cancel()
	in := struct {
		Name      string `json:"name"`
		Direction string `json:"direction"`
	}{name, liveupdate.Incoming.String()}
	var out struct {
		Session               sessionReply `json:"session"`
		SessionFileDescriptor int          `json:"sessionFileDescriptor"`
	}
	fds, err := c.call(ctx, op, "Reclaim", in, nil, &out)
	if err != nil {
		return nil, err
	}
	lu, err := takeSession(fds, out.SessionFileDescriptor, out.Session.KernelName)
	if err != nil {
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	manifest, manifestFD, err := incomingManifest(lu, lu.Name())
	if errors.Is(err, liveupdate.ErrNoSuchToken) {
		lu.Close()
		return nil, &Error{Op: op, Kind: ErrNoSuchSession.Kind, Name: name}
	}
	if err != nil {
		lu.Disown() // not closed: this is the last descriptor of what may be somebody's memory
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	return &Committed{manifest: manifest, manifestFD: manifestFD, incoming: lu, reclaimed: true}, nil
}
