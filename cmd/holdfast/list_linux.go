// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/reconcile"
	"github.com/holdfast-project/holdfast/internal/systemd"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/liveupdate"
)

const longList = `Lists the sessions that holdfastd keeps for the unit that this runs in.

With --all it lists every session of this machine that can be found, by looking: at the
descriptors of all processes, into the fd stores at PID 1, and at what is parked with
holdfastd. Run it as root: others see their own processes, and what holdfastd tells
those whose rule of the policy gives list-all.

  NAME, OWNER   the client's own name for it, and whose it is. The kernel name has no more
                than a digest of the owner: one that is known here and fits is shown, else
                the digest. A session that holdfastd didn't hand out is foreign.
  DIRECTION     outgoing: of this kernel, for the next one. incoming: from the one before
  PARKED        whether holdfastd keeps it
  CLAIMED       of an incoming one, whether anybody has got it since the update
  HELD BY       fd stores, by their units, and processes, with their PIDs

What needs looking after has a "!" in front, and a sentence below the table:

  unclaimed     it came from the previous kernel, and nobody has claimed it. Its memory
                stays taken until somebody does, or releases it, or the policy has it
                released (release-unclaimed-after), which it says
  inTwoStores   it is in the fd stores of two units, or in one and parked: the next
                kernel's systemd gives it to one of the two at random

What couldn't be looked at is listed at the end. Never seen are sessions that nobody has
retrieved from the kernel since the update, since it doesn't list them, and those whose
only descriptor is on its way through a socket.

Exit status: 0, also if there are none, or some have problems; 1 if it can't be told; 2
for wrong usage.

With --json it prints sessions, each with kernelName, parked, foreign, and where there
is one name, owner, direction, claimed, and releaseBootUSec, when the policy has an
unclaimed one released, in microseconds on CLOCK_BOOTTIME. With --all, besides, digest;
holders, each with pid, unit, and fdstore where PID 1 has it in that unit's store;
problems, in the words above; and next to sessions unseen, each with what, text, and
pids where it is about processes.`

const exampleList = `  holdfast list
  holdfast list --all
  holdfast list --all --json | jq -r '.sessions[] | select(.problems != []).kernelName'`

func listCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the sessions that are kept, or all that there are", Long: longList, Example: exampleList,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return listAll(cmd.Context(), cmd.OutOrStdout(), asJSON)
			}
			return listOwn(cmd.Context(), cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every session of this machine, and who holds it")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// listOwn is what is parked for this unit.
func listOwn(ctx context.Context, out io.Writer, asJSON bool) error {
	var answer json.RawMessage
	if err := ask(ctx, "list", "List", struct{}{}, &answer); err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, answer)
	}
	var list struct{ Sessions []sessionJSON }
	if err := json.Unmarshal(answer, &list); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tOWNER\tKERNEL NAME\tDIRECTION\tCLAIMED")
	for _, s := range list.Sessions {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", oneline.Of(cmp.Or(s.Name, "-")), oneline.Of(cmp.Or(s.Owner, "-")), printable(s.KernelName), oneline.Of(s.Direction), yesNo(s.Claimed))
	}
	return table.Flush()
}

// inventoryJSON is what holdfast list --all --json prints.
type inventoryJSON struct {
	Sessions []listedJSON `json:"sessions"`
	Unseen   []unseenJSON `json:"unseen"`
}

type listedJSON struct {
	Name       string `json:"name,omitempty"`
	Owner      string `json:"owner,omitempty"`
	Digest     string `json:"digest,omitempty"`
	KernelName string `json:"kernelName"`
	Direction  string `json:"direction,omitempty"`
	Parked     bool   `json:"parked"`
	Foreign    bool   `json:"foreign"`
	Claimed    *bool  `json:"claimed,omitempty"`
	// ReleaseBootUSec is when the policy has an unclaimed one released, on CLOCK_BOOTTIME.
	ReleaseBootUSec int64        `json:"releaseBootUSec,omitempty"`
	Holders         []holderJSON `json:"holders"`
	Problems        []string     `json:"problems"`
}

type holderJSON struct {
	PID     int    `json:"pid"`
	Unit    string `json:"unit,omitempty"`
	FDStore bool   `json:"fdstore"`
}

