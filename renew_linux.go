// SPDX-License-Identifier: MIT

package holdfast

import (
	"context"
	"fmt"
	"os"

	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// Renew makes committed memory ready for the next update, in a session of this kernel: one of the previous kernel
// can't carry anything further. It is done in the order in which a death at any point loses nothing:
//
//	retrieve all files → give them to the fd store → finish the incoming session → acquire a new one →
//	preserve them in it → manifest → store it → release what the fd store has of the old one
//
// Memory that is in a stored session of this kernel already, after a restart, is taken up as it is.
//
// On success the Session owns what c held, and c is closed. On an error c is as good as before, and Renew may be
// called again: nothing is lost, but until it has succeeded the memory will not cross an update. The errors to
// expect are those of [Session.Store], [Committed.Retrieve] and [Client.Acquire]; where the unit can't have an fd store
// it fails before anything is done, unless it was asked to do [WithoutStore].
func Renew(ctx context.Context, client *Client, c *Committed, options ...RenewOption) (*Session, error) {
	var o renewOptions
	for _, option := range options {
		option(&o)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed() {
		return nil, fmt.Errorf("holdfast: renew %q: %w", c.manifest.Name, os.ErrClosed)
	}
	var store *systemd.Store // nil without one
	var err error
	if c.parked && !o.parking {
		return nil, fmt.Errorf("holdfast: renew %q: it is parked with the orchestrator, and belongs there: renew it WithParking", c.manifest.Name)
	}
	if (o.parking || o.withoutStore) && !c.reclaimed {
		return nil, fmt.Errorf("holdfast: renew %q: it came from this unit's fd store, and belongs there: renew it without WithoutStore or WithParking", c.manifest.Name)
	}
	if !o.withoutStore && !o.parking {
		if store, err = openStore(ctx); err != nil {
			return nil, err
		}
		defer store.Close()
	}
	if o.parking {
		session, err := c.renewParked(ctx, client, o.done)
		if err != nil {
			return nil, err
		}
		return c.through(session, o.done), nil
	}
	session := &Session{name: c.manifest.Name, owner: c.manifest.Owner, generation: c.manifest.Generation,
		lu: c.outgoing, files: c.files, manifest: c.manifestFD}
	if c.renewed {
		session.generation++
	}
	if c.outgoing == nil {
		if session, err = c.renew(ctx, client, store, o.done); err != nil {
			return nil, err
		}
	} else if err := session.keepIn(ctx, store); err != nil {
		return nil, err
	}
	// The session is safe. Whatever fails from here on leaves a little too much in the store, and the next start
	// does this again.
	if store != nil {
		for _, fdname := range c.stale {
			if err := store.Remove(fdname); err != nil {
				break
			}
		}
		systemd.Barrier(ctx)
	}
	if c.reclaimed {
		// The orchestrator's copy is of no more use.
		incoming := liveupdate.Incoming
		client.release(ctx, c.manifest.Name, &incoming)
	}
	return c.through(session, o.done), nil
}

// through gives all that c has to the session.
func (c *Committed) through(session *Session, done func(RenewStep)) *Session {
	for _, s := range c.finished {
		s.Close()
	}
	if c.replaced != nil {
		c.replaced.Close()
	}
	c.outgoing, c.files, c.manifestFD, c.finished, c.replaced = nil, nil, nil, nil, nil
	done(Released)
	return session
}

func (c *Committed) renew(ctx context.Context, client *Client, store *systemd.Store, done func(RenewStep)) (*Session, error) {
	wrap := func(err error) error { return fmt.Errorf("holdfast: renew %q: %w", c.manifest.Name, err) }
	if err := c.retrieve(); err != nil {
		return nil, err
	}
	done(Retrieved)
	if c.incoming != nil {
		if store != nil {
			prefix, err := storePrefix(c.incoming.Name())
			if err != nil {
				return nil, wrap(err)
			}
			old := manifestName(prefix, c.manifest.Generation)
			if err := keep(ctx, store, append(fileItems(prefix, c.files), item{fdname: old, fd: c.manifestFD})); err != nil {
				return nil, wrap(err)
			}
			c.stale = append(c.stale, old)
			done(FilesStored)
		}
		if err := c.incoming.Finish(); err != nil {
			return nil, wrap(err)
		}
		c.finished, c.incoming = append(c.finished, c.incoming), nil
		done(Finished)
	}
	session, err := client.acquire(ctx, c.manifest.Name, acquireOptions{fresh: true})
	if err != nil {
		return nil, err
	}
	session.generation = c.manifest.Generation + 1
	done(Acquired)
	err = session.take(ctx, c.files, store, done)
	if err != nil && session.manifest == nil {
		session.Close()
		return nil, err
	}
	closeFiles(c.files)
	c.manifestFD.Close()
	if err != nil {
		// The store may have all of it: the next try goes on with this session.
		c.outgoing, c.files, c.manifestFD, c.renewed = session.lu, session.files, session.manifest, true
		return nil, err
	}
	return session, nil
}

// take preserves copies of files, commits, and stores where there is a store.
func (s *Session) take(ctx context.Context, files []heldFile, store *systemd.Store, done func(RenewStep)) error {
	for _, file := range files {
		if err := file.fd.Use(func(raw int) error { return s.preserve(file.name, raw) }); err != nil {
			return err
		}
	}
	done(Preserved)
	if err := s.Commit(); err != nil {
		return err
	}
	done(ManifestWritten)
	if err := s.keepIn(ctx, store); err != nil {
		return err
	}
	if store != nil {
		done(Stored)
	}
	return nil
}

// keepIn stores the session where there is a store. Without one this process keeps it, committed.
func (s *Session) keepIn(ctx context.Context, store *systemd.Store) error {
	if store == nil {
		return s.commit()
	}
	return s.storeIn(ctx, store)
}
