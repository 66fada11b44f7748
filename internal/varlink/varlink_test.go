// SPDX-License-Identifier: MIT

//go:build linux

package varlink_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

const testDescription = `interface io.holdfast.Test
type Inner (count: int)
method Echo(text: string, inner: ?Inner, list: ?[]Inner) -> (text: string)
method Open(content: string) -> (fileDescriptor: int)
method Read(fileDescriptor: int) -> (content: string)
method Count(to: int) -> (n: int)
method Declared() -> ()
error Failed(reason: string)
`

// testMethods are those of the interface io.holdfast.Test.
func testMethods() map[string]varlink.Method {
	return map[string]varlink.Method{
		"Echo": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			type inner struct {
				Count int `json:"count"`
			}
			var in struct {
				Text  string  `json:"text"`
				Inner *inner  `json:"inner"`
				List  []inner `json:"list,omitempty"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			return &varlink.Reply{Parameters: map[string]any{"text": in.Text}}, nil
		},
		// Open answers with a pipe that has the content in it.
		"Open": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				Content string `json:"content"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			r, err := pipeWith(in.Content)
			if err != nil {
				return nil, err
			}
			return &varlink.Reply{Parameters: map[string]any{"fileDescriptor": 0}, FDs: []*fd.FD{r}}, nil
		},
		// Read answers with what is in a pipe.
		"Read": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				FileDescriptor int `json:"fileDescriptor"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			f, err := call.TakeFD(in.FileDescriptor, "fileDescriptor")
			if err != nil {
				return nil, err
			}
			defer call.Drop(f)
			if _, err := call.TakeFD(in.FileDescriptor, "fileDescriptor"); err == nil {
				return nil, errors.New("taken twice")
			}
			content, err := readPipe(f)
			if err != nil {
				return nil, err
			}
			return &varlink.Reply{Parameters: map[string]any{"content": content}}, nil
		},
		"Count": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				To int `json:"to"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			for n := range in.To {
				r, err := pipeWith(fmt.Sprint(n))
				if err != nil {
					return nil, err
				}
				if err := call.Continue(&varlink.Reply{Parameters: map[string]any{"n": n}, FDs: []*fd.FD{r}}); err != nil {
					return nil, err
				}
			}
			return &varlink.Reply{Parameters: map[string]any{"n": in.To}}, nil
		},
	}
}

func pipeWith(content string) (*fd.FD, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	defer unix.Close(p[1])
	_, err := unix.Write(p[1], []byte(content))
	return fd.New(p[0]), err
}

func readPipe(f *fd.FD) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Read(f.Raw(), b)
	return string(b[:max(n, 0)]), err
}

// serve runs s, with io.holdfast.Test, until the test ends, and returns its socket. stop ends it earlier.
func serve(t testing.TB, s *varlink.Server, more ...varlink.Interface) (path string, stop func()) {
	t.Helper()
	s.Vendor, s.Product, s.Version, s.URL = "Holdfast", "test", "1", "https://holdfast.example"
	s.Interfaces = append([]varlink.Interface{{Name: "io.holdfast.Test", Description: testDescription, Methods: testMethods()}}, more...)
	path = filepath.Join(t.TempDir(), "socket")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		ln.Close()
	}
	t.Cleanup(stop)
	return path, stop
}

func dial(t testing.TB, path string) *varlink.Client {
	t.Helper()
	c, err := varlink.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCall(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	var out struct{ Text string }
	if _, err := c.Call(t.Context(), "io.holdfast.Test.Echo", map[string]any{"text": "<hello> \x00 wörld"}, nil, &out); err != nil {
		t.Fatal(err)
	}
	if out.Text != "<hello> \x00 wörld" {
		t.Errorf("got %q", out.Text)
	}
}

func TestDescriptorsBothWays(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	fds, err := c.Call(t.Context(), "io.holdfast.Test.Open", map[string]any{"content": "tide"}, nil, nil)
	if err != nil || len(fds) != 1 {
		t.Fatalf("Open: %d descriptors, %v", len(fds), err)
	}
	defer fd.CloseAll(fds)
	if flags, err := unix.FcntlInt(uintptr(fds[0].Raw()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v, want FD_CLOEXEC", flags, err)
	}
	var out struct{ Content string }
	_, err = c.Call(t.Context(), "io.holdfast.Test.Read", map[string]any{"fileDescriptor": 0}, []int{fds[0].Raw()}, &out)
	if err != nil || out.Content != "tide" {
		t.Errorf("Read: %q, %v", out.Content, err)
	}
}

func TestMoreReplies(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	next := 0
	err := c.CallMore(t.Context(), "io.holdfast.Test.Count", map[string]any{"to": 3}, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
		defer fd.CloseAll(fds)
		var out struct{ N int }
		if err := json.Unmarshal(parameters, &out); err != nil {
			return err
		}
		if out.N != next {
			t.Errorf("reply %d, want %d", out.N, next)
		}
		if next++; out.N == 3 {
			return nil
		}
		if content, err := readPipe(fds[0]); err != nil || content != fmt.Sprint(out.N) {
			t.Errorf("descriptor of reply %d: %q, %v", out.N, content, err)
		}
		return nil
	})
	if err != nil || next != 4 {
		t.Errorf("%d replies, %v", next, err)
	}
	_, err = c.Call(t.Context(), "io.holdfast.Test.Count", map[string]any{"to": 1}, nil, nil)
	wantError(t, err, varlink.ErrExpectedMore, "", "")
	if _, err := c.Call(t.Context(), "io.holdfast.Test.Count", map[string]any{"to": 0}, nil, nil); err != nil {
		t.Errorf("the connection after that: %v", err)
	}
}

// wantError wants err to be an error reply with a parameter of the given value.
func wantError(t testing.TB, err error, name, parameter, value string) {
	t.Helper()
	e, ok := errors.AsType[*varlink.Error](err)
	if !ok {
		t.Errorf("got %v, want the error %s", err, name)
		return
	}
	got := map[string]any{}
	if err := e.Decode(&got); err != nil {
		t.Error(err)
	}
	if e.Name != name || parameter != "" && got[parameter] != value {
		t.Errorf("got %v, want %s with %s=%q", e, name, parameter, value)
	}
}

func TestServiceInterface(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	var info struct {
		Vendor, Product, Version, URL string
		Interfaces                    []string
	}
	if _, err := c.Call(t.Context(), "org.varlink.service.GetInfo", nil, nil, &info); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(info); got != "{Holdfast test 1 https://holdfast.example [org.varlink.service io.holdfast.Test]}" {
		t.Errorf("GetInfo: %s", got)
	}
	for _, name := range info.Interfaces {
		var out struct{ Description string }
		_, err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]any{"interface": name}, nil, &out)
		if err != nil || !strings.Contains(out.Description, "interface "+name+"\n") {
			t.Errorf("description of %s: %q, %v", name, out.Description, err)
		}
	}
}

