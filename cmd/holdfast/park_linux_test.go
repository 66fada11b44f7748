// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/api"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/luosim"
)

// answers says io.holdfast.Sessions as it is told to: what there is a keeper for can't be had everywhere. It returns
// where.
func answers(t *testing.T, methods map[string]varlink.Method) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "io.holdfast")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	server := &varlink.Server{MaxFDs: 130,
		Interfaces: []varlink.Interface{{Name: "io.holdfast.Sessions", Description: api.Sessions, Methods: methods}}}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return address
}

// method asks for these parameters, and answers so.
func method(want string, reply *varlink.Reply, err error) varlink.Method {
	return func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
		var in struct {
			Name       *string `json:"name,omitempty"`
			KernelName *string `json:"kernelName,omitempty"`
			Direction  *string `json:"direction,omitempty"`
			All        *bool   `json:"all,omitempty"`
		}
		if err := call.Parameters(&in); err != nil {
			return nil, err
		}
		if got, e := json.Marshal(in); e != nil || string(got) != want {
			return nil, fmt.Errorf("asked for %s, not for %s", got, want)
		}
		return reply, err
	}
}

// memory is a memfd with a text in it.
func memory(t *testing.T, text string) *os.File {
	t.Helper()
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(raw), text)
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func sessionOf(name, direction string) map[string]any {
	return map[string]any{"name": name, "owner": "/vmm.service", "kernelName": "h1-ok2ohkddat64npei." + name,
		"direction": direction, "parked": true, "foreign": false}
}

func TestPark(t *testing.T) {
	var parked []string
	refuse := map[string]error{}
	address := answers(t, map[string]varlink.Method{
		"Identify": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			return &varlink.Reply{Parameters: map[string]any{"session": sessionOf("ram", "outgoing"), "yours": true}}, nil
		},
		"Park": func(_ context.Context, call *varlink.Call) (*varlink.Reply, error) {
			var in struct {
				SessionFileDescriptor int        `json:"sessionFileDescriptor"`
				Files                 []fileJSON `json:"files,omitempty"`
			}
			if err := call.Parameters(&in); err != nil {
				return nil, err
			}
			if err := refuse["Park"]; err != nil {
				return nil, err
			}
			parked = nil
			for _, f := range append([]fileJSON{{"session", in.SessionFileDescriptor}}, in.Files...) {
				taken, err := call.TakeFD(f.FileDescriptor, f.Name)
				if err != nil {
					return nil, err
				}
				text := make([]byte, 100)
				n, err := unix.Pread(taken.Raw(), text, 0)
				taken.Close()
				if err != nil {
					return nil, err
				}
				parked = append(parked, f.Name+"="+string(text[:n]))
			}
			return &varlink.Reply{Parameters: map[string]any{"session": sessionOf("ram", "outgoing")}}, nil
		},
	})
	park := func(args ...string) result {
		t.Helper()
		cmd := command(address, append([]string{"park"}, args...)...)
		cmd.ExtraFiles = []*os.File{memory(t, "three"), memory(t, "four"), memory(t, "five")}
		return runTool(t, cmd)
	}
	for _, test := range []struct {
		args string
		want []string
	}{
		{"ram", []string{"session=three"}},
		{"ram --fd 5", []string{"session=five"}},
		{"ram --file data=5 --file index@1=4", []string{"session=three", "data=five", "index@1=four"}},
	} {
		if r := park(strings.Fields(test.args)...); r != (result{}) || !slices.Equal(parked, test.want) {
			t.Errorf("holdfast park %s: %+v, and %q was parked; want %q", test.args, r, parked, test.want)
		}
	}
	park("rom").failed(t, 1, `file descriptor 3 is the session ram, which is not called "rom"`)
	park("ram", "--file", "data=9").failed(t, 1, "file descriptor 9 is not open")
	for want, err := range map[string]*varlink.Error{
		`the file "index", descriptor 4, can't be parked`: varlink.InvalidParameter("files[1].fileDescriptor"),
		"takes systemd 261 or newer":                      {Name: "io.holdfast.Sessions.KeeperFull", Parameters: map[string]int{"limit": 0}},
		"belongs to somebody else":                        {Name: "io.holdfast.Sessions.NotOwner", Parameters: map[string]string{"kernelName": "h1-x"}},
		"8 sessions":                                      {Name: "io.holdfast.Sessions.QuotaExceeded", Parameters: map[string]int{"limit": 8}},
	} {
		refuse["Park"] = err
		park("ram", "--file", "data=5", "--file", "index=4").failed(t, 1, want)
	}
}

