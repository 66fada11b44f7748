// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	naming "github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

const longPolicy = `The policy says who may have sessions. holdfastd reads it from *.toml in

  /etc/holdfast/policy.d        yours; a file masks that of the same name in
  /usr/lib/holdfast/policy.d    what packages bring

in the order of the files' names. The first rule that matches decides. After all of
them comes the built-in one: services of the system manager, as uid 0, may have
sessions; all else is denied. A rule is

  [[rule]]
  name     = "vms"               # in errors and in the log
  cgroup   = '/machine.slice/machine-qemu\x2d#\x2d{vm:unescaped}.scope'
  uid      = "libvirt-qemu"      # or a number, "1000-1999", "any", or a list of them
  owner    = "qemu/{vm}"         # whose the sessions are, instead of the unit's
  names    = ["ram", "disk-*"]   # what sessions may be called; else anything
  max-parked = 4                 # sessions that holdfastd keeps; else 64
  rate     = "20/1m"             # 20 at once, then 20 a minute; "any" is no limit

and may have, besides,

  delegate = ["qemu/*"]          # whom it may act for
  list-all = true                # may see every session
  required = true                # an update waits for it
  allow    = false               # no sessions, instead of all this
  reclaim-within = "10m"         # how long its owner has for a session after an update
  release-unclaimed-after = "7d" # of what is parked, if nobody claims it; or "never"

The last two need an owner without {name}, or a cgroup that leaves nothing open, since
a session that nobody claims says no more than its owner's digest. Before the first
[[rule]] of a file they are for everybody of whom no rule says it.

In a cgroup, * is anything but /, # a number, {name} a part of a unit's name to be used
in the owner; with {name:unescaped}, \x2d becomes - there. It is the path up to the
innermost unit; "any" is every one. Write it in single quotes.`

const examplePolicy = `  holdfast policy check && systemctl reload holdfastd
  holdfast policy explain --unit vmm.service ram`

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check the policy, and say what it decides", Long: longPolicy, Example: examplePolicy, Args: cobra.NoArgs}
	cmd.AddCommand(policyCheckCommand(), explainCommand())
	return cmd
}

const longCheck = `Says what is wrong with the policy that holdfastd would read now, or with those in
the directories and files named: each problem on a line, as FILE:LINE:COLUMN: what.
Directories mask each other as they are given; files are looked at by themselves, and
after the directories. holdfastd goes on with its old policy until it is reloaded.

Exit status: 0 if nothing is wrong, 1 if something is, 2 for wrong usage.

With --json: ok; files, those that were read; rules, their number; problems, each with
file, line, column and what.`

func policyCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check [DIRECTORY|FILE]...", Short: "Say what is wrong with the policy", Long: longCheck, DisableFlagsInUseLine: true,
		Example: "  holdfast policy check\n  holdfast policy check new.toml",
		RunE: func(cmd *cobra.Command, args []string) error {
			return checkPolicy(cmd.OutOrStdout(), args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func checkPolicy(out io.Writer, args []string, asJSON bool) error {
	var dirs, files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return err
		}
		if info.IsDir() {
			dirs = append(dirs, arg)
		} else {
			files = append(files, arg)
		}
	}
	if len(args) == 0 {
		dirs = policy.Dirs
	}
	result := struct {
		OK       bool             `json:"ok"`
		Files    []string         `json:"files"`
		Rules    int              `json:"rules"`
		Problems []policy.Problem `json:"problems"`
	}{Files: []string{}, Problems: []policy.Problem{}}
	for _, load := range []func() (*policy.Policy, error){
		func() (*policy.Policy, error) { return policy.Load(dirs...) },
		func() (*policy.Policy, error) { return policy.LoadFiles(files...) },
	} {
		p, err := load()
		if problems, ok := errors.AsType[policy.Problems](err); ok {
			result.Problems = append(result.Problems, problems...)
		} else if err != nil {
			return err
		}
		result.Files = append(result.Files, p.Files()...)
		result.Rules += p.Rules()
	}
	result.OK = len(result.Problems) == 0
	if asJSON {
		if err := printJSON(out, result); err != nil {
			return err
		}
	} else {
		for _, p := range result.Problems {
			fmt.Fprintln(out, p)
		}
		if result.OK {
			fmt.Fprintf(out, "%s and %s, nothing wrong\n", count(len(result.Files), "file"), count(result.Rules, "rule"))
		}
	}
	if !result.OK {
		return fmt.Errorf("%s in the policy", count(len(result.Problems), "problem"))
	}
	return nil
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}

