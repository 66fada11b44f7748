// SPDX-License-Identifier: MIT

package orchestrator

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// serve is an orchestrator on a machine without the device, and a client: this process, wherever it runs.
func serve(t *testing.T, p *policy.Policy) *varlink.Client {
	t.Helper()
	_, client := serveWith(t, p, filepath.Join(t.TempDir(), "liveupdate"))
	return client
}

func serveWith(t *testing.T, p *policy.Policy, device string, change ...func(*Orchestrator)) (*Orchestrator, *varlink.Client) {
	t.Helper()
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	o := &Orchestrator{Device: liveupdate.Device{Path: device}, Cgroups: cgroups, Log: slog.New(slog.DiscardHandler)}
	if o.Custody, err = custody.New(o.Device, custody.None{Reason: errors.New("this is a test")}, nil, o.Log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Custody.Close)
	for _, f := range change {
		f(o)
	}
	o.SetPolicy(p)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Server().Serve(ctx, listener)
	}()
	t.Cleanup(func() { cancel(); <-done; listener.Close() })
	client, err := varlink.Dial(t.Context(), listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return o, client
}

// refusal is the error's name, and some of its parameters in words.
func refusal(t *testing.T, client *varlink.Client, method string, parameters map[string]any, sent ...int) string {
	t.Helper()
	fds, err := client.Call(t.Context(), iface+"."+method, parameters, sent, nil)
	if len(fds) > 0 {
		t.Errorf("%s: got %d descriptors", method, len(fds))
	}
	var refused *varlink.Error
	if !errors.As(err, &refused) {
		t.Fatalf("%s %v: %v", method, parameters, err)
	}
	var said map[string]any
	if err := refused.Decode(&said); err != nil {
		t.Fatal(err)
	}
	text := strings.TrimPrefix(refused.Name, iface+".")
	for _, key := range slices.Sorted(maps.Keys(said)) {
		if value, ok := said[key].(string); ok && (key == "name" || key == "rule" || key == "problem" || key == "parameter") {
			text += " " + key + "=" + value
		}
	}
	return text
}

// here is the rule for this process, which may well be in a unit: a test in a login session or a service.
func here(t *testing.T) *policy.UIDOwners {
	own, err := peer.OwnCgroup()
	if err != nil {
		t.Fatal(err)
	}
	return &policy.UIDOwners{Unit: peer.UnitPath(own)}
}

func TestUIDOwnersDecideForBothMethods(t *testing.T) {
	rule := here(t)
	if strings.HasSuffix(rule.Unit, ".service") && os.Geteuid() == 0 {
		t.Skip("in a service of root's, as this, the built-in rule is first")
	}
	nobody, own := *rule, uint32(os.Geteuid())
	nobody.Overflow = &own
	for _, method := range []string{"Acquire", "Reclaim"} {
		for name, c := range map[string]struct {
			policy *policy.Policy
			want   []string
		}{
			"off":      {&policy.Policy{}, []string{"NoOwner", "NotPermitted rule=built-in"}},
			"on":       {&policy.Policy{UIDOwners: rule}, []string{"KernelNotReady problem=noDevice", "KernelNotReady problem=notEnabled"}},
			"overflow": {&policy.Policy{UIDOwners: &nobody}, []string{"NotPermitted rule=uid-owners"}},
		} {
			if got := refusal(t, serve(t, c.policy), method, map[string]any{"name": "ram"}); !slices.Contains(c.want, got) {
				t.Errorf("%s with uid owners %s: %s, want %v", method, name, got, c.want)
			}
		}
	}
}

func TestReclaimRefuses(t *testing.T) {
	client := serve(t, &policy.Policy{UIDOwners: here(t)})
	for _, c := range []struct {
		parameters map[string]any
		want       string
	}{
		{map[string]any{}, "org.varlink.service.InvalidParameter parameter=name"},
		{map[string]any{"name": "ram", "direction": "sideways"}, "org.varlink.service.InvalidParameter parameter=direction"},
		{map[string]any{"name": "ram", "fresh": true}, "org.varlink.service.InvalidParameter parameter=fresh"},
		{map[string]any{"name": "../ram"}, "NameInvalid name=../ram"},
		{map[string]any{"name": "ram", "direction": "outgoing"}, "NoSuchSession name=ram"}, // nothing is ever parked
		{map[string]any{"name": "ram", "subject": map[string]any{"owner": "/vmm.service"}}, "NotPermitted rule=uid-owners"},
	} {
		if got := refusal(t, client, "Reclaim", c.parameters); got != c.want {
			t.Errorf("%v: %s, want %s", c.parameters, got, c.want)
		}
	}
}

// Whoever is told that there is no session starts afresh. It must not be said of one that somebody has.
func TestWhatTheKernelSaysToReclaim(t *testing.T) {
	said := func(kind error, errno syscall.Errno) *varlink.Error {
		err := visible("ram", &liveupdate.Error{Op: liveupdate.OpRetrieveSession, Name: "h1-x.ram", Kind: kind, Err: errno})
		var v *varlink.Error
		if !errors.As(err, &v) {
			t.Fatalf("%v", err)
		}
		return v
	}
	if v := said(liveupdate.ErrNoSuchSession, syscall.ENOENT); v.Name != iface+".NoSuchSession" || v.Parameters.(map[string]string)["name"] != "ram" {
		t.Errorf("ENOENT: %+v", v)
	}
	v := said(liveupdate.ErrAlreadyRetrieved, syscall.EINVAL)
	if p := v.Parameters.(map[string]any); v.Name != iface+".KernelError" || p["operation"] != "retrieve session" || p["errno"] != 22 {
		t.Errorf("EINVAL: %+v", v)
	}
}