func TestInterfacesThatDontFit(t *testing.T) {
	method := func(context.Context, *varlink.Call) (*varlink.Reply, error) { return nil, nil }
	a := varlink.Interface{Name: "a.b", Description: "interface a.b\n# method C() -> ()\nmethod D() -> ()\n", Methods: map[string]varlink.Method{"C": method}}
	for _, interfaces := range [][]varlink.Interface{{a}, {{Name: "a.b"}, {Name: "a.b"}}, {{Name: "org.varlink.service"}}} {
		s := varlink.Server{Interfaces: interfaces}
		if err := s.Serve(t.Context(), nil); err == nil {
			t.Errorf("%v are served", interfaces)
		}
	}
}

func TestWhatIsNotThere(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	for _, tt := range []struct{ method, name, parameter, value string }{
		{"io.holdfast.Test.Nothing", varlink.ErrMethodNotFound, "method", "io.holdfast.Test.Nothing"},
		{"io.holdfast.Test.Declared", varlink.ErrMethodNotImplemented, "method", "io.holdfast.Test.Declared"},
		{"io.holdfast.Nothing.Echo", varlink.ErrInterfaceNotFound, "interface", "io.holdfast.Nothing"},
		{"Echo", varlink.ErrInvalidParameter, "parameter", "method"},
		{"", varlink.ErrInvalidParameter, "parameter", "method"},
	} {
		_, err := c.Call(t.Context(), tt.method, nil, nil, nil)
		wantError(t, err, tt.name, tt.parameter, tt.value)
	}
	_, err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]any{"interface": "a.b"}, nil, nil)
	wantError(t, err, varlink.ErrInterfaceNotFound, "interface", "a.b")
}

func TestWrongParameters(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	for _, tt := range []struct{ parameters, invalid string }{
		{`{}`, "text"},
		{`{"text":null}`, "text"},
		{`{"text":1}`, "text"},
		{`{"":1}`, ""},
		{`{"text":"x","inner":{"":1,"count":1}}`, "inner."},
		{`{"Text":"x"}`, "Text"},
		{`{"text":"x","text":"y"}`, "text"},
		{`{"text":"x","extra":1}`, "extra"},
		{`{"text":"x","e\u0078tra":1}`, "extra"},
		{`{"text":"x","inner":{}}`, "inner.count"},
		{`{"text":"x","inner":{"count":1,"b":1}}`, "inner.b"},
		{`{"text":"x","inner":{"count":1.5}}`, "inner.count"},
		{`{"text":"x","inner":{"count":9223372036854775808}}`, "inner.count"},
		{`{"text":"x","inner":[]}`, "inner"},
		{`{"text":"x","list":{}}`, "list"},
		{`{"text":"x","list":[{"count":1},null]}`, "list"},
		{`{"text":"x","list":[{"count":"1"}]}`, "list.count"},
		{`[]`, "parameters"},
		{`"text"`, "parameters"},
	} {
		_, err := c.Call(t.Context(), "io.holdfast.Test.Echo", json.RawMessage(tt.parameters), nil, nil)
		wantError(t, err, varlink.ErrInvalidParameter, "parameter", tt.invalid)
	}
	for _, parameters := range []string{
		`{"text":"x","inner":null,"list":null}`,
		`{ "list" : [ { "count" : -1 } , { "count" : 2 } ] , "t\u0065xt" : "\"}{][,:\\" , "inner" : { "count" : 0 } }`,
		`{"text":"","list":[]}`,
	} {
		if _, err := c.Call(t.Context(), "io.holdfast.Test.Echo", json.RawMessage(parameters), nil, nil); err != nil {
			t.Errorf("%s: %v", parameters, err)
		}
	}
}

func TestWrongDescriptorIndex(t *testing.T) {
	path, _ := serve(t, &varlink.Server{})
	c := dial(t, path)
	r, err := pipeWith("x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, index := range []int{-1, 1, 2, 1 << 30} {
		_, err := c.Call(t.Context(), "io.holdfast.Test.Read", map[string]any{"fileDescriptor": index}, []int{r.Raw()}, nil)
		wantError(t, err, varlink.ErrInvalidParameter, "parameter", "fileDescriptor")
	}
	_, err = c.Call(t.Context(), "io.holdfast.Test.Read", map[string]any{"fileDescriptor": 0}, nil, nil)
	wantError(t, err, varlink.ErrInvalidParameter, "parameter", "fileDescriptor")
}