const longExplain = `Says which rule of the policy decides whether somebody may have sessions, and why:
a process, a unit, or whoever is in a cgroup. With NAME, whether one of that name may
be had. It reads the policy as it is now; holdfastd has the one of its last start or
reload. What holdfastd --uid-owners adds isn't looked at.

Of a unit, the cgroup is where its processes are, or would be, and the user is its
User=. The user of a cgroup is uid 0 unless --uid says another.

Exit status: 0 if sessions may be had, 1 if not, 2 for wrong usage.

With --json: allowed; reason where not; rule; owner; cgroup, with where it is from; uid;
steps, the rules that were looked at, each with rule, at, decides and why; and where
allowed maxParked, rate, names, delegate, listAll, required; and where the policy says so
reclaimWithin, releaseUnclaimedAfter, of the owner's sessions.`

const exampleExplain = `  holdfast policy explain --pid 4711
  holdfast policy explain --unit vmm.service ram
  holdfast policy explain --cgroup '/machine.slice/machine-qemu\x2d3\x2dvm1.scope' --uid 107`

// explained is what holdfast policy explain --json prints.
type explained struct {
	Allowed bool          `json:"allowed"`
	Reason  string        `json:"reason,omitempty"`
	Rule    string        `json:"rule"`
	Owner   string        `json:"owner,omitempty"`
	Name    string        `json:"name,omitempty"`
	Cgroup  string        `json:"cgroup"`
	From    string        `json:"from"`
	UID     uint32        `json:"uid"`
	Steps   []policy.Step `json:"steps"`

	MaxParked *int     `json:"maxParked,omitempty"`
	Rate      string   `json:"rate,omitempty"`
	Names     []string `json:"names,omitempty"`
	Delegate  []string `json:"delegate,omitempty"`
	ListAll   bool     `json:"listAll,omitempty"`
	Required  bool     `json:"required,omitempty"`

	// How long a session of the owner's may wait after an update, as the policy writes it.
	ReclaimWithin         string `json:"reclaimWithin,omitempty"`
	ReleaseUnclaimedAfter string `json:"releaseUnclaimedAfter,omitempty"`
}

