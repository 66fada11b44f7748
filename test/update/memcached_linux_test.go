// SPDX-License-Identifier: MIT

package update

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/luosim"
)

// How many keys there are, and what their values are drawn from: each boot of the machine draws the same.
const (
	memcachedKeys = 5000
	memcachedSeed = 20
)

// A memcached as its distribution has built it has all of its keys after an update.
func TestMemcached(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root: nobody else may start an update")
	}
	if _, err := exec.LookPath("memcached"); err != nil {
		t.Skip("there is no memcached here (Debian: memcached)")
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		h := runHost(t)
		c, stderr := h.memcached()
		c.each(func(key string, value []byte) {
			fmt.Fprintf(c.w, "set %s 0 0 %d noreply\r\n%s\r\n", key, len(value), value)
		})
		if hits := c.hits(); hits != memcachedKeys {
			t.Fatalf("before the update %d of %d keys are there", hits, memcachedKeys)
		}
		h.comesTo("memcached is a participant", func(s status) bool { return s.of("run") != "absent" })
		h.load()
		got := h.tool("update", "--yes")
		t.Fatalf("the host still runs after a good update: exit status %d, %s; %s", got.status, got.stderr, stderr)
	}, func(t *testing.T) {
		h := runHost(t)
		c, stderr := h.memcached()
		if hits := c.hits(); hits != memcachedKeys {
			t.Errorf("after the update %d of %d keys are there\n%s", hits, memcachedKeys, stderr)
		}
	})
}

// cache is a connection to memcached.
type cache struct {
	h *host
	r *bufio.Reader
	w *bufio.Writer
}

// memcached starts one by holdfast run, and connects to it.
func (h *host) memcached() (*cache, *bytes.Buffer) {
	h.t.Helper()
	socket, mem := filepath.Join(h.dir, "cache"), filepath.Join(h.dir, "mem")
	os.Remove(socket)
	var stderr bytes.Buffer
	cmd := h.command("holdfast", "run", "--park", "--mem", "mem=48M:"+mem, "--file", "meta:"+mem+".meta", "--stop-signal", "USR1", "--settle", "3s", "--",
		"memcached", "-u", "root", "-m", "48", "-e", mem, "-s", socket)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
	})
	var conn net.Conn
	h.eventually("memcached answers", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", socket)
		return err == nil
	})
	h.t.Cleanup(func() { conn.Close() })
	return &cache{h, bufio.NewReader(conn), bufio.NewWriter(conn)}, &stderr
}

// each draws all keys with their values, of 1 byte to 16 KiB, most of them small.
func (c *cache) each(do func(key string, value []byte)) {
	draw := rand.New(rand.NewChaCha8([32]byte{memcachedSeed}))
	for i := range memcachedKeys {
		value := make([]byte, 1+draw.IntN(1<<(4+draw.IntN(11))))
		for i := range value {
			value[i] = byte(draw.Uint32())
		}
		do(fmt.Sprintf("key-%d", i), value)
	}
	if err := c.w.Flush(); err != nil {
		c.h.t.Fatal(err)
	}
}

// hits is how many keys have their values. A wrong value fails the test.
func (c *cache) hits() (hits int) {
	c.each(func(key string, value []byte) {
		fmt.Fprintf(c.w, "get %s\r\n", key)
		c.w.Flush()
		line, err := c.r.ReadString('\n')
		if err == nil && line == "END\r\n" {
			return
		}
		want := fmt.Sprintf("VALUE %s 0 %d\r\n", key, len(value))
		answer := make([]byte, len(value)+len("\r\nEND\r\n"))
		if err == nil {
			_, err = io.ReadFull(c.r, answer)
		}
		if err != nil || line != want || string(answer) != string(value)+"\r\nEND\r\n" {
			c.h.t.Fatalf("get %s: %q, %v; the value is wrong", key, line, err)
		}
		hits++
	})
	return hits
}
