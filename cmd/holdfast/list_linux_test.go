// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

func TestList(t *testing.T) {
	theirs := sessionOf("rom", "incoming")
	delete(theirs, "owner")
	theirs["claimed"] = false
	claimed := sessionOf("ram", "incoming")
	claimed["claimed"] = true
	sessions := map[string]any{"sessions": []any{sessionOf("ram", "outgoing"), claimed, theirs}}

	address := answers(t, map[string]varlink.Method{"List": method(`{}`, &varlink.Reply{Parameters: sessions}, nil)})
	const own = `NAME   OWNER          KERNEL NAME               DIRECTION   CLAIMED
ram    /vmm.service   h1-ok2ohkddat64npei.ram   outgoing    -
ram    /vmm.service   h1-ok2ohkddat64npei.ram   incoming    yes
rom    -              h1-ok2ohkddat64npei.rom   incoming    no
`
	if r := tool(t, address, "list"); r != (result{0, own, ""}) {
		t.Errorf("holdfast list: %+v", r)
	}
	var got, want any
	text, err := json.Marshal(sessions)
	r := tool(t, address, "list", "--json")
	if err != nil || json.Unmarshal(text, &want) != nil || json.Unmarshal([]byte(r.stdout), &got) != nil || fmt.Sprint(got) != fmt.Sprint(want) || r.status != 0 {
		t.Errorf("holdfast list --json: %+v", r)
	}

	// The rest of the table is what there is on this machine: nothing, without a kernel for it.
	address = answers(t, map[string]varlink.Method{"List": method(`{"all":true}`, &varlink.Reply{Parameters: sessions}, nil)})
	const all = `  NAME   OWNER          KERNEL NAME               DIRECTION   PARKED   CLAIMED   HELD BY
  ram    /vmm.service   h1-ok2ohkddat64npei.ram   outgoing    yes      -         -
  ram    /vmm.service   h1-ok2ohkddat64npei.ram   incoming    yes      yes       -
! rom    /vmm.service   h1-ok2ohkddat64npei.rom   incoming    yes      no        -

! h1-ok2ohkddat64npei.rom: /vmm.service has not claimed it since the update; start it, or free the memory by holdfast release --kernel-name h1-ok2ohkddat64npei.rom --direction incoming.

Not seen:
`
	r = tool(t, address, "list", "--all")
	if r.status != 0 || r.stderr != "" || !strings.HasPrefix(r.stdout, all) || !strings.Contains(r.stdout, "nobody has retrieved from the kernel") {
		t.Errorf("holdfast list --all: %+v; want\n%s", r, all)
	}

	if r := tool(t, startDaemon(t), "list"); r != (result{0, "NAME   OWNER   KERNEL NAME   DIRECTION   CLAIMED\n", ""}) {
		t.Errorf("holdfast list, of a daemon that has nothing: %+v", r)
	}
}

// TestListWhoMay: what is parked is for the privileged. Others see what they can, and that it isn't all.
func TestListWhoMay(t *testing.T) {
	refusal := &varlink.Error{Name: "io.holdfast.Sessions.NotPermitted", Parameters: map[string]string{"reason": "uid 1000 may not"}}
	address := answers(t, map[string]varlink.Method{"List": method(`{"all":true}`, nil, refusal)})
	for _, where := range []string{address, nowhere} {
		if where == nowhere {
			if err := (liveupdate.Device{}).Available(); err != nil {
				continue // then that is what it says, as every command does
			}
		}
		r := tool(t, where, "list", "--all")
		status := 0
		if os.Getuid() != 0 {
			status = 1
		}
		if r.status != status || !strings.Contains(r.stdout, "\nNot seen:\n") || !strings.Contains(r.stdout, "  what is parked: ") {
			t.Errorf("holdfast list --all: %+v", r)
		}
	}
}

// surveyOf is as if these were all sessions; parked tells of those that are whether they are claimed.
func surveyOf(parked map[string]bool, sessions ...*inventory.Session) *survey {
	s := &survey{told: true, owners: owners{}, parked: map[*inventory.Session]sessionJSON{}}
	s.Sessions = sessions
	for _, session := range sessions {
		if claimed, ok := parked[session.KernelName]; ok {
			j := sessionJSON{KernelName: session.KernelName, Parked: true}
			if session.Direction == liveupdate.Incoming {
				j.Claimed = &claimed
			}
			s.parked[session] = j
		}
	}
	s.owners.add("/vmm.service")
	return s
}

