// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	godbus "github.com/godbus/dbus/v5"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/examples/internal/pass"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// startTimeout is for a machine with gigabytes to retrieve.
const startTimeout = 2 * time.Minute

type manager struct {
	client  *holdfast.Client
	systemd *dbus.Conn
	as      *syscall.Credential
	options options
	number  int               // of the machine started last
	came    map[string]answer // the last one of each machine
}

// runningError says that a machine is there already.
type runningError struct{ name, scope string }

func (e *runningError) Error() string { return fmt.Sprintf("%s runs already, in %s", e.name, e.scope) }

// entry is a machine in a list.
type entry struct {
	Name  string  `json:"name"`
	Scope string  `json:"scope,omitempty"`
	State string  `json:"state"` // running, stopping, stopped
	Came  *answer `json:"came,omitempty"`
}

func newManager(ctx context.Context, o options) (*manager, error) {
	account, err := user.Lookup(o.user)
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, err
	}
	m := &manager{options: o, came: map[string]answer{}, as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if m.client, err = holdfast.Dial(ctx); err != nil {
		return nil, err
	}
	if m.systemd, err = dbus.NewSystemConnectionContext(ctx); err != nil {
		m.client.Close()
		return nil, fmt.Errorf("the system bus: %w", err)
	}
	return m, nil
}

func (m *manager) close() {
	m.systemd.Close()
	m.client.Close()
}

var machineName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func checkName(name string) error {
	if !machineName.MatchString(name) {
		return fmt.Errorf("%q can't be a machine's name: it has small letters, digits and -, and 32 of them at most", name)
	}
	return nil
}

