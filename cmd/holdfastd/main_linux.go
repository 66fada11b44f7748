// SPDX-License-Identifier: MIT

// Command holdfastd hands out live update sessions.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/journal"
	"github.com/holdfast-project/holdfast/internal/orchestrator"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/version"
)

const usage = `holdfastd hands out live update sessions to services that ask for them, by varlink.

It is started by systemd (holdfastd.socket, holdfastd.service), which hands it the listening socket. It keeps no
state: it may be stopped, killed, restarted and upgraded at any time.

Usage: holdfastd [options]

`

func main() {
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flag.PrintDefaults()
	}
	listen := flag.String("listen", "", "listen on this unix socket, where systemd doesn't hand one over (usually "+holdfast.Address+")")
	uidOwners := flag.Bool("uid-owners", false, "give sessions to processes outside any unit too; all those of uid N are one owner, uid/N.\nThe unit that holdfastd itself runs in doesn't count as one.\nFor hosts without units, and for trying things out: see docs/security.md")
	debug := flag.Bool("debug", false, "log more")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "holdfastd: unexpected argument %q; see holdfastd --help\n", flag.Arg(0))
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println("holdfastd", version.Version)
		return
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	log, flush := journal.New(level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// The device takes one at a time. With one processor a request needs no other thread, and the log line is written
	// once the answer is on its way.
	runtime.GOMAXPROCS(1)
	err := run(ctx, log, flush, *listen, *uidOwners)
	if err != nil {
		log.Error("holdfastd ends", "error", err)
	}
	flush()
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger, flush func(), path string, uidOwners bool) error {
	cgroups, err := peer.FindCgroups()
	if err != nil {
		return err
	}
	o := &orchestrator.Orchestrator{Cgroups: cgroups, Version: version.Version, Log: log}
	if uidOwners {
		if o.Policy.UIDOwners, err = byUID(); err != nil {
			return err
		}
	}
	listener, err := listenOn(path)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := o.Device.Available(); err != nil {
		// It serves all the same, since clients shall be told why.
		log.Warn("sessions can't be had", "reason", err)
	}
	if err := systemd.Notify("READY=1"); err != nil && !errors.Is(err, systemd.ErrNoNotifySocket) {
		log.Warn("systemd was not told that holdfastd is ready", "error", err)
	}
	serving, startOver := context.WithCancel(ctx)
	defer startOver()
	if path == "" {
		o.StartOver = startOver
	}
	if err := o.Server().Serve(serving, listener); err != nil || ctx.Err() != nil {
		return err
	}
	log.Debug("starting over, to give back memory")
	flush()
	return systemd.StartOver(listener)
}

func byUID() (*policy.UIDOwners, error) {
	own, err := peer.OwnCgroup()
	if err != nil {
		return nil, err
	}
	overflow, err := peer.OverflowUID()
	if err != nil {
		return nil, err
	}
	return &policy.UIDOwners{Unit: peer.UnitPath(own), Overflow: overflow}, nil
}

// listenOn takes the socket from systemd, or makes one.
func listenOn(path string) (*net.UnixListener, error) {
	if handed := systemd.ListenFDs(); path == "" && len(handed) > 0 {
		file := os.NewFile(uintptr(handed[0].Raw), handed[0].Name)
		defer file.Close()
		listener, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("the socket that systemd handed over: %w", err)
		}
		if l, ok := listener.(*net.UnixListener); ok {
			return l, nil
		}
		listener.Close()
		return nil, fmt.Errorf("systemd handed over a socket of %s; holdfastd.socket must have a unix stream socket", listener.Addr().Network())
	}
	if path == "" {
		return nil, errors.New("there is no socket: start it with systemctl start holdfastd.socket holdfastd.service, or with --listen PATH")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return listener, os.Chmod(path, 0o666)
}
