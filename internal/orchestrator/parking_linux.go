// SPDX-License-Identifier: MIT

package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-project/holdfast/internal/custody"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/fdname"
	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/name"
	"github.com/holdfast-project/holdfast/internal/peer"
	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// file is io.holdfast.Sessions.File.
type file struct {
	Name           string `json:"name"`
	FileDescriptor int    `json:"fileDescriptor"`
}

// park keeps a session and its files for their owner.
func (o *Orchestrator) park(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		SessionFileDescriptor int      `json:"sessionFileDescriptor"`
		Files                 *[]file  `json:"files"`
		Subject               *subject `json:"subject"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	who, err := o.may(call, in.Subject)
	if err != nil {
		return nil, o.refuse(who, "", err)
	}
	given, err := takeSession(call, in.SessionFileDescriptor)
	if err != nil {
		return nil, err
	}
	files, err := takeFiles(call, in.Files)
	if err != nil {
		given.Close()
		return nil, err
	}
	kernelName := given.Name()
	giveUp := func(err error) (*varlink.Reply, error) {
		given.Close()
		for _, f := range files {
			f.FD.Close() // memfds: this can't block
		}
		return nil, o.refuse(who, kernelName, err)
	}
	digest, portion, ours := name.Parse(kernelName)
	if !ours || digest != name.Digest(who.owner) {
		return giveUp(&notOwner{kernelName})
	}
	if err := who.grant.CheckName(portion); err != nil {
		return giveUp(err)
	}
	if err := o.Custody.Park(ctx, given, files, who.grant.MaxParked); err != nil {
		return nil, o.refuse(who, kernelName, err)
	}
	o.Log.Info("parked a session", who.fields("name", portion, "kernelName", kernelName, "files", len(files), "rule", who.grant.Rule)...)
	return &varlink.Reply{Parameters: struct {
		Session session `json:"session"`
	}{session{Name: portion, Owner: who.owner, KernelName: kernelName, Direction: liveupdate.Outgoing.String(), Parked: true}}}, nil
}

// takeSession takes a descriptor that the client says is a session's.
func takeSession(call *varlink.Call, index int) (*liveupdate.Session, error) {
	taken, err := call.TakeFD(index, "sessionFileDescriptor")
	if err != nil {
		return nil, err
	}
	session, err := liveupdate.FromFD(taken.Raw())
	if err != nil {
		call.Drop(taken)
		return nil, visible("", err)
	}
	taken.Disown()
	return session, nil
}

// takeFiles takes the files beside a session. They must be memory: anything else could block whoever closes it, and
// nothing else can be in a session yet.
func takeFiles(call *varlink.Call, in *[]file) (files []custody.File, err error) {
	if in == nil {
		return nil, nil
	}
	defer func() {
		if err != nil {
			for _, f := range files {
				call.Drop(f.FD)
			}
			files = nil
		}
	}()
	files = []custody.File{} // not nil: they are all that there are
	if len(*in) > custody.FilesMax {
		return nil, varlink.InvalidParameter("files")
	}
	names := map[string]bool{}
	for i, f := range *in {
		parameter := fmt.Sprintf("files[%d]", i)
		if name.Check(f.Name, custody.FileNameMax) != nil || names[f.Name] {
			return files, varlink.InvalidParameter(parameter + ".name")
		}
		names[f.Name] = true
		taken, err := call.TakeFD(f.FileDescriptor, parameter+".fileDescriptor")
		if err != nil {
			return files, err
		}
		files = append(files, custody.File{Name: f.Name, FD: taken})
		if !custody.IsMemory(taken) {
			return files, varlink.InvalidParameter(parameter + ".fileDescriptor")
		}
	}
	return files, nil
}

// errWaiting says that a session of the previous kernel is there that the client may have overlooked.
var errWaiting = errors.New("one of this name came from the previous kernel, and waits to be reclaimed")

// notOwner says that a session belongs to somebody else.
type notOwner struct{ kernelName string }

func (e *notOwner) Error() string {
	return fmt.Sprintf("session %q belongs to somebody else", e.kernelName)
}

// direction reads a parameter that may be left out.
func direction(in *string) (*liveupdate.Direction, error) {
	if in == nil {
		return nil, nil
	}
	for _, d := range []liveupdate.Direction{liveupdate.Outgoing, liveupdate.Incoming} {
		if *in == d.String() {
			return &d, nil
		}
	}
	return nil, varlink.InvalidParameter("direction")
}

// reclaim lends a session to its owner. The copy here stays until release.
func (o *Orchestrator) reclaim(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Name      string   `json:"name"`
		Direction *string  `json:"direction"`
		Subject   *subject `json:"subject"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	want, err := direction(in.Direction)
	if err != nil {
		return nil, err
	}
	who, err := o.may(call, in.Subject)
	if err == nil {
		err = o.checkName(ctx, who, in.Name)
	}
	if err == nil {
		err = o.checkRate(who)
	}
	if err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	kernelName := name.Kernel(who.owner, in.Name)
	lent, err := o.Custody.Reclaim(ctx, kernelName, want)
	if errors.Is(err, custody.ErrNotHere) {
		return nil, visible(in.Name, err) // as at every first start: nothing for the log
	}
	if err != nil {
		return nil, o.refuse(who, in.Name, err)
	}
	reply := struct {
		Session               session `json:"session"`
		SessionFileDescriptor int     `json:"sessionFileDescriptor"`
		Files                 []file  `json:"files"`
		Memory                *memory `json:"memory,omitempty"`
	}{
		Session: session{Name: in.Name, Owner: who.owner, KernelName: kernelName, Direction: lent.Direction.String(), Parked: true},
		Files:   []file{}, // of the previous kernel's sessions they are inside, for the one who is to pay for the memory
	}
	if lent.Direction == liveupdate.Incoming {
		reply.Memory = o.room(who)
		o.Custody.Returned(kernelName, who.owner, false, "")
	}
	fds := []*fd.FD{fd.New(lent.Session.Disown())}
	for _, f := range lent.Files {
		reply.Files = append(reply.Files, file{f.Name, len(fds)})
		fds = append(fds, f.FD)
	}
	o.Log.Info("gave back a session", who.fields("name", in.Name, "kernelName", kernelName, "direction", lent.Direction, "rule", who.grant.Rule)...)
	return &varlink.Reply{Parameters: reply, FDs: fds}, nil
}