func TestWhatStandsOut(t *testing.T) {
	const ram = "h1-ok2ohkddat64npei.ram"
	in := func(unit string) inventory.Holder { return inventory.Holder{PID: 1, Unit: unit, Store: true} }
	process := func(pid int, unit string) inventory.Holder { return inventory.Holder{PID: pid, Unit: unit} }
	const outgoing, incoming = liveupdate.Outgoing, liveupdate.Incoming
	for name, c := range map[string]struct {
		session  inventory.Session
		parked   map[string]bool
		claimed  string
		problems []string
		says     string
	}{
		"its own store":           {session: inventory.Session{KernelName: ram, Direction: outgoing, Holders: []inventory.Holder{in("vmm.service"), process(7, "vmm.service")}}, claimed: "-"},
		"two stores":              {session: inventory.Session{KernelName: ram, Direction: outgoing, Holders: []inventory.Holder{in("a.service"), in("vmm.service")}}, claimed: "-", problems: []string{inTwoStores}, says: "the fd stores of a.service and of vmm.service"},
		"two stores, which side?": {session: inventory.Session{KernelName: "x", Holders: []inventory.Holder{in("a.service"), in("vmm.service")}}, claimed: "-", problems: []string{inTwoStores}, says: "at random"},
		"parked and stored":       {session: inventory.Session{KernelName: ram, Direction: outgoing, Holders: []inventory.Holder{in("holdfastd.service"), in("vmm.service")}}, parked: map[string]bool{ram: false}, claimed: "-", problems: []string{inTwoStores}, says: "holdfastd.service and of vmm.service"},
		"parked, not claimed":     {session: inventory.Session{KernelName: ram, Direction: incoming, Holders: []inventory.Holder{in("holdfastd.service"), process(5, "holdfastd.service")}}, parked: map[string]bool{ram: false}, claimed: "no", problems: []string{unclaimed}, says: "/vmm.service has not claimed it since the update; start it, or free the memory by holdfast release --kernel-name " + ram + " --direction incoming"},
		"parked, claimed":         {session: inventory.Session{KernelName: ram, Direction: incoming, Holders: []inventory.Holder{in("holdfastd.service")}}, parked: map[string]bool{ram: true}, claimed: "yes"},
		"stored, not claimed":     {session: inventory.Session{KernelName: ram, Direction: incoming, Holders: []inventory.Holder{in("vmm.service")}}, claimed: "no", problems: []string{unclaimed}, says: "systemctl clean --what=fdstore vmm.service"},
		"in another's store":      {session: inventory.Session{KernelName: ram, Direction: incoming, Holders: []inventory.Holder{in("a.service")}}, claimed: "no", problems: []string{unclaimed}, says: "it belongs to /vmm.service, and nobody has it since the update but the fd store of a.service"},
		"stored, claimed":         {session: inventory.Session{KernelName: ram, Direction: incoming, Holders: []inventory.Holder{in("vmm.service"), process(7, "vmm.service")}}, claimed: "yes"},
		"PID 1's own":             {session: inventory.Session{KernelName: "systemd", Direction: incoming, Holders: []inventory.Holder{process(1, "init.scope")}}, claimed: "no", problems: []string{unclaimed}, says: "nobody has it since the update but PID 1"},
	} {
		t.Run(name, func(t *testing.T) {
			list := surveyOf(c.parked, &c.session).list(t.Context())
			s := list.Sessions[0]
			if got := yesNo(s.Claimed); got != c.claimed || !slices.Equal(s.Problems, c.problems) || s.Parked != (c.parked != nil) {
				t.Errorf("claimed %s, problems %v, parked %t", got, s.Problems, s.Parked)
			}
			var out bytes.Buffer
			if err := list.print(&out); err != nil {
				t.Fatal(err)
			}
			marks := strings.Count(out.String(), "\n! ")
			if want := 2 * len(c.problems); marks != want || !strings.Contains(out.String(), c.says) || strings.Contains(out.String(), "\x1b") {
				t.Errorf("%d lines are marked, of %d; want %q in\n%s", marks, want, c.says, out.String())
			}
		})
	}
}

// What the policy is about to release says so, before it does.
func TestListSaysWhatWillBeReleased(t *testing.T) {
	session := inventory.Session{KernelName: "h1-ok2ohkddat64npei.ram", Direction: liveupdate.Incoming}
	survey := surveyOf(map[string]bool{session.KernelName: false}, &session)
	told := survey.parked[&session]
	told.ReleaseBootUSec = (timeline.Now() + 49*time.Hour + 30*time.Minute).Microseconds()
	survey.parked[&session] = told
	list := survey.list(t.Context())
	var out bytes.Buffer
	if err := list.print(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "--direction incoming; the policy has it released in 2d1h.\n") || list.Sessions[0].ReleaseBootUSec != told.ReleaseBootUSec {
		t.Errorf("%+v\n%s", list.Sessions[0], out.String())
	}
}