func explainCommand() *cobra.Command {
	var asJSON bool
	var whom whom
	var dirs []string
	cmd := &cobra.Command{
		Use: "explain {--pid PID|--unit UNIT|--cgroup PATH} [--uid UID] [NAME]", Short: "Say which rule decides, and why",
		Long: longExplain, Example: exampleExplain, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			whom.uidGiven = given("uid")
			ways := 0
			for _, flag := range []string{"pid", "unit", "cgroup"} {
				if given(flag) {
					ways++
				}
			}
			switch {
			case ways != 1:
				return errors.New("explain needs one of --pid, --unit and --cgroup")
			case len(args) > 1:
				return fmt.Errorf("explain takes one NAME, and %q is too many", args[1])
			case given("pid") && whom.pid <= 0:
				return errors.New("a PID is more than 0")
			case given("cgroup") && !strings.HasPrefix(whom.cgroup, "/"):
				return errors.New("a cgroup's path begins with /, the root of the hierarchy, as in /proc/PID/cgroup")
			case given("unit") && !unitName(whom.unit):
				return fmt.Errorf("%q is no name of a .service or .scope", whom.unit)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			id, from, err := whom.find(ctx)
			if err != nil {
				return err
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return explainPolicy(cmd, id, from, name, dirs, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&whom.pid, "pid", 0, "the process with this `PID`")
	flags.StringVar(&whom.unit, "unit", "", "the processes of this `UNIT` of the system manager")
	flags.StringVar(&whom.cgroup, "cgroup", "", "processes in this cgroup, its `PATH` as in /proc/PID/cgroup")
	flags.Uint32Var(&whom.uid, "uid", 0, "as this `UID`")
	flags.StringArrayVar(&dirs, "policy", policy.Dirs, "read the policy from this `DIRECTORY`; may be given several times")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func explainPolicy(cmd *cobra.Command, id peer.Identity, from, name string, dirs []string, asJSON bool) error {
	p, broken := policy.Load(dirs...)
	d := p.Decide(id)
	err := d.Err
	if err == nil && name != "" {
		err = d.Grant.CheckName(name)
	}
	e := explained{Allowed: err == nil, Rule: d.Steps[len(d.Steps)-1].Rule, Owner: d.Owner, Name: name,
		Cgroup: id.Cgroup, From: from, UID: id.UID, Steps: d.Steps}
	if d.Err == nil {
		g := d.Grant
		e.MaxParked, e.Rate, e.Names, e.Delegate = &g.MaxParked, g.Rate.String(), g.Names(), g.Delegate()
		e.ListAll, e.Required = g.ListAll, g.Required
	}
	if e.Owner != "" {
		u := p.Unclaimed(naming.Kernel(e.Owner, cmp.Or(name, "any")))
		if u.ReclaimWithin > 0 {
			e.ReclaimWithin = policy.Period(u.ReclaimWithin)
		}
		if u.ReleaseAfter > 0 {
			e.ReleaseUnclaimedAfter = policy.Period(u.ReleaseAfter)
		}
	}
	if err != nil {
		e.Reason = err.Error()
	}
	out := cmd.OutOrStdout()
	var printErr error
	if asJSON {
		printErr = printJSON(out, e)
	} else {
		printErr = e.print(out)
	}
	switch {
	case printErr != nil:
		return printErr
	case err != nil:
		return err
	case broken != nil:
		fmt.Fprintln(cmd.ErrOrStderr(), "holdfast: the policy has problems, so holdfastd would not take it at a reload; see holdfast policy check")
	}
	return nil
}

func (e *explained) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "cgroup\t%s (%s)\nuid\t%d\n", e.Cgroup, e.From, e.UID)
	for _, s := range e.Steps {
		verdict := "does not match"
		if s.Decides {
			verdict = "decides"
		}
		where := ""
		if s.At != "" {
			where = " (" + s.At + ")"
		}
		fmt.Fprintf(table, "rule\t%s%s %s: %s\n", s.Rule, where, verdict, s.Why)
	}
	owner := e.Owner
	if owner == "" {
		owner = "nobody"
	}
	fmt.Fprintf(table, "owner\t%s\n", owner)
	if e.MaxParked != nil {
		names := "any"
		if len(e.Names) > 0 {
			names = strings.Join(e.Names, " ")
		}
		rate := e.Rate
		if rate == "any" {
			rate = "as fast as they like"
		}
		fmt.Fprintf(table, "names\t%s\nparked\t%d at most\nrate\t%s\n", names, *e.MaxParked, rate)
		if len(e.Delegate) > 0 {
			fmt.Fprintf(table, "acts for\t%s\n", strings.Join(e.Delegate, " "))
		}
		if e.ListAll {
			fmt.Fprint(table, "lists\tevery session\n")
		}
		if e.Required {
			fmt.Fprint(table, "update\twaits for it\n")
		}
	}
	if e.ReclaimWithin != "" {
		fmt.Fprintf(table, "reclaim\twithin %s of an update\n", e.ReclaimWithin)
	}
	if e.ReleaseUnclaimedAfter != "" {
		fmt.Fprintf(table, "unclaimed\treleased %s after the kernel's start\n", e.ReleaseUnclaimedAfter)
	}
	if e.Allowed {
		fmt.Fprintf(table, "sessions\tcan be had\n")
	} else {
		fmt.Fprintf(table, "sessions\tare denied\n")
	}
	return table.Flush()
}

// whom is who the policy is asked about.
type whom struct {
	pid          int
	unit, cgroup string
	uid          uint32
	uidGiven     bool
}

func unitName(name string) bool {
	return !strings.Contains(name, "/") && peer.Owner("/"+name) == "/"+name
}

// find returns who it is, and where that was found.
func (w *whom) find(ctx context.Context) (id peer.Identity, from string, err error) {
	switch {
	case w.pid > 0:
		cgroups, err := peer.FindCgroups()
		if err != nil {
			return id, "", err
		}
		if id, err = cgroups.OfPID(w.pid); errors.Is(err, peer.ErrGone) {
			err = fmt.Errorf("process %d has ended", w.pid)
		}
		if err != nil {
			return id, "", err
		}
		from = fmt.Sprintf("of process %d", w.pid)
	case w.unit != "":
		if id, from, err = w.findUnit(ctx); err != nil {
			return id, "", err
		}
	default:
		id.Cgroup, from = w.cgroup, "as given"
	}
	if w.uidGiven {
		id.UID = w.uid
	}
	id.Owner = peer.Owner(id.Cgroup)
	return id, from, nil
}

func (w *whom) findUnit(ctx context.Context) (id peer.Identity, from string, err error) {
	version, err := systemd.Version(ctx)
	if version == "" {
		if err != nil {
			return id, "", err
		}
		id.Cgroup = "/system.slice/" + w.unit
		return id, "a guess: systemd is not PID 1", nil
	}
	unit, err := systemd.FindUnit(ctx, w.unit)
	if err != nil {
		return id, "", err
	}
	if id.Cgroup, from = unit.Cgroup, "of "+unit.Name; id.Cgroup == "" {
		id.Cgroup, from = sliceCgroup(unit.Slice)+"/"+unit.Name, "a guess: "+unit.Name+" does not run"
	}
	if w.uidGiven || unit.User == "" {
		return id, from, nil
	}
	id.UID, err = uidOf(unit.User)
	if err != nil {
		return id, "", fmt.Errorf("%s runs as %s, whose uid isn't known here; give it with --uid", unit.Name, unit.User)
	}
	return id, from, nil
}

// sliceCgroup is where a slice is: below those that its name begins with (systemd.slice(5)).
func sliceCgroup(slice string) string {
	path := ""
	name, _ := strings.CutSuffix(slice, ".slice")
	for i := range name + "-" {
		if (name + "-")[i] == '-' && i > 0 {
			path += "/" + name[:i] + ".slice"
		}
	}
	if name == "-" || name == "" {
		return ""
	}
	return path
}

func uidOf(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	found, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(found.Uid, 10, 32)
	return uint32(n), err
}