type unseenJSON struct {
	What string `json:"what"`
	Text string `json:"text"`
	PIDs []int  `json:"pids,omitempty"`
}

// The words for what is wrong with a session.
const (
	unclaimed   = "unclaimed"
	inTwoStores = "inTwoStores"
)

const (
	// listTimeout is for looking at everything.
	listTimeout = 30 * time.Second
	// daemonUnit is the one whose store has what is parked.
	daemonUnit = "holdfastd.service"
)

func listAll(ctx context.Context, out io.Writer, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	found := &survey{}
	daemonErr := found.everywhere(ctx)
	if kernel, ok := errors.AsType[*holdfast.Error](daemonErr); ok && kernel.Kind == holdfast.ErrKernelNotReady.Kind {
		return daemonErr
	}
	list := found.list(ctx)
	var err error
	if asJSON {
		err = printJSON(out, list)
	} else {
		err = list.print(out)
	}
	if os.Geteuid() != 0 {
		// Neither of the two who see anything of others have said.
		err = errors.Join(err, daemonErr)
	}
	return err
}

// survey is what there is on this machine.
type survey struct {
	inventory.Inventory
	told   bool // by holdfastd, what is parked
	parked map[*inventory.Session]sessionJSON
	owners owners
	unseen []unseenJSON
}

func (l *survey) cannotSee(what string, pids []int, format string, args ...any) {
	l.unseen = append(l.unseen, unseenJSON{what, fmt.Sprintf(format, args...), pids})
}

// everywhere looks at all there is. The error is holdfastd's, which need not run.
func (l *survey) everywhere(ctx context.Context) error {
	var answer struct{ Sessions []sessionJSON }
	daemonErr := ask(ctx, "list", "List", map[string]bool{"all": true}, &answer)
	stores, storesErr := systemd.Stores(ctx)
	l.processes(ctx)
	boot, err := fdname.ThisBoot()
	if err = cmp.Or(storesErr, err); err != nil {
		l.cannotSee("stores", nil, "fd stores: %v", err)
	}
	l.AddStores(stores, boot)
	if l.told = daemonErr == nil; !l.told {
		l.cannotSee("orchestrator", nil, "what is parked: %v", daemonErr)
	}
	l.addParked(answer.Sessions)
	l.cannotSee("unretrieved", nil, "sessions that nobody has retrieved from the kernel since the update: it does not list them")
	l.cannotSee("inFlight", nil, "sessions whose descriptors are all on their way through a socket, or registered with io_uring")
	l.Sort()
	return daemonErr
}

func (l *survey) processes(ctx context.Context) {
	cgroups, err := peer.FindCgroups()
	if err == nil {
		err = l.AddProcesses(ctx, cgroups)
	}
	if err != nil {
		l.cannotSee("processes", nil, "processes: %v", err)
	}
	var pids []int
	for _, u := range l.Unseen {
		pids = append(pids, u.PID)
	}
	switch {
	case len(pids) == 0:
	case os.Geteuid() != 0:
		l.cannotSee("processes", pids, "what other users' processes have open, which only root may look at: %s", count(len(pids), "PID"))
	default:
		l.cannotSee("processes", pids, "all of what %s open, as of %d: %v", have(len(pids)), pids[0], l.Unseen[0].Err)
	}
	// PROC_PID_INIT_INO, include/linux/proc_ns.h: that of the first namespace, whose processes are all.
	if link, err := os.Readlink("/proc/self/ns/pid"); err == nil && link != "pid:[4026531836]" {
		l.cannotSee("namespace", nil, "processes outside of this container (PID namespace)")
	}
}

func have(n int) string {
	if n == 1 {
		return "1 process has"
	}
	return fmt.Sprintf("%d processes have", n)
}

