// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// Handover gets all that [Client.Reclaim] would, and leaves it as it is: for a process that starts another one, and
// passes it on for [Client.TakeOver]. Nothing is retrieved, so that the memory is charged to nobody yet. The subject
// needn't exist:
//
//	files, err := client.As(holdfast.Owner("qemu/vm1")).Handover(ctx, "ram")
//
// The files are sessions, each with the memory that is parked beside it after it. Pass all of them on, in this order and
// with their Names, by SCM_RIGHTS or by inheritance, and close them. The orchestrator keeps its copies, so nothing is lost
// if they don't arrive. The errors are those of Reclaim, save that what was not committed is there as well.
func (c *Client) Handover(ctx context.Context, name string) ([]*os.File, error) {
	op := fmt.Sprintf("hand over %q", name)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reclaimTimeout)
	defer cancel()
	r, err := c.reclaim(ctx, op, name, nil)
	if err != nil {
		return nil, err
	}
	files := r.handover()
	if r.direction == liveupdate.Outgoing {
		return files, nil
	}
	// There is one of this kernel too if somebody died in a renewal. Which of them has the memory, only its manifest tells.
	outgoing := liveupdate.Outgoing
	switch r, err = c.reclaim(ctx, op, name, &outgoing); {
	case err == nil:
		return append(files, r.handover()...), nil
	case errors.Is(err, ErrNoSuchSession):
		return files, nil
	}
	for _, f := range files {
		f.Close()
	}
	return nil, err
}

// handover gives the descriptors away.
func (r *reclaimed) handover() []*os.File {
	files := []*os.File{r.lu.File()}
	for _, f := range r.files {
		files = append(files, f.fd.File(f.name))
	}
	return files
}

// TakeOver makes a [Committed] of what was handed over to this process, as if it had reclaimed it by itself. It asks the
// orchestrator whether the sessions are the caller's ([ErrNotOwner]).
//
// [ErrNoSuchSession]: nothing was committed, so this is the first start. The files stay the caller's to close.
func (c *Client) TakeOver(ctx context.Context, files []*os.File) (*Committed, error) {
	const op = "take over"
	wrap := func(err error) error { return fmt.Errorf("holdfast: %s: %w", op, err) }
	var all []*reclaimed
	defer func() {
		for _, r := range all {
			r.close()
		}
	}()
	name := ""
	for _, f := range files {
		lu, id, err := c.mine(ctx, op, f)
		if err == nil {
			all, name = append(all, &reclaimed{direction: id.Direction, lu: lu, memory: id.memory}), id.Name
			continue
		}
		if !errors.Is(err, liveupdate.ErrNotASession) {
			return nil, err
		}
		if len(all) == 0 {
			return nil, wrap(fmt.Errorf("%q comes before any session", f.Name()))
		}
		held, err := dupFile(f)
		if err != nil {
			return nil, wrap(err)
		}
		last := all[len(all)-1]
		last.files = append(last.files, heldFile{f.Name(), held})
	}
	if len(all) == 0 {
		return nil, wrap(errors.New("there are no files"))
	}
	committed, err := pick(op, name, all)
	all = nil // pick has closed them
	return committed, err
}

// Adopt makes a Session of a descriptor that was handed over to this process: of an outgoing session with nothing in it,
// such as the starter of this process got by [Client.Acquire] in this one's name. The errors are those of
// [Client.TakeOver], and [ErrNotOutgoing]. The file stays the caller's to close.
func (c *Client) Adopt(ctx context.Context, session *os.File) (*Session, error) {
	const op = "adopt"
	lu, id, err := c.mine(ctx, op, session)
	if err != nil {
		return nil, err
	}
	if id.Direction != liveupdate.Outgoing {
		lu.Close()
		return nil, &Error{Op: op, Kind: ErrNotOutgoing.Kind, KernelName: id.KernelName}
	}
	return &Session{name: id.Name, owner: id.Owner, lu: lu, generation: 1}, nil
}

// mine makes sure that a descriptor is a session of the caller's.
func (c *Client) mine(ctx context.Context, op string, f *os.File) (*liveupdate.Session, Identity, error) {
	lu, err := liveupdate.FromFile(f)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("holdfast: %s: %w", op, err)
	}
	id, err := c.Identify(ctx, f)
	if err == nil && !id.Yours {
		err = &Error{Op: op, Kind: ErrNotOwner.Kind, KernelName: lu.Name()}
	}
	if err != nil {
		lu.Close()
		return nil, Identity{}, err
	}
	return lu, id, nil
}
