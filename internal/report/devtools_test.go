// SPDX-License-Identifier: MIT

//go:build browser

package report

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// browser is a Chromium that is driven by the DevTools protocol over two pipes: JSON objects, each ended by a NUL
// (chromium --help, --remote-debugging-pipe).
type browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	session string
	last    int
	events  []event
}

type event struct {
	Method string
	Params json.RawMessage
}

// start has a browser with one page.
func start(t *testing.T) *browser {
	t.Helper()
	in, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// Its sandbox needs a user that isn't root, or user namespaces. The page that it is given is our own.
	cmd := exec.Command(chromium.Name, "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{in, out} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	b := &browser{t: t, to: to, from: bufio.NewReader(from)}
	t.Cleanup(func() {
		// It ends when its pipe does.
		to.Close()
		cmd.Wait()
		from.Close()
	})
	var made struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &made)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": made.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Network", "Log", "Runtime"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// read is the next message; events are remembered.
func (b *browser) read() (id int, result json.RawMessage, failed string) {
	b.t.Helper()
	raw, err := b.from.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("the browser has ended: %v", err)
	}
	var m struct {
		event
		ID     int
		Result json.RawMessage
		Error  *struct{ Message string }
	}
	if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
		b.t.Fatalf("%v: %s", err, raw)
	}
	if m.Method != "" {
		b.events = append(b.events, m.event)
	}
	if m.Error != nil {
		failed = m.Error.Message
	}
	return m.ID, m.Result, failed
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.last++
	message := map[string]any{"id": b.last, "method": method}
	if params != nil {
		message["params"] = params
	}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	raw, err := json.Marshal(message)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(raw, 0)); err != nil {
		b.t.Fatalf("the browser has ended: %v", err)
	}
	for {
		id, got, failed := b.read()
		if id != b.last {
			continue
		}
		if failed != "" {
			b.t.Fatalf("%s: %s", method, failed)
		}
		if result != nil {
			if err := json.Unmarshal(got, result); err != nil {
				b.t.Fatalf("%s: %v: %s", method, err, got)
			}
		}
		return
	}
}

// open shows a page, and returns once it is loaded.
func (b *browser) open(url string) {
	b.t.Helper()
	b.events = nil
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	for {
		for _, e := range b.events {
			if e.Method == "Page.loadEventFired" {
				return
			}
		}
		b.read()
	}
}

// evaluate has the value of a JavaScript expression in the page. What the page itself may run makes no difference.
func (b *browser) evaluate(expression string, value any) {
	b.t.Helper()
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatal(got.ExceptionDetails.Exception.Description)
	}
	if err := json.Unmarshal(got.Result.Value, value); err != nil {
		b.t.Fatal(fmt.Errorf("%w: %s", err, got.Result.Value))
	}
}
