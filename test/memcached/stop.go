// SPDX-License-Identifier: MIT

package memcached

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Keys is how many there are in a load that is to be more than 100 MB.
const Keys = 50_000

// FreePort is one of this machine's that nobody listens on right now.
func FreePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// signal is the key under which those who wait beside memcached find what they are told.
const signal = "told"

// Ways are those in which memcached is stopped and started again, and what is in between.
var Ways = map[string]string{
	"holdfast": "Holdfast, 7.2 to 7.3",
	"cold":     "systemctl kexec, 7.3 to 7.2",
	"restart":  "its own restart, no update",
	"store":    "systemd's fd store, 7.2 to 7.3",
}

// A Stop is what came of a memcached's keys after one of its stops.
type Stop struct {
	Way           string // of Ways
	Bytes         int    // of all values
	Before, After Check
	First, All    time.Duration // from the stop to the first and to the last of the keys being served again
	Reload        bool          // what was missing was put in again
}

// Over draws values, puts them into the memcached at an address, tells whoever waits there for "leave-WAY" to have it stopped and started
// again, waits until all of the values are served once more, and tells "done-WAY". It says what it has come to.
func Over(ctx context.Context, address, way string, say func(format string, args ...any)) (Stop, error) {
	l := NewLoad(Keys)
	s := Stop{Way: way, Bytes: l.Bytes()}
	if err := l.Fill(ctx, address); err != nil {
		return s, fmt.Errorf("filling memcached: %w", err)
	}
	var err error
	if s.Before, err = l.Verify(ctx, address); err != nil {
		return s, fmt.Errorf("before the stop: %w", err)
	}
	if s.Before.HitRate() != 1 {
		return s, fmt.Errorf("memcached, just filled: %v; is its -m too small?", s.Before)
	}
	say("%d values, %.1f MB, are in memcached; asked for each: %v", l.Keys(), float64(l.Bytes())/1e6, s.Before)
	// Its end is that of the connection.
	c, err := dial(ctx, address)
	if err != nil {
		return s, err
	}
	defer c.Close()
	if err := c.tell("leave-" + way); err != nil {
		return s, err
	}
	if _, err := c.r.ReadByte(); err != io.EOF {
		return s, fmt.Errorf("waiting for the end of memcached: %w", err)
	}
	stopped := time.Now()
	say("memcached has stopped")
	again, err := l.Again(ctx, address)
	if err != nil {
		return s, fmt.Errorf("after the stop: %w", err)
	}
	s.After, s.First, s.All = again.Check, again.First.Sub(stopped), again.All.Sub(stopped)
	s.Reload = again.Check.Hits < l.Keys()
	say("%.1f s after that the first of them was served, after %.1f s all; asked for each: %v", s.First.Seconds(), s.All.Seconds(), s.After)
	if s.Reload {
		say("what it did not have was put in again")
	}
	done, err := dial(ctx, address)
	if err != nil {
		return s, err
	}
	defer done.Close()
	return s, done.tell("done-" + way)
}

func (c *conn) tell(what string) error {
	if err := errors.Join(c.sendSet(signal, []byte(what)), c.w.Flush()); err != nil {
		return err
	}
	return c.stored()
}

// Table has a line for each stop.
func Table(stops []Stop) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %-36s | %-8s | %-10s | %-12s | %s |\n| --- | --- | --- | --- | --- |\n", "way", "hit rate", "first key", "all keys", "MB, keys")
	for _, s := range stops {
		all := fmt.Sprintf("%.1f s", s.All.Seconds())
		if s.Reload {
			all += " (*)"
		}
		fmt.Fprintf(&b, "| %-36s | %8.4f | %8.1f s | %-12s | %.1f, %d |\n", Ways[s.Way], s.After.HitRate()/s.Before.HitRate(), s.First.Seconds(), all,
			float64(s.Bytes)/1e6, s.Before.Hits)
	}
	return b.String()
}
