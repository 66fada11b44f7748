// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
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
)

// startTimeout is for a machine with gigabytes to retrieve.
const startTimeout = 2 * time.Minute

type manager struct {
	client  *holdfast.Client
	systemd *dbus.Conn
	as      *syscall.Credential
	number  int // of the machine started last
}

func newManager(ctx context.Context, name string) (*manager, error) {
	account, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, err
	}
	m := &manager{as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
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

// start starts a machine, with the memory that it had before if there is any, and says how that went.
func (m *manager) start(ctx context.Context, name string) (string, error) {
	if !machineName.MatchString(name) {
		return "", fmt.Errorf("%q can't be a machine's name: it has small letters, digits and -", name)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// The orchestrator lends, so it would hand the memory of one that runs to a second one.
	running, err := m.running(ctx, name)
	if err != nil {
		return "", err
	}
	if running != "" {
		return "", fmt.Errorf("%s runs already, in %s", name, running)
	}
	// The machine isn't there yet, so it is asked for by whom its scope will belong to. Nothing of it is retrieved: the
	// machine's cgroup is to pay for the memory.
	owner := "qemu/" + name
	files, err := m.client.As(holdfast.Owner(owner)).Handover(ctx, sessionName)
	if err != nil && !errors.Is(err, holdfast.ErrNoSuchSession) {
		return "", err
	}
	defer func() { pass.CloseAll(files) }()

	// It waits at its socket until it is in its scope.
	here, there, err := pass.Pair()
	if err != nil {
		return "", err
	}
	defer here.Close()
	var pidfd int
	machine := exec.Command("/proc/self/exe", "guest")
	machine.ExtraFiles = []*os.File{there} // descriptor 3
	machine.Stderr = os.Stderr
	machine.SysProcAttr = &syscall.SysProcAttr{Credential: m.as, PidFD: &pidfd}
	err = machine.Start()
	there.Close()
	if err != nil {
		return "", err
	}
	process := os.NewFile(uintptr(pidfd), "pidfd of "+name)
	defer process.Close()
	scope, err := m.scope(ctx, name, machine.Process.Pid)
	go machine.Wait() // not before: until then its PID is nobody else's
	started := false
	defer func() {
		if !started {
			machine.Process.Kill()
		}
	}()
	if err != nil {
		return "", err
	}
	if files == nil {
		session, err := m.client.As(holdfast.Process(process)).Acquire(ctx, sessionName)
		if err != nil {
			return "", err
		}
		defer session.Close()
		if session.Owner() != owner {
			return "", fmt.Errorf("by the policy, processes in %s own what is %s's; see the rule for it in the README", scope, session.Owner())
		}
		dup, err := session.LiveUpdate().Dup()
		if err != nil {
			return "", err
		}
		files = []*os.File{dup.File()}
	}
	if err := pass.Send(here, files); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		here.SetDeadline(deadline)
	}
	answer := make([]byte, 4096)
	n, err := here.Read(answer)
	if err != nil {
		return "", fmt.Errorf("%s ended before it ran: %w", name, err)
	}
	if text, failed := strings.CutPrefix(string(answer[:n]), "error "); failed {
		return "", fmt.Errorf("%s: %s", name, text)
	}
	started = true
	return scope + " " + string(answer[:n]), nil
}

// scopeName is as systemd-machined calls the scopes of QEMU's machines: machine-, and qemu-NUMBER-NAME escaped.
func scopeName(number, name string) string {
	return `machine-qemu\x2d` + number + `\x2d` + unit.UnitNameEscape(name) + ".scope"
}

// running is the scope in which a machine runs; "" is none.
func (m *manager) running(ctx context.Context, name string) (string, error) {
	pattern := scopeName("*", name)
	scopes, err := m.systemd.ListUnitsByPatternsContext(ctx, []string{"active", "activating", "deactivating"}, []string{pattern})
	before, after, _ := strings.Cut(pattern, "*")
	for _, scope := range scopes {
		number := strings.TrimSuffix(strings.TrimPrefix(scope.Name, before), after)
		if _, err := strconv.ParseUint(number, 10, 64); err == nil { // else it is a machine whose name ends in this one's
			return scope.Name, nil
		}
	}
	return "", err
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
