// SPDX-License-Identifier: MIT

// Command holdfastd hands out live update sessions.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/daemon"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/journal"
	"github.com/holdfast-project/holdfast/internal/orchestrator"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/version"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const usage = `holdfastd hands out live update sessions to services that ask for them, by varlink.

It is started by systemd (holdfastd.socket, holdfastd.service), which hands it the listening
socket, and what its fd store has: the sessions that clients have parked. It keeps no other
state: it may be stopped, killed, restarted and upgraded at any time. Where it has no fd store
that crosses an update (systemd before 261, or started with --listen by hand) nothing can be
parked, and what clients reclaim it holds only as long as it runs.

Who may have sessions is said by the policy in /etc/holdfast/policy.d and
/usr/lib/holdfast/policy.d (holdfast policy --help). SIGHUP has it read anew; if there is
something wrong with it, the old one stays.

Usage: holdfastd [options]

`

func main() {
	o := daemon.Parse("holdfastd", usage, holdfast.Address,
		"give sessions to processes outside any unit too; all those of uid N are one owner, uid/N.\nThe unit that holdfastd itself runs in doesn't count as one.\nFor hosts without units, and for trying things out: see docs/security.md", version.Version)
	log, flush := journal.New(o.Level)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// The device takes one at a time. With one processor a request needs no other thread, and the log line is written
	// once the answer is on its way.
	runtime.GOMAXPROCS(1)
	err := run(ctx, log, flush, reload, o.Listen, &o.Policy)
	if err != nil {
		log.Error("holdfastd ends", "error", err)
	}
	flush()
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger, flush func(), reload <-chan os.Signal, path string, source *daemon.Policy) error {
	cgroups, err := peer.FindCgroups()
	if err != nil {
		return err
	}
	o := &orchestrator.Orchestrator{Cgroups: cgroups, Version: version.Version, Log: log, Stores: systemd.Stores}
	if o.Custody, err = takeCustody(ctx, o.Device, log); err != nil {
		return err
	}
	defer o.Custody.Close()
	rules, err := source.Load(log)
	if rules == nil {
		return err
	}
	status := ""
	if err != nil {
		// What the broken files would decide is denied, which is safe, and all else is served.
		log.Error("the policy is broken: what its broken files would decide is denied", "file", rules.Broken())
		status = "The policy is broken: " + err.Error()
	}
	o.SetPolicy(rules)
	listener, err := daemon.Listen("holdfastd", path)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := o.Device.Available(); err != nil {
		// It serves all the same, since clients shall be told why.
		log.Warn("sessions can't be had", "reason", err)
	}
	daemon.Ready(status, log)
	var releasing sync.WaitGroup
	defer releasing.Wait()
	serving, startOver := context.WithCancel(ctx)
	defer startOver()
	if path == "" {
		o.StartOver = func() {
			// The new one would not have the old policy any more.
			if _, err := source.Load(nil); err != nil {
				debug.FreeOSMemory()
				return
			}
			startOver()
		}
	}
	releasing.Go(func() { o.ReleaseUnclaimed(serving) })
	reloading := make(chan struct{})
	go func() {
		defer close(reloading)
		source.Follow(serving, reload, o.SetPolicy, log)
	}()
	if err := o.Server().Serve(serving, listener); err != nil || ctx.Err() != nil {
		return err
	}
	if !o.Custody.Empty() {
		// Something was parked since. systemd starts the unit again, with all of it.
		log.Debug("ending, to be started again with what is parked")
		return nil
	}
	log.Debug("starting over, to give back memory")
	<-reloading
	// What comes now would end the new one before it listens for it; it reads the policy anyway.
	signal.Ignore(syscall.SIGHUP)
	flush()
	return systemd.StartOver(listener)
}

// takeCustody takes over what was parked: it comes behind the socket.
func takeCustody(ctx context.Context, device liveupdate.Device, log *slog.Logger) (*custody.Custody, error) {
	var handed []custody.Item
	for i, l := range systemd.ListenFDs() {
		if i > 0 || !systemd.IsListening(l.Raw) {
			handed = append(handed, custody.Item{Name: l.Name, FD: fd.New(l.Raw)})
		}
	}
	store := &custody.FDStore{}
	var keeper custody.Keeper = store
	err := store.Check(ctx)
	switch {
	case errors.Is(err, custody.ErrNoStore):
		log.Info("sessions can't be parked here", "reason", err)
		none := custody.None{Reason: err}
		if len(handed) > 0 {
			none.Before = store
		}
		keeper = none
	case err != nil:
		// PID 1 may have more time later.
		log.Warn("PID 1 didn't say what is in the store", "error", err)
	}
	return custody.New(device, keeper, handed, log)
}