// start starts a machine, with the memory that it had before if there is any, and says how that went.
func (m *manager) start(ctx context.Context, name string) (*answer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// The orchestrator lends, so it would hand the memory of one that runs to a second one.
	running, err := m.running(ctx, name)
	if err != nil {
		return nil, err
	}
	if running != "" {
		return nil, &runningError{name, running}
	}
	// The machine isn't there yet, so it is asked for by whom its scope will belong to. Nothing of it is retrieved: the
	// machine's cgroup is to pay for the memory.
	files, err := m.client.As(holdfast.Owner("qemu/"+name)).Handover(ctx, sessionName)
	if err != nil && !errors.Is(err, holdfast.ErrNoSuchSession) {
		return nil, err
	}
	defer func() { pass.CloseAll(files) }()

	path := filepath.Join(m.options.consoles, name+".log")
	console, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer console.Close()
	said, err := console.Stat()
	if err != nil {
		return nil, err
	}
	// It waits at its socket until it is in its scope.
	here, there, err := pass.Pair()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	machine := exec.Command("/proc/self/exe", append(m.options.flags(), "machine", name)...)
	machine.ExtraFiles = []*os.File{there} // descriptor 3
	machine.Stdout, machine.Stderr = console, os.Stderr
	machine.SysProcAttr = &syscall.SysProcAttr{Credential: m.as}
	err = machine.Start()
	there.Close()
	if err != nil {
		return nil, err
	}
	scope, err := m.scope(ctx, name, machine.Process.Pid)
	go machine.Wait() // not before: until then its PID is nobody else's
	started := false
	defer func() {
		if !started {
			machine.Process.Kill()
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := pass.Send(here, files); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// Before it takes part in updates: what is open here could keep its RAM in a session of before.
	pass.CloseAll(files)
	if deadline, ok := ctx.Deadline(); ok {
		here.SetDeadline(deadline)
	}
	data := make([]byte, 64<<10)
	n, err := here.Read(data)
	if err != nil {
		return nil, fmt.Errorf("%s ended before it ran: %w", name, err)
	}
	var came answer
	if err := json.Unmarshal(data[:n], &came); err != nil {
		return nil, fmt.Errorf("what %s answers: %w", name, err)
	}
	if came.Error != "" {
		return nil, fmt.Errorf("%s: %s; what is saved of it stays as it is, until vmm destroy %[1]s", name, came.Error)
	}
	started = true
	came.Scope = scope
	if came.Came == "fresh" && came.Why == "" && said.Size() > 0 {
		came.Why = "it has run before, and nothing was saved when it ended: see " + path
	}
	m.came[name] = came
	return &came, nil
}

// scopeName is as systemd-machined calls the scopes of QEMU's machines: machine-, and qemu-NUMBER-NAME escaped.
func scopeName(number, name string) string {
	return `machine-qemu\x2d` + number + `\x2d` + unit.UnitNameEscape(name) + ".scope"
}

var scopePattern = regexp.MustCompile(`^machine-qemu\\x2d[0-9]+\\x2d(.+)\.scope$`)

// scopes are those of all machines that haven't ended, by the machine's name.
func (m *manager) scopes(ctx context.Context) (map[string]dbus.UnitStatus, error) {
	units, err := m.systemd.ListUnitsByPatternsContext(ctx, []string{"active", "activating", "deactivating"}, []string{`machine-qemu\x2d*.scope`})
	scopes := map[string]dbus.UnitStatus{}
	for _, u := range units {
		if found := scopePattern.FindStringSubmatch(u.Name); found != nil {
			scopes[unit.UnitNameUnescape(found[1])] = u
		}
	}
	return scopes, err
}

// running is the scope in which a machine runs; "" is none.
func (m *manager) running(ctx context.Context, name string) (string, error) {
	scopes, err := m.scopes(ctx)
	return scopes[name].Name, err
}

// list is of all machines that have ever said something.
func (m *manager) list(ctx context.Context) ([]entry, error) {
	scopes, err := m.scopes(ctx)
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(m.options.consoles, "*.log"))
	if err != nil {
		return nil, err
	}
	list := []entry{}
	for _, path := range names { // they are sorted
		e := entry{Name: strings.TrimSuffix(filepath.Base(path), ".log"), State: "stopped"}
		if u, there := scopes[e.Name]; there {
			e.Scope, e.State = u.Name, "running"
			if u.ActiveState == "deactivating" {
				e.State = "stopping"
			}
			if came, known := m.came[e.Name]; known && came.Scope == u.Name {
				e.Came = &came
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// stop has a machine saved and ended, and returns its scope.
func (m *manager) stop(ctx context.Context, name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	scope, err := m.running(ctx, name)
	if err != nil {
		return "", err
	}
	if scope == "" {
		return "", fmt.Errorf("%s doesn't run", name)
	}
	done := make(chan string, 1)
	if _, err := m.systemd.StopUnitContext(ctx, scope, "replace", done); err != nil {
		return "", fmt.Errorf("stopping %s: %w", scope, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return "", fmt.Errorf("stopping %s: its job is %s", scope, result)
		}
		return scope, nil
	case <-ctx.Done():
		return "", fmt.Errorf("stopping %s: %w", scope, ctx.Err())
	}
}

// destroy gives up what is saved of a machine.
func (m *manager) destroy(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	scope, err := m.running(ctx, name)
	if err != nil {
		return err
	}
	if scope != "" {
		return fmt.Errorf("%w: vmm stop %s first", &runningError{name, scope}, name)
	}
	as := m.client.As(holdfast.Owner("qemu/" + name))
	there := 0
	for _, d := range []liveupdate.Direction{liveupdate.Incoming, liveupdate.Outgoing} {
		switch err := as.Release(ctx, sessionName, holdfast.OnlyDirection(d)); {
		case err == nil:
			there++
		case !errors.Is(err, holdfast.ErrNoSuchSession):
			return err
		}
	}
	if there == 0 {
		return fmt.Errorf("nothing is saved of %s", name)
	}
	return nil
}

// scope puts a process into a scope of its own, and returns when it is in there.
func (m *manager) scope(ctx context.Context, name string, pid int) (string, error) {
	m.number++
	scope := scopeName(strconv.Itoa(m.number), name)
	done := make(chan string, 1)
	_, err := m.systemd.StartTransientUnitContext(ctx, scope, "fail", []dbus.Property{
		dbus.PropDescription("Machine " + name),
		dbus.PropSlice("machine.slice"),
		dbus.PropPids(uint32(pid)),
		// Not SIGTERM, on which QEMU would be gone before its state is saved: it goes to all of a scope's processes. QEMU
		// doesn't care about this one.
		{Name: "KillSignal", Value: godbus.MakeVariant(int32(syscall.SIGWINCH))},
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}, done)
	if err != nil {
		return "", fmt.Errorf("starting %s: %w", scope, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return "", fmt.Errorf("starting %s: its job is %s", scope, result)
		}
		return scope, nil
	case <-ctx.Done():
		return "", fmt.Errorf("starting %s: %w", scope, ctx.Err())
	}
}
