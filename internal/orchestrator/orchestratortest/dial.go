// SPDX-License-Identifier: MIT

//go:build linux

// Package orchestratortest has an orchestrator for the tests of those who talk to one.
package orchestratortest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/orchestrator"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
)

// Dial starts an orchestrator, as each boot of an emulated machine does, and connects to it. $HOLDFAST_ADDRESS says where it
// is. Both end with the test. Without rules each uid is an owner; without a keeper nothing can be parked.
func Dial(t *testing.T, rules *policy.Policy, keeper custody.Keeper, handed ...custody.Item) *holdfast.Client {
	t.Helper()
	if rules == nil {
		own, err := peer.OwnCgroup()
		if err != nil {
			t.Fatal(err)
		}
		rules = &policy.Policy{UIDOwners: &policy.UIDOwners{Unit: peer.UnitPath(own)}}
	}
	if keeper == nil {
		keeper = custody.None{Reason: errors.New("this is a test")}
	}
	cgroups, err := peer.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	o := &orchestrator.Orchestrator{Cgroups: cgroups, Log: slog.New(slog.DiscardHandler)}
	if o.Custody, err = custody.New(o.Device, keeper, handed, o.Log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Custody.Close)
	o.SetPolicy(rules)
	path := filepath.Join(t.TempDir(), "io.holdfast")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- o.Server().Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	t.Setenv("HOLDFAST_ADDRESS", path)
	client, err := holdfast.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}
