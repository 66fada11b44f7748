// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"testing"

	"github.com/holdfast-project/holdfast/internal/custody/custodytest"
	"github.com/holdfast-project/holdfast/luosim"
)

// TestExampleOfAParticipant runs what the documents show over two updates: between them the memory can be resized.
func TestExampleOfAParticipant(t *testing.T) {
	shelf := &custodytest.Shelf{} // held until the kexec
	boot := func(want string, last bool) func(*testing.T) {
		return func(t *testing.T) {
			client := dialWith(t, shelf, nil)
			c := &cache{client: client}
			if err := c.start(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer c.memory.Close()
			got := make([]byte, 64)
			n, _ := c.memory.ReadAt(got, 0)
			if string(got[:n]) != want {
				t.Errorf("the memory is %q, not %q", got[:n], want)
			}
			if _, err := c.memory.WriteAt([]byte("grown "), int64(n)); err != nil {
				t.Errorf("it can't grow: %v", err)
			}
			if last {
				shelf.Close()
				return
			}
			session, err := client.Acquire(t.Context(), "cache")
			if err == nil {
				err = session.Preserve("data", c.memory)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.session = session
			if err := c.quiesce(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			session.Close()
		}
	}
	luosim.Run(t, luosim.Machine{}, boot("", false), boot("grown ", false), boot("grown grown ", true))
}