// addParked adds what holdfastd has told. Of fd stores it tells what PID 1 does, so that counts only where this could not
// ask PID 1.
func (l *survey) addParked(told []sessionJSON) {
	l.parked = map[*inventory.Session]sessionJSON{}
	l.owners = owners{}
	for _, t := range told {
		l.owners.add(t.Owner)
		known := slices.ContainsFunc(l.Sessions, func(s *inventory.Session) bool { return s.KernelName == t.KernelName })
		if known && !t.Parked {
			continue
		}
		var direction liveupdate.Direction
		for _, d := range []liveupdate.Direction{liveupdate.Outgoing, liveupdate.Incoming} {
			if t.Direction == d.String() {
				direction = d
			}
		}
		s := l.Session(t.KernelName, direction)
		for _, h := range t.Holders {
			if holder := (inventory.Holder{PID: h.PID, Unit: h.Unit, Store: h.PID == 1}); !slices.Contains(s.Holders, holder) {
				s.Holders = append(s.Holders, holder)
			}
		}
		if t.Parked {
			l.parked[s] = t
		}
	}
}

// owners are those that are known, by the digests in their sessions' names. A digest that fits proves it.
type owners map[string]string

func (o owners) add(owner string) {
	if owner != "" {
		o[name.Digest(owner)] = owner
	}
}

// findOwners looks for the owners of all sessions: among who runs, by the policy too, then among units that don't.
func (l *survey) findOwners(ctx context.Context) {
	rules, _ := policy.Load(policy.Dirs...) // what it can't say is not known
	byRule := func(id peer.Identity) {
		if owner, err := rules.Owner(id); err == nil {
			l.owners.add(owner)
		}
	}
	for _, id := range l.Seen {
		l.owners.add(id.Owner)
		l.owners.add(fmt.Sprintf("uid/%d", id.UID)) // holdfastd --uid-owners
		byRule(id)
	}
	for _, s := range l.Sessions {
		for _, unit := range s.Stores() {
			l.owners.add("/" + unit)
		}
	}
	if s := lookAtUpdate(ctx); s != nil {
		// It has asked before the update, when they still ran.
		for _, o := range s.Outcomes {
			l.owners.add(o.Owner)
		}
	}
	unknown := l.unknown()
	if len(unknown) == 0 {
		return
	}
	if units, err := systemd.UnitNames(ctx); err == nil {
		for _, unit := range units {
			l.owners.add("/" + unit)
		}
	}
	for _, s := range unknown {
		for _, unit := range s.Stores() {
			if id, _, err := (&whom{unit: unit}).find(ctx); err == nil {
				byRule(id)
			}
		}
	}
}

// unknown are the sessions whose owner none of those fits that are known.
func (l *survey) unknown() (sessions []*inventory.Session) {
	for _, s := range l.Sessions {
		if digest, _, ours := name.Parse(s.KernelName); ours && l.owners[digest] == "" {
			sessions = append(sessions, s)
		}
	}
	return sessions
}

// list puts together what was found.
func (l *survey) list(ctx context.Context) *inventoryJSON {
	l.findOwners(ctx)
	list := &inventoryJSON{Sessions: []listedJSON{}, Unseen: l.unseen}
	for _, s := range l.Sessions {
		j := listedJSON{KernelName: s.KernelName, Holders: []holderJSON{}, Problems: []string{}}
		if s.Direction != 0 {
			j.Direction = s.Direction.String()
		}
		digest, portion, ours := name.Parse(s.KernelName)
		j.Name, j.Digest, j.Owner, j.Foreign = portion, digest, l.owners[digest], !ours
		for _, h := range s.Holders {
			j.Holders = append(j.Holders, holderJSON{h.PID, h.Unit, h.Store})
		}
		told, parked := l.parked[s]
		j.Parked = parked || !l.told && ours && slices.Contains(s.Stores(), daemonUnit)
		if s.Direction == liveupdate.Incoming {
			if j.Claimed = told.Claimed; j.Claimed == nil {
				claimed := slices.ContainsFunc(s.Holders, func(h inventory.Holder) bool { return h.PID != 1 && h.Unit != daemonUnit })
				j.Claimed = &claimed
			}
			if !*j.Claimed {
				j.ReleaseBootUSec = told.ReleaseBootUSec
				j.Problems = append(j.Problems, unclaimed)
			}
		} else if len(s.Stores()) > 1 {
			j.Problems = append(j.Problems, inTwoStores)
		}
		list.Sessions = append(list.Sessions, j)
	}
	return list
}

// What stands out on a terminal.
const (
	emphasis = "\x1b[1;33m"
	plain    = "\x1b[0m"
)