func TestReclaim(t *testing.T) {
	for _, test := range []struct {
		args  string // of holdfast reclaim
		want  string // what holdfastd is asked
		files int
	}{
		{"ram", `{"name":"ram"}`, 0},
		{"ram --direction outgoing", `{"name":"ram","direction":"outgoing"}`, 2},
		{"ram --direction incoming", `{"name":"ram","direction":"incoming"}`, 0},
		{"ram", `{"name":"ram"}`, 128},
	} {
		for _, inherited := range []bool{false, true} {
			// The answer's order isn't that of its descriptors.
			reply := map[string]any{"session": sessionOf("ram", "outgoing"), "sessionFileDescriptor": test.files}
			files, fds := []fileJSON{}, []*fd.FD{}
			add := func(text string) {
				raw, err := unix.FcntlInt(memory(t, text).Fd(), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				fds = append(fds, fd.New(raw))
			}
			names, texts := "h1-ok2ohkddat64npei.ram", "session,"
			for i := range test.files {
				files = append(files, fileJSON{fmt.Sprintf("f%d", i), test.files - 1 - i})
				add(fmt.Sprintf("%d,", test.files-1-i))
				names += fmt.Sprintf(":f%d", i)
				texts += fmt.Sprintf("%d,", i)
			}
			add("session,")
			reply["files"] = files
			n := 1 + test.files
			address := answers(t, map[string]varlink.Method{"Reclaim": method(test.want, &varlink.Reply{Parameters: reply, FDs: fds}, nil)})
			// A shell's own redirections take one digit.
			script := `echo $([ $$ = "$LISTEN_PID" ] && echo mine) $LISTEN_FDS $LISTEN_FDNAMES
				for n in $(seq 3 $((2 + LISTEN_FDS))); do cat /proc/self/fd/$n; done; echo
				ls -l /proc/self/fd | grep -c memfd:
				exit 7`
			args := append(append([]string{"reclaim"}, strings.Fields(test.args)...), "--", "sh", "-c", script)
			cmd := command(address, args...)
			if inherited {
				wrapped := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin exec "$0" "$@"`, cmd.Path}, args...)...)
				wrapped.Env = cmd.Env
				wrapped.ExtraFiles = []*os.File{memory(t, "web,"), memory(t, "admin,")}
				cmd, n, names, texts = wrapped, n+2, names+":web:admin", texts+"web,admin,"
			}
			want := result{7, fmt.Sprintf("mine %d %s\n%s\n%d\n", n, names, texts, n), ""}
			if got := runTool(t, cmd); got != want {
				t.Errorf("holdfast %s, inherited %t: got %+v, want %+v", strings.Join(args[:len(args)-1], " "), inherited, got, want)
			}
		}
	}
	address := answers(t, map[string]varlink.Method{"Reclaim": method(`{"name":"ram"}`, nil,
		&varlink.Error{Name: "io.holdfast.Sessions.NoSuchSession", Parameters: map[string]string{"name": "ram"}})})
	tool(t, address, "reclaim", "ram", "--", "true").failed(t, 1, `reclaim "ram": there is no session "ram"`)
	address = answers(t, map[string]varlink.Method{"Reclaim": method(`{"name":"ram"}`,
		&varlink.Reply{Parameters: map[string]any{"session": sessionOf("ram", "outgoing"), "sessionFileDescriptor": 0, "files": []fileJSON{}}}, nil)})
	tool(t, address, "reclaim", "ram", "--", "true").failed(t, 1, "without the descriptor")
}

func TestRelease(t *testing.T) {
	for args, want := range map[string]string{
		"ram":                                   `{"name":"ram"}`,
		"ram --direction incoming":              `{"name":"ram","direction":"incoming"}`,
		"--kernel-name h1-ok2ohkddat64npei.ram": `{"kernelName":"h1-ok2ohkddat64npei.ram"}`,
		"--kernel-name h1-ok2ohkddat64npei.ram --direction outgoing": `{"kernelName":"h1-ok2ohkddat64npei.ram","direction":"outgoing"}`,
	} {
		address := answers(t, map[string]varlink.Method{"Release": method(want, &varlink.Reply{}, nil)})
		if r := tool(t, address, append([]string{"release"}, strings.Fields(args)...)...); r != (result{}) {
			t.Errorf("holdfast release %s: %+v", args, r)
		}
	}
	address := answers(t, map[string]varlink.Method{"Release": method(`{"name":"ram"}`, nil,
		&varlink.Error{Name: "io.holdfast.Sessions.NoSuchSession", Parameters: map[string]string{"name": "ram"}})})
	tool(t, address, "release", "ram").failed(t, 1, `release "ram": there is no session "ram"`)
	address = answers(t, map[string]varlink.Method{"Release": method(`{"kernelName":"h1-ok2ohkddat64npei.ram"}`, nil,
		&varlink.Error{Name: "io.holdfast.Sessions.NoSuchSession", Parameters: map[string]string{"name": "ram"}})})
	tool(t, address, "release", "--kernel-name", "h1-ok2ohkddat64npei.ram").failed(t, 1, `release "h1-ok2ohkddat64npei.ram": there is no such session; holdfast list --all shows`)
	address = answers(t, map[string]varlink.Method{"Release": method(`{"name":"ram"}`, nil, varlink.InvalidParameter("direction"))})
	tool(t, address, "release", "ram").failed(t, 1, "say by --direction whether it is the incoming one")
}

// TestOverAnUpdate is with a real holdfastd, which has no keeper here, on an emulated kernel.
func TestOverAnUpdate(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		address := startDaemon(t, "--uid-owners")
		t.Setenv("HOLDFAST_ADDRESS", address)
		client, err := holdfast.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		session, err := client.Acquire(t.Context(), "ram")
		if err != nil {
			t.Fatal(err)
		}
		data := memory(t, "data")
		if err := session.Preserve("data", data); err != nil {
			t.Fatal(err)
		}
		if err := session.Commit(); err != nil {
			t.Fatal(err)
		}
		park := func(args ...string) result {
			t.Helper()
			dup, err := session.LiveUpdate().Dup()
			if err != nil {
				t.Fatal(err)
			}
			three := dup.File()
			defer three.Close()
			cmd := command(address, append([]string{"park"}, args...)...)
			cmd.ExtraFiles = []*os.File{three, data}
			return runTool(t, cmd)
		}
		park("ram", "--file", "data=4").failed(t, 1, "no keeper here")
		park("rom").failed(t, 1, `file descriptor 3 is the session ram, which is not called "rom"`)
		park("ram", "--fd", "4").failed(t, 1, "file descriptor 4 is not a live update session")
		park("ram", "--file", "data=3").failed(t, 1, `the file "data", descriptor 3, can't be parked`)
		tool(t, address, "reclaim", "ram", "--", "true").failed(t, 1, "there is no session")
		tool(t, address, "release", "ram").failed(t, 1, "there is no session")
		// The session stays open until the kexec.
	}, func(t *testing.T) {
		address := startDaemon(t, "--uid-owners")
		// Lent, and so to be had again.
		for range 2 {
			r := tool(t, address, "reclaim", "ram", "--", "sh", "-c", `echo "$LISTEN_FDS $LISTEN_FDNAMES"; exec "$0" identify --json`, filepath.Join(binaries, "holdfast"))
			first, rest, _ := strings.Cut(r.stdout, "\n")
			var id identified
			if err := json.Unmarshal([]byte(rest), &id); err != nil {
				t.Fatalf("%v: %+v", err, r)
			}
			if r.status != 0 || !id.Yours || id.Session.Name != "ram" || id.Session.Direction != "incoming" || first != "1 "+id.Session.KernelName {
				t.Errorf("holdfast reclaim ram: %+v", r)
			}
		}
		tool(t, address, "reclaim", "ram", "--direction", "outgoing", "--", "true").failed(t, 1, "there is no session")
		if r := tool(t, address, "list"); r.status != 0 || !strings.Contains(r.stdout, "incoming    yes\n") || strings.Count(r.stdout, "\n") != 2 {
			t.Errorf("holdfast list: %+v", r)
		}
		if r := tool(t, address, "release", "ram"); r != (result{}) {
			t.Errorf("holdfast release ram: %+v", r)
		}
		tool(t, address, "release", "ram").failed(t, 1, "there is no session")
		if r := tool(t, address, "list"); strings.Count(r.stdout, "\n") != 1 {
			t.Errorf("holdfast list after the release: %+v", r)
		}
	})
}
