// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

// cache keeps its memory in a memfd that grows and shrinks as it works, so it puts that into a session for an update only.
type cache struct {
	client  *holdfast.Client
	memory  *os.File
	session *holdfast.Session // of the round
	writing sync.RWMutex      // read-locked by whoever writes to the memory
	paused  bool
}

// start has the memory back after an update, or makes it.
func (c *cache) start(ctx context.Context) error {
	committed, err := c.client.Reclaim(ctx, "cache")
	if errors.Is(err, holdfast.ErrNoSuchSession) { // the first start
		fd, err := unix.MemfdCreate("cache", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		c.memory = os.NewFile(uintptr(fd), "cache")
		return nil
	}
	if err != nil {
		return err // don't start afresh: something is there
	}
	defer committed.Close()
	files, err := committed.Retrieve()
	if err != nil {
		return err
	}
	c.memory = files["data"]
	// From here on only this process has it, and may resize it. Renew instead, if it is to outlive a crash too.
	return c.client.Release(ctx, "cache")
}

// prepare is the slow part, in which the pages are pinned. The program works on, but doesn't resize the memory.
func (c *cache) prepare(ctx context.Context, r *holdfast.Round) error {
	if time.Until(r.Deadline()) < time.Minute {
		if err := r.Extend(ctx, time.Minute, "4 GiB are to be pinned"); err != nil {
			return err
		}
	}
	session, err := r.Acquire(ctx, c.client, "cache", holdfast.WithReplace())
	if err != nil {
		return err // a veto: the operator sees the text
	}
	c.session = session
	return session.Preserve("data", c.memory)
}

// quiesce is part of the blackout: it stops the writers, and commits.
func (c *cache) quiesce(ctx context.Context, _ *holdfast.Round) error {
	c.writing.Lock()
	c.paused = true
	return c.session.Park(ctx, c.client)
}

// abort goes on as before. The session is given up already, and the memory can be resized again.
func (c *cache) abort(reason string) {
	log.Printf("the update was called off: %s", reason)
	c.session = nil
	if c.paused {
		c.paused = false
		c.writing.Unlock()
	}
}

// A program that takes part in updates of the kernel.
func ExampleJoin() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	c := &cache{client: client}
	if err := c.start(ctx); err != nil {
		log.Fatal(err)
	}
	participant, err := holdfast.Join(ctx, holdfast.ParticipantConfig{Name: "cache", Prepare: c.prepare, Quiesce: c.quiesce, Abort: c.abort})
	if err != nil {
		log.Fatal(err)
	}
	defer participant.Close() // what is committed stays, and is there at the next start
	<-ctx.Done()
}
