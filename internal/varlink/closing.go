// SPDX-License-Identifier: MIT

//go:build linux

package varlink

import (
	"sync"

	"github.com/holdfast-project/holdfast/internal/fd"
)

// maxClosing is how many descriptors may wait to be closed before who brings more has to wait.
const maxClosing = 64

// closer closes the descriptors of one connection, in order, in a goroutine that is there as long as there are
// any.
type closer struct {
	mu      sync.Mutex
	changed sync.Cond // L is &mu, from the first use on
	queue   []*fd.FD
	open    int // those in the queue, and those just being closed
}

// close takes over fds, of which any may be nil. It waits only for there to be room.
func (c *closer) close(fds []*fd.FD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed.L = &c.mu
	for _, f := range fds {
		if f == nil {
			continue
		}
		for c.open >= maxClosing {
			c.changed.Wait()
		}
		c.queue = append(c.queue, f)
		if c.open++; c.open == 1 {
			go c.run()
		}
	}
}

func (c *closer) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		f.Close()
		c.mu.Lock()
		c.open--
		c.changed.Broadcast()
	}
	c.queue = nil
}

// wait returns when all are closed.
func (c *closer) wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed.L = &c.mu
	for c.open > 0 {
		c.changed.Wait()
	}
}