// release ends the keeping of a session. By kernel name it is for those who may see all sessions, as the owner may be
// gone.
func (o *Orchestrator) release(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		Name       *string  `json:"name"`
		KernelName *string  `json:"kernelName"`
		Direction  *string  `json:"direction"`
		Subject    *subject `json:"subject"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	want, err := direction(in.Direction)
	if err != nil {
		return nil, err
	}
	if (in.Name == nil) == (in.KernelName == nil) {
		return nil, varlink.InvalidParameter("name")
	}
	if in.KernelName != nil && in.Subject != nil {
		return nil, varlink.InvalidParameter("subject")
	}
	var who asking
	var kernelName, portion string
	if in.Name != nil {
		portion = *in.Name
		if who, err = o.may(call, in.Subject); err == nil {
			err = o.checkName(ctx, who, portion)
		}
		kernelName = name.Kernel(who.owner, portion)
	} else {
		kernelName = *in.KernelName
		if _, portion, _ = name.Parse(kernelName); portion == "" {
			return nil, varlink.InvalidParameter("kernelName")
		}
		if who, err = o.whose(call, nil); err == nil {
			err = o.mayListAll(call, who)
		}
	}
	if err != nil {
		return nil, o.refuse(who, portion, err)
	}
	released, err := o.Custody.Release(ctx, kernelName, want)
	if errors.Is(err, custody.ErrNotHere) {
		return nil, visible(portion, err)
	}
	if err != nil {
		return nil, o.refuse(who, portion, err)
	}
	if released == liveupdate.Incoming {
		owner := who.owner
		if in.KernelName != nil {
			owner = ""
		}
		o.Custody.Returned(kernelName, owner, true, "")
	}
	o.Log.Info("released a session", who.fields("name", portion, "kernelName", kernelName, "direction", released, "rule", who.grant.Rule)...)
	return &varlink.Reply{}, nil
}

// mayListAll is for what concerns everybody's sessions: the host's administrator, and whoever has a rule for it.
func (o *Orchestrator) mayListAll(call *varlink.Call, who asking) error {
	if grant, err := o.currentPolicy().Allow(who.id); err == nil && grant.ListAll {
		return nil
	}
	yes, err := call.Peer.(*peer.Process).AdministersHost()
	if err == nil && !yes {
		err = &policy.Denial{Reason: "others' sessions are for root with CAP_SYS_ADMIN, outside of containers, and for those whose rule says list-all", Rule: policy.BuiltIn}
	}
	return err
}

// storesWait bounds how long List waits for PID 1.
const storesWait = 5 * time.Second

// list is the caller's own parked sessions; with all, everybody's, and those in units' fd stores.
func (o *Orchestrator) list(ctx context.Context, call *varlink.Call) (*varlink.Reply, error) {
	var in struct {
		All *bool `json:"all"`
	}
	if err := call.Parameters(&in); err != nil {
		return nil, err
	}
	who, err := o.whose(call, nil)
	all := in.All != nil && *in.All
	if err == nil && all {
		err = o.mayListAll(call, who)
	}
	if err != nil {
		return nil, o.refuse(who, "", err)
	}
	var found inventory.Inventory
	parked := map[*inventory.Session]custody.Parked{}
	for _, p := range o.Custody.List() {
		parked[found.Session(p.KernelName, p.Direction)] = p
	}
	if all {
		o.addStores(ctx, &found)
	}
	unclaimed := o.Custody.Unclaimed()
	sessions := []session{}
	for _, f := range found.Sessions {
		digest, portion, ours := name.Parse(f.KernelName)
		mine := ours && who.owner != "" && digest == name.Digest(who.owner)
		if !mine && !all {
			continue
		}
		p, isParked := parked[f]
		s := session{Name: portion, KernelName: f.KernelName, Direction: f.Direction.String(), Parked: isParked, Foreign: !ours}
		switch {
		case mine:
			s.Owner = who.owner
		case ours:
			s.Owner = o.owners.ofSession(f, digest, o.currentPolicy())
		}
		if isParked && p.Direction == liveupdate.Incoming {
			s.Claimed = &p.Claimed
			if slices.Contains(unclaimed, f.KernelName) {
				s.ReleaseBootUSec, _ = o.releaseAt(f.KernelName)
			}
		}
		for _, h := range f.Holders {
			s.Holders = append(s.Holders, holder{h.PID, h.Unit})
		}
		sessions = append(sessions, s)
	}
	reply := struct {
		Sessions []session  `json:"sessions"`
		Returns  []returned `json:"returns,omitempty"`
	}{Sessions: sessions}
	if all {
		for _, r := range o.Custody.Returns() {
			_, portion, _ := name.Parse(r.KernelName)
			reply.Returns = append(reply.Returns, returned{portion, r.Owner, r.KernelName, r.Released, r.BootUSec, r.Rule})
		}
	}
	return &varlink.Reply{Parameters: reply}, nil
}

// returned is io.holdfast.Sessions.Return.
type returned struct {
	Name       string `json:"name"`
	Owner      string `json:"owner,omitempty"`
	KernelName string `json:"kernelName"`
	Released   bool   `json:"released"`
	BootUSec   int64  `json:"bootUSec"`
	Rule       string `json:"rule,omitempty"`
}

// addStores adds what PID 1 tells of its fd stores. Processes' descriptors can't be looked at without privileges, nor can
// the sessions in the stores be asked: their direction is what their FDNAMEs say.
func (o *Orchestrator) addStores(ctx context.Context, found *inventory.Inventory) {
	if o.Stores == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storesWait)
	defer cancel()
	stores, err := o.Stores(ctx)
	if err != nil {
		o.Log.Warn("could not look into all fd stores", "reason", err)
	}
	boot, err := fdname.ThisBoot()
	if err != nil {
		o.Log.Warn("could not tell which boot this is", "reason", err)
		return
	}
	found.AddStores(stores, boot)
	for _, s := range found.Sessions {
		// io.holdfast.Sessions has no word for what can't be told. Most are of this kernel.
		s.Direction = cmp.Or(s.Direction, liveupdate.Outgoing)
	}
	found.Sort()
}