func (l *inventoryJSON) print(out io.Writer) error {
	var rows, text bytes.Buffer
	table := tabwriter.NewWriter(&rows, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "  NAME\tOWNER\tKERNEL NAME\tDIRECTION\tPARKED\tCLAIMED\tHELD BY")
	for _, s := range l.Sessions {
		mark, owner := " ", s.Owner
		if len(s.Problems) > 0 {
			mark = "!"
		}
		if s.Foreign {
			owner = "foreign"
		}
		fmt.Fprintf(table, "%s %s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, oneline.Of(cmp.Or(s.Name, "-")), oneline.Of(cmp.Or(owner, "digest "+s.Digest)), printable(s.KernelName),
			cmp.Or(s.Direction, "unknown"), yesNo(&s.Parked), yesNo(s.Claimed), oneline.Of(cmp.Or(s.heldBy(), "-")))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	color := isTerminal(out) && os.Getenv("NO_COLOR") == ""
	for line := range strings.Lines(rows.String()) {
		line = strings.TrimRight(line, " \n")
		if color && line[0] == '!' {
			line = emphasis + line + plain
		}
		fmt.Fprintln(&text, line)
	}
	separate := "\n"
	for _, s := range l.Sessions {
		for _, p := range s.Problems {
			fmt.Fprintf(&text, "%s! %s: %s.\n", separate, printable(s.KernelName), oneline.Of(s.explain(p)))
			separate = ""
		}
	}
	fmt.Fprint(&text, "\nNot seen:\n")
	for _, u := range l.Unseen {
		fmt.Fprintf(&text, "  %s\n", oneline.Of(u.Text))
	}
	_, err := out.Write(text.Bytes())
	return err
}

// heldBy are the holders: the stores, and by units the processes.
func (s *listedJSON) heldBy() string {
	var words []string
	for i := 0; i < len(s.Holders); {
		h := s.Holders[i]
		pids := ""
		for ; i < len(s.Holders) && s.Holders[i].Unit == h.Unit && s.Holders[i].FDStore == h.FDStore; i++ {
			pids += " " + strconv.Itoa(s.Holders[i].PID)
		}
		switch {
		case h.FDStore:
			words = append(words, "store of "+h.Unit)
		case h.Unit == "":
			words = append(words, "no unit:"+pids)
		default:
			words = append(words, h.Unit+":"+pids)
		}
	}
	return strings.Join(words, ", ")
}

// stores are the units in whose fd stores it is.
func (s *listedJSON) stores() (units []string) {
	for _, h := range s.Holders {
		if h.FDStore {
			units = append(units, h.Unit)
		}
	}
	return units
}

// explain says what a problem is, and what to do about it.
func (s *listedJSON) explain(problem string) string {
	switch {
	case problem == inTwoStores:
		return fmt.Sprintf("it is in the fd stores of %s, and the next kernel's systemd gives it to one of them at random; take it out of all but one",
			strings.Join(s.stores(), " and of "))
	case s.Parked:
		text := fmt.Sprintf("%s has not claimed it since the update; start it, or free the memory by holdfast release --kernel-name %s --direction incoming",
			cmp.Or(s.Owner, "its owner"), s.KernelName)
		if s.ReleaseBootUSec > 0 {
			text += "; the policy has it released in " + reconcile.In(time.Duration(s.ReleaseBootUSec)*time.Microsecond-timeline.Now())
		}
		return text
	case len(s.stores()) > 0:
		unit := s.stores()[0]
		if s.Owner != "" && s.Owner != "/"+unit {
			return fmt.Sprintf("it belongs to %[1]s, and nobody has it since the update but the fd store of %[2]s; have that pass it on, or free the memory by systemctl stop %[2]s; systemctl clean --what=fdstore %[2]s", s.Owner, unit)
		}
		return fmt.Sprintf("nobody has it since the update but the fd store of %[1]s; start that, or free the memory by systemctl stop %[1]s; systemctl clean --what=fdstore %[1]s", unit)
	}
	return "nobody has it since the update but PID 1"
}

func yesNo(b *bool) string {
	switch {
	case b == nil:
		return "-"
	case *b:
		return "yes"
	}
	return "no"
}

// printable is a name that anybody may have given: with nothing in it that a terminal would take for more than text.
func printable(text string) string {
	if quoted := strconv.Quote(text); quoted != `"`+text+`"` {
		return quoted
	}
	return text
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
