// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// When the daemon is told to end, the calls under way are answered, and nothing else is begun.
func TestStop(t *testing.T) {
	d, idle := serve(t)
	device := holdDevice(t)
	defer device.Close()
	calls := make([]*connection, 8)
	for i := range calls {
		calls[i] = dial(t)
		if err := calls[i].send(fmt.Sprintf(`{"method":"io.holdfast.Sessions.Acquire","parameters":{"name":"ram%d"}}`, i)); err != nil {
			t.Fatal(err)
		}
		calls[i].taken(t)
	}
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	idle.closed(t) // so it is ending
	device.Close()
	for i, c := range calls {
		r, err := c.receive()
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		s, err := r.session(here.me.owner, fmt.Sprintf("ram%d", i))
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		s.Close()
		c.closed(t)
	}
	d.wait(t)
	if !d.cmd.ProcessState.Success() {
		t.Errorf("the daemon ended with %v", d.cmd.ProcessState)
	}
}
