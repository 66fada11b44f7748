// SPDX-License-Identifier: MIT

package memcached

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// conn speaks memcached's text protocol (doc/protocol.txt in its source).
type conn struct {
	net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

// dial connects. The connection ends with ctx.
func dial(ctx context.Context, address string) (*conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	return &conn{c, bufio.NewReaderSize(c, 1<<16), bufio.NewWriterSize(c, 1<<16)}, nil
}

func (c *conn) sendSet(key string, value []byte) error {
	fmt.Fprintf(c.w, "set %s 0 0 %d\r\n", key, len(value))
	c.w.Write(value)
	_, err := c.w.WriteString("\r\n")
	return err
}

func (c *conn) sendGet(key string) error {
	_, err := fmt.Fprintf(c.w, "get %s\r\n", key)
	return err
}

func (c *conn) line() (string, error) {
	line, err := c.r.ReadString('\n')
	return strings.TrimSuffix(line, "\r\n"), err
}

func (c *conn) stored() error {
	line, err := c.line()
	if err == nil && line != "STORED" {
		err = fmt.Errorf("memcached answered %q to set", line)
	}
	return err
}

// value is the answer to get; nil if the key isn't there.
func (c *conn) value(key string) ([]byte, error) {
	line, err := c.line()
	if err != nil || line == "END" {
		return nil, err
	}
	words := strings.Fields(line)
	if len(words) != 4 || words[0] != "VALUE" || words[1] != key {
		return nil, fmt.Errorf("memcached answered %q to get %s", line, key)
	}
	size, err := strconv.Atoi(words[3])
	if err != nil {
		return nil, fmt.Errorf("memcached answered %q to get %s", line, key)
	}
	value := make([]byte, size+2)
	if _, err := io.ReadFull(c.r, value); err != nil {
		return nil, err
	}
	if line, err := c.line(); err != nil || line != "END" {
		return nil, errors.Join(err, fmt.Errorf("after the value of %s is %q", key, line))
	}
	return value[:size], nil
}

// connections is over how many a load goes: memcached has a thread for each, and the machine two processors.
const connections = 2

// pipeline sends a request for each of the keys, without waiting for the answers, and hears these in their order. hear is called
// by several goroutines, never by two at once.
func (l *Load) pipeline(ctx context.Context, address string, keys []int, send, hear func(c *conn, i int) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make(chan error)
	var turn sync.Mutex
	for n := range connections {
		part := keys[n*len(keys)/connections : (n+1)*len(keys)/connections]
		c, err := dial(ctx, address)
		if err != nil {
			return err
		}
		defer c.Close()
		go func() {
			var err error
			for _, i := range part {
				if err = send(c, i); err != nil {
					break
				}
			}
			errs <- errors.Join(err, c.w.Flush())
		}()
		go func() {
			for _, i := range part {
				if _, err := c.r.Peek(1); err != nil {
					errs <- fmt.Errorf("waiting for an answer about %s: %w", l.keys[i], err)
					return
				}
				turn.Lock()
				err := hear(c, i)
				turn.Unlock()
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var first error
	for range 2 * connections {
		if err := <-errs; err != nil && first == nil {
			first = err
			stop() // ends the others
		}
	}
	return first
}

func (l *Load) set(ctx context.Context, address string, keys []int) error {
	return l.pipeline(ctx, address, keys,
		func(c *conn, i int) error { return c.sendSet(l.keys[i], l.values[i]) },
		func(c *conn, _ int) error { return c.stored() })
}

// get compares; missing are those that aren't as they were put in.
func (l *Load) get(ctx context.Context, address string, keys []int) (check Check, missing []int, err error) {
	err = l.pipeline(ctx, address, keys,
		func(c *conn, i int) error { return c.sendGet(l.keys[i]) },
		func(c *conn, i int) error {
			value, err := c.value(l.keys[i])
			switch {
			case err != nil:
				return err
			case value == nil:
				check.Misses++
			case !bytes.Equal(value, l.values[i]):
				check.Wrong++
			default:
				check.Hits++
				return nil
			}
			missing = append(missing, i)
			return nil
		})
	return check, missing, err
}

// await asks for one key, over and over, until it is served, and puts it in where it isn't there. Whoever forwards the
// connection accepts it even while there is no memcached, and nothing comes back then: a new attempt doesn't wait for the end of
// the one before.
func (l *Load) await(ctx context.Context, address string, i int) (hit bool, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type answer struct {
		hit bool
		err error
	}
	answers := make(chan answer)
	var put atomic.Bool // by an attempt whose answer came too late, or is still to come
	attempt := func() {
		ctx, stop := context.WithTimeout(ctx, 5*time.Second)
		defer stop()
		hit, err := l.one(ctx, address, i, &put)
		select {
		case answers <- answer{hit && !put.Load(), err}:
		case <-ctx.Done():
		}
	}
	next := time.NewTicker(100 * time.Millisecond)
	defer next.Stop()
	var last error
	for {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.hit, nil
			}
			last = a.err
		case <-next.C:
			go attempt()
		case <-ctx.Done():
			return false, fmt.Errorf("memcached doesn't serve: %w; the last attempt's end: %v", context.Cause(ctx), last)
		}
	}
}

// one is a single attempt of await.
func (l *Load) one(ctx context.Context, address string, i int, put *atomic.Bool) (hit bool, err error) {
	c, err := dial(ctx, address)
	if err != nil {
		return false, err
	}
	defer c.Close()
	ask := func() ([]byte, error) {
		if err := errors.Join(c.sendGet(l.keys[i]), c.w.Flush()); err != nil {
			return nil, err
		}
		return c.value(l.keys[i])
	}
	value, err := ask()
	if err != nil || bytes.Equal(value, l.values[i]) && value != nil {
		return err == nil, err
	}
	put.Store(true)
	if err := errors.Join(c.sendSet(l.keys[i], l.values[i]), c.w.Flush()); err != nil {
		return false, err
	}
	if err := c.stored(); err != nil {
		return false, err
	}
	if value, err = ask(); err == nil && !bytes.Equal(value, l.values[i]) {
		err = fmt.Errorf("%s isn't served as it was put in a moment ago", l.keys[i])
	}
	return false, err
}