// A name may be anything: nothing of it reaches the terminal as more than text.
func TestListForeignName(t *testing.T) {
	var out bytes.Buffer
	foreign := inventory.Session{KernelName: "a\x1b[31m\nb", Direction: liveupdate.Outgoing, Holders: []inventory.Holder{{PID: 7}, {PID: 8}}}
	if err := surveyOf(nil, &foreign).list(t.Context()).print(&out); err != nil {
		t.Fatal(err)
	}
	if want := `  -      foreign   "a\x1b[31m\nb"   outgoing    no       -         no unit: 7 8` + "\n"; !strings.Contains(out.String(), want) {
		t.Errorf("%q isn't in\n%s", want, out.String())
	}
}

// keep starts a command that says a line once it has what it was started for, and runs until the kexec.
func keep(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("%s said %q: %v", cmd, line, err)
	}
}

// TestListOverAnUpdate is with a real holdfastd on an emulated kernel, without fd stores.
func TestListOverAnUpdate(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may list all sessions without a rule for it")
	}
	const foreign = "made-by-another"
	owner := fmt.Sprintf("uid/%d", os.Getuid())
	list := func(t *testing.T, address string) (*inventoryJSON, string) {
		t.Helper()
		r := tool(t, address, "list", "--all", "--json")
		var list inventoryJSON
		if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || r.status != 0 {
			t.Fatalf("%v: %+v", err, r)
		}
		var lines []string
		for _, s := range list.Sessions {
			// Each is held by the test or a child of it, at least.
			lines = append(lines, fmt.Sprintf("%s|%s|%s|foreign %t|claimed %s|held %t|%v", s.Name, s.Owner, s.Direction, s.Foreign, yesNo(s.Claimed), len(s.Holders) > 0, s.Problems))
		}
		return &list, strings.Join(lines, "\n")
	}
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		address := startDaemon(t, "--uid-owners")
		other, err := liveupdate.Device{}.Create(t.Context(), foreign)
		if err != nil {
			t.Fatal(err)
		}
		// The tool itself is who has the other one.
		r := tool(t, address, "acquire", "ram", "--", filepath.Join(binaries, "holdfast"), "list", "--all", "--json")
		var all inventoryJSON
		if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || r.status != 0 || len(all.Sessions) != 2 || all.Sessions[0].Owner != owner || all.Sessions[0].Name != "ram" {
			t.Errorf("holdfast acquire ram -- holdfast list --all: %v: %+v", err, r)
		}
		if _, got := list(t, address); got != "||outgoing|foreign true|claimed -|held true|[]" {
			t.Errorf("holdfast list --all: %s", got)
		}
		// For the next kernel.
		cmd := command(address, "acquire", "ram", "--", "sh", "-c", "echo ready; exec cat")
		keep(t, cmd)
		if _, got := list(t, address); got != "ram|"+owner+"|outgoing|foreign false|claimed -|held true|[]\n||outgoing|foreign true|claimed -|held true|[]" {
			t.Errorf("holdfast list --all: %s", got)
		}
		_ = other // open until the kexec
	}, func(t *testing.T) {
		address := startDaemon(t, "--uid-owners")
		all, got := list(t, address)
		if got != "" || !slices.ContainsFunc(all.Unseen, func(u unseenJSON) bool { return u.What == "unretrieved" }) {
			t.Errorf("what nobody has retrieved can't be listed, and that is to be said: %s, %+v", got, all.Unseen)
		}
		if r := tool(t, address, "reclaim", "ram", "--", "true"); r.status != 0 {
			t.Fatalf("holdfast reclaim: %+v", r)
		}
		if _, got := list(t, address); got != "ram|"+owner+"|incoming|foreign false|claimed yes|held true|[]" {
			t.Errorf("holdfast list --all: %s", got)
		}
		other, err := liveupdate.Device{}.Retrieve(t.Context(), foreign)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, got := list(t, address); got != "ram|"+owner+"|incoming|foreign false|claimed yes|held true|[]\n||incoming|foreign true|claimed yes|held true|[]" {
			t.Errorf("holdfast list --all: %s", got)
		}
	})
}
