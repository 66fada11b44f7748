// SPDX-License-Identifier: MIT

// Command holdfast-updated carries out live updates.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/daemon"
	"github.com/holdfast-project/holdfast/internal/journal"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/updated"
	"github.com/holdfast-project/holdfast/internal/version"
)

const usage = `holdfast-updated carries out live updates: it gets every participant ready, or calls the update
off with everything still running, and has PID 1 switch to the kernel that is loaded. It serves
io.holdfast.Update by varlink; holdfast update is its front end.

It is started by systemd (holdfast-updated.socket, holdfast-updated.service), which hands it the
listening socket. It keeps no state but, in $RUNTIME_DIRECTORY (beside the socket, with
--listen), how far an update is and who takes part: when it is stopped or killed while one is being prepared,
the update is off, all participants go on, and the next holdfast-updated unloads the kernel.

Who may take part is said by the policy in /etc/holdfast/policy.d and
/usr/lib/holdfast/policy.d, the same as holdfastd's (holdfast policy --help). SIGHUP has it read
anew; if there is something wrong with it, the old one stays. Starting and cancelling updates is for the host's root alone.

Where PID 1 isn't systemd nobody stops anything: when all participants are ready the kernel is
switched at once.

Usage: holdfast-updated [options]

`

func main() {
	block := flag.Bool("block-shutdown", false, "have logind refuse every shutdown but with --ignore-inhibitors: the kernel is switched with holdfast update only")
	o := daemon.Parse("holdfast-updated", usage, holdfast.UpdateAddress,
		"let processes outside any unit take part too, as holdfastd --uid-owners does", version.Version)
	log, flush := journal.New(o.Level)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, log, reload, o.Listen, *block, &o.Policy)
	if err != nil {
		log.Error("holdfast-updated ends", "error", err)
	}
	flush()
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger, reload <-chan os.Signal, path string, block bool, source *daemon.Policy) error {
	cgroups, err := peer.FindCgroups()
	if err != nil {
		return err
	}
	orchestrator := os.Getenv("HOLDFAST_ADDRESS")
	if orchestrator == "" {
		orchestrator = holdfast.Address
	}
	u := &updated.Updated{
		Cgroups: cgroups, Version: version.Version, Log: log,
		Loaded: kexec.Loaded, Unload: updated.UnloadKernel,
		Switch: updated.SwitchKernel, UnderWay: systemd.KexecUnderWay,
		Mark: mark(path),
		Load: loadTarget,
		Orchestrator: func(ctx context.Context) (updated.Watched, error) {
			return updated.WatchOrchestrator(ctx, orchestrator)
		},
	}
	u.Check = func(ctx context.Context, t *updated.Target) ([]updated.Finding, error) {
		return checkTarget(ctx, t, u.Owners())
	}
	rules, err := source.Load(log)
	if rules == nil {
		return err
	}
	status := ""
	if err != nil {
		status = "The policy is broken: " + err.Error()
	}
	u.SetPolicy(rules)
	end, err := record(ctx, u, orchestrator, block, log)
	if err != nil {
		return err
	}
	defer end()
	listener, err := daemon.Listen("holdfast-updated", path)
	if err != nil {
		return err
	}
	defer listener.Close()
	daemon.Ready(status, log)
	go source.Follow(ctx, reload, u.SetPolicy, log)
	return u.Serve(ctx, listener)
}

// mark is where it is noted that a round is under way.
func mark(socket string) string {
	if dir := os.Getenv("RUNTIME_DIRECTORY"); dir != "" {
		return filepath.Join(dir, "round")
	}
	if socket != "" {
		return socket + ".round"
	}
	return "/run/holdfast-updated.round"
}
