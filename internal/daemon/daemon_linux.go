// SPDX-License-Identifier: MIT

// Package daemon is what Holdfast's daemons have in common: a socket from systemd, and a policy that can be read anew.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

// Options are those that each daemon has.
type Options struct {
	Listen string // a path, instead of the socket that systemd hands over
	Level  slog.Level
	Policy Policy
}

// Parse reads the command line, to which flags that the daemon has for itself were added before. It ends the process where the
// command line is wrong, or asks for nothing but help or the version.
func Parse(name, usage, address, uidOwners, version string) Options {
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flag.PrintDefaults()
	}
	var o Options
	flag.StringVar(&o.Listen, "listen", "", "listen on this unix socket, where systemd doesn't hand one over (usually "+address+")")
	flag.BoolVar(&o.Policy.UIDOwners, "uid-owners", false, uidOwners)
	flag.Func("policy", "read the policy from this `DIRECTORY`; may be given several times, the first masks the others\n(default "+strings.Join(policy.Dirs, ", ")+")", func(dir string) error {
		o.Policy.Dirs = append(o.Policy.Dirs, dir)
		return nil
	})
	verbose := flag.Bool("debug", false, "log more")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%s: unexpected argument %q; see %[1]s --help\n", name, flag.Arg(0))
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println(name, version)
		os.Exit(0)
	}
	if *verbose {
		o.Level = slog.LevelDebug
	}
	if o.Policy.Dirs == nil {
		o.Policy.Dirs = policy.Dirs
	}
	return o
}

// Policy is where a daemon's policy comes from.
type Policy struct {
	Dirs      []string // the first masks the others
	UIDOwners bool     // processes outside any unit have an owner too
}

// Load reads the policy, and logs what is wrong with it; log may be nil. Where files are broken there is an error, and
// the policy denies what they would decide; only where there is no policy at all it is nil.
func (p *Policy) Load(log *slog.Logger) (*policy.Policy, error) {
	rules, err := policy.Load(p.Dirs...)
	if problems, ok := errors.AsType[policy.Problems](err); ok && log != nil {
		for _, problem := range problems {
			log.Error("the policy has a problem", "at", problem.String())
		}
	}
	if rules == nil || !p.UIDOwners {
		return rules, err
	}
	byUID, uidErr := byUID()
	if uidErr != nil {
		return nil, uidErr
	}
	rules.UIDOwners = byUID
	return rules, err
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

// Follow reads the policy anew at each signal, until ctx ends, and hands it to use unless something is wrong with it.
func (p *Policy) Follow(ctx context.Context, reload <-chan os.Signal, use func(*policy.Policy), log *slog.Logger) {
	for {
		select {
		case <-reload:
			p.reload(use, log)
		case <-ctx.Done():
			return
		}
	}
}

func (p *Policy) reload(use func(*policy.Policy), log *slog.Logger) {
	if err := systemd.NotifyReloading(); err != nil && !errors.Is(err, systemd.ErrNoNotifySocket) {
		log.Warn("systemd was not told of the reload", "error", err)
	}
	status := ""
	if rules, err := p.Load(log); err != nil {
		log.Error("the policy was not reloaded: the old one stays", "error", err)
		status = "The policy was not reloaded, the old one stays: " + err.Error()
	} else {
		use(rules)
		log.Info("reloaded the policy", "files", len(rules.Files()), "rules", rules.Rules())
	}
	Ready(status, log)
}

// Ready tells systemd that the daemon serves, and what is to be read in its status.
func Ready(status string, log *slog.Logger) {
	// One line of what may be several, and not too long a one.
	status = strings.ToValidUTF8(strings.ReplaceAll(status[:min(len(status), 1024)], "\n", "; "), "")
	if err := systemd.Notify("READY=1\nSTATUS=" + status); err != nil && !errors.Is(err, systemd.ErrNoNotifySocket) {
		log.Warn("systemd was not told that the daemon is ready", "error", err)
	}
}

// Listen makes a socket at path, or takes the one that systemd handed over to this daemon where path is empty.
func Listen(name, path string) (*net.UnixListener, error) {
	if path != "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return nil, err
		}
		return listener, os.Chmod(path, 0o666)
	}
	handed := systemd.ListenFDs()
	if len(handed) == 0 {
		return nil, fmt.Errorf("there is no socket: start it with systemctl start %s.socket %[1]s.service, or with --listen PATH", name)
	}
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
	return nil, fmt.Errorf("systemd handed over a socket of %s; %s.socket must have a unix stream socket", listener.Addr().Network(), name)
}
