// SPDX-License-Identifier: MIT

package memcached

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// server speaks enough of memcached's protocol to be filled and asked. It is one that can be made to lose and change values.
type server struct {
	mu     sync.Mutex
	values map[string]string
}

func serve(t *testing.T) (*server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &server{values: map[string]string{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.answer(c)
		}
	}()
	return s, l.Addr().String()
}

func (s *server) answer(c net.Conn) {
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		var key string
		var size int
		if n, _ := fmt.Sscanf(line, "set %s 0 0 %d", &key, &size); n == 2 {
			value := make([]byte, size+2)
			if _, err := io.ReadFull(r, value); err != nil {
				return
			}
			s.mu.Lock()
			s.values[key] = string(value[:size])
			s.mu.Unlock()
			io.WriteString(c, "STORED\r\n")
			continue
		}
		key = strings.TrimSpace(strings.TrimPrefix(line, "get "))
		s.mu.Lock()
		value, ok := s.values[key]
		s.mu.Unlock()
		if ok {
			fmt.Fprintf(c, "VALUE %s 0 %d\r\n%s\r\n", key, len(value), value)
		}
		io.WriteString(c, "END\r\n")
	}
}

func TestSizes(t *testing.T) {
	l := NewLoad(50_000)
	if l.Bytes() < 100_000_000 || l.Bytes() > 130_000_000 {
		t.Errorf("%d keys have %d bytes", l.Keys(), l.Bytes())
	}
	least, most := largest, 0
	for i := range l.Keys() {
		least, most = min(least, len(l.Value(i))), max(most, len(l.Value(i)))
	}
	if least != smallest || most > largest || most < largest/2 {
		t.Errorf("values of %d to %d bytes", least, most)
	}
}

// What is lost or changed is seen, and put in again.
func TestLossesAreSeen(t *testing.T) {
	s, address := serve(t)
	l := NewLoad(500)
	if err := l.Fill(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Check{{Hits: 500}, {Hits: 497, Misses: 2, Wrong: 1}} {
		if got, err := l.Verify(t.Context(), address); err != nil || got != want {
			t.Errorf("%v, %v; expected %v", got, err, want)
		}
		s.mu.Lock()
		delete(s.values, l.Key(0))
		delete(s.values, l.Key(499))
		s.values[l.Key(7)] = strings.Repeat("x", len(l.Value(7)))
		s.mu.Unlock()
	}
	before := time.Now()
	served, err := l.Again(t.Context(), address)
	if want := (Check{Hits: 497, Misses: 2, Wrong: 1}); err != nil || served.Check != want {
		t.Errorf("%v, %v; expected %v", served.Check, err, want)
	}
	if served.First.Before(before) || served.All.Before(served.First) {
		t.Errorf("served from %v and wholly from %v, asked at %v", served.First, served.All, before)
	}
	if got, err := l.Verify(t.Context(), address); err != nil || got.HitRate() != 1 {
		t.Errorf("after all was put in again: %v, %v", got, err)
	}
}

// One that comes up empty, after a while in which nobody answers.
func TestColdStart(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	address := silent.Addr().String()
	l := NewLoad(500)
	type end struct {
		Served
		err error
	}
	done := make(chan end)
	go func() {
		s, err := l.Again(t.Context(), address)
		done <- end{s, err}
	}()
	// The first attempts are accepted, and nothing comes back.
	s := &server{values: map[string]string{}}
	for n := 0; ; n++ {
		c, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if n < 3 {
			defer c.Close()
			continue
		}
		go s.answer(c)
		if n == 3 {
			break
		}
	}
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			go s.answer(c)
		}
	}()
	got := <-done
	if want := (Check{Misses: 500}); got.err != nil || got.Check != want {
		t.Errorf("%v, %v; expected %v", got.Check, got.err, want)
	}
}
