// SPDX-License-Identifier: MIT

package holdfast

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// Error is what the orchestrator answered instead of doing what it was asked to. Its fields are those of the
// varlink error, which api/io.holdfast.Sessions.varlink describes; those that the error at hand hasn't are zero.
type Error struct {
	Op   string // what was asked for, as `acquire "ram"`
	Kind string // the varlink error's full name

	Name       string `json:"name"`
	Reason     string `json:"reason"`
	Rule       string `json:"rule"`
	KernelName string `json:"kernelName"`
	Cgroup     string `json:"cgroup"`
	RetryUSec  int64  `json:"retryUSec"`
	Holder     string `json:"holder"`
	Problem    string `json:"problem"`
	Hint       string `json:"hint"`
	Operation  string `json:"operation"`
	Errno      int    `json:"errno"`
	Parameter  string `json:"parameter"`
	Limit      int    `json:"limit"`

	again bool // it answers a second try, of which the first broke off
}

const sessionsErrors = "io.holdfast.Sessions."

// The kinds of refusal, for errors.Is.
var (
	ErrNameInvalid     = &Error{Kind: sessionsErrors + "NameInvalid"}
	ErrNameTaken       = &Error{Kind: sessionsErrors + "NameTaken"}
	ErrIncomingWaiting = &Error{Kind: sessionsErrors + "IncomingWaiting"}
	ErrNoSuchSession   = &Error{Kind: sessionsErrors + "NoSuchSession"}
	ErrNotASession     = &Error{Kind: sessionsErrors + "NotASession"}
	ErrNotOutgoing     = &Error{Kind: sessionsErrors + "NotOutgoing"}
	ErrNotOwner        = &Error{Kind: sessionsErrors + "NotOwner"}
	ErrNoOwner         = &Error{Kind: sessionsErrors + "NoOwner"}
	ErrNotPermitted    = &Error{Kind: sessionsErrors + "NotPermitted"}
	ErrQuotaExceeded   = &Error{Kind: sessionsErrors + "QuotaExceeded"}
	ErrKeeperFull      = &Error{Kind: sessionsErrors + "KeeperFull"}
	ErrRateLimited     = &Error{Kind: sessionsErrors + "RateLimited"}
	ErrDeviceBusy      = &Error{Kind: sessionsErrors + "DeviceBusy"}
	ErrKernelNotReady  = &Error{Kind: sessionsErrors + "KernelNotReady"}
	ErrKernel          = &Error{Kind: sessionsErrors + "KernelError"}
)

// Is compares kinds. What the kernel refused to the orchestrator is a [liveupdate.ErrAlreadyRetrieved] where it is one.
func (e *Error) Is(target error) bool {
	if target == liveupdate.ErrAlreadyRetrieved {
		return e.alreadyRetrieved()
	}
	other, ok := target.(*Error)
	return ok && other.Kind == e.Kind
}

// alreadyRetrieved tells the one meaning of EINVAL here: the name was checked before.
func (e *Error) alreadyRetrieved() bool {
	return e.Kind == ErrKernel.Kind && e.Operation == liveupdate.OpRetrieveSession && syscall.Errno(e.Errno) == syscall.EINVAL
}

func (e *Error) Error() string {
	var text string
	switch e.Kind {
	case ErrNameInvalid.Kind:
		text = fmt.Sprintf("the name %q can't be one: %s", e.Name, e.Reason)
	case ErrNameTaken.Kind:
		text = fmt.Sprintf("a session %q exists already; close every descriptor of it first, fd stores included", e.Name)
	case ErrIncomingWaiting.Kind:
		text = "a session of this name came from the previous kernel and waits to be reclaimed"
	case ErrNoSuchSession.Kind:
		text = fmt.Sprintf("there is no session %q", e.Name)
	case ErrNotASession.Kind:
		text = "the descriptor is not a live update session"
	case ErrNotOutgoing.Kind:
		text = fmt.Sprintf("the session %s is not one of this kernel", e.KernelName)
	case ErrNotOwner.Kind:
		text = fmt.Sprintf("the session %s belongs to somebody else", e.KernelName)
	case ErrNoOwner.Kind:
		text = fmt.Sprintf("the cgroup %q names no unit, so a session could belong to nobody; run this as a .service", e.Cgroup)
	case ErrNotPermitted.Kind:
		text = "not permitted: " + e.Reason
		if e.Rule != "" {
			text += " (rule: " + e.Rule + ")"
		}
	case ErrQuotaExceeded.Kind:
		text = fmt.Sprintf("%d sessions of this owner are parked, which is its limit; release one, or have max-parked raised in the policy", e.Limit)
	case ErrKeeperFull.Kind:
		text = fmt.Sprintf("the orchestrator's keeper is full: %d descriptors are what its size, the length of their names or one owner's share allow; release what is no longer needed, or have FileDescriptorStoreMax= of holdfastd.service raised", e.Limit)
		if e.Limit == 0 {
			text = "the orchestrator has no keeper here, so nothing can be parked: it takes systemd 261 or newer"
		}
	case ErrRateLimited.Kind:
		text = fmt.Sprintf("too many sessions were asked for; try again in %v", time.Duration(e.RetryUSec)*time.Microsecond)
	case ErrDeviceBusy.Kind:
		text = "/dev/liveupdate is open elsewhere and stayed so"
		if e.Holder != "" {
			text += " (" + e.Holder + ")"
		}
		text += "; try again, or have its holder close it"
	case ErrKernelNotReady.Kind:
		text = e.Problem + "; " + e.Hint
		if said := problems[e.Problem]; said != "" {
			text = said + "; " + e.Hint
		}
	case ErrKernel.Kind:
		text = fmt.Sprintf("the kernel refused to %s (errno %d)", e.Operation, e.Errno)
		if e.alreadyRetrieved() {
			text += ": somebody has the session already, and it can be had only once; don't start afresh"
		}
	case "org.varlink.service.InvalidParameter":
		text = fmt.Sprintf("the orchestrator does not accept the parameter %q; is it of another version?", e.Parameter)
	case "io.systemd.System":
		text = "the orchestrator could not do it, for a reason that its log has (journalctl -u holdfastd); try again"
	case "org.varlink.service.MethodNotImplemented", "org.varlink.service.MethodNotFound":
		text = "the orchestrator that runs here does not know how to; is it of another version?"
	default:
		text = e.Kind
	}
	if e.Op == "" {
		return "holdfast: " + text
	}
	return "holdfast: " + e.Op + ": " + text
}

// problems are the words of KernelNotReady in a sentence.
var problems = map[string]string{
	"noDevice":       "this kernel has no Live Update Orchestrator",
	"notEnabled":     "live update is not enabled on this kernel's command line",
	"handoverFailed": "this kernel could not take over what the previous one left",
}

var (
	// ErrAmbiguous says that a session of the previous kernel and one of this kernel have the same name.
	ErrAmbiguous = errors.New("a session of the previous kernel and one of this kernel have that name: say which (OnlyDirection)")
	// ErrDamaged says that files are parked that no manifest among them describes.
	ErrDamaged = errors.New("what is parked has no manifest that describes all of it")
	// errNotCommitted is what came back without a manifest that names all of it.
	errNotCommitted = errors.New("what came back is not whole, so it was never committed")
	// ErrCommitted is changing a session after its manifest was written.
	ErrCommitted = errors.New("the session is committed; acquire another one to change what it holds")
)

// NoStoreError says that the unit of this process can't keep descriptors across a live update.
type NoStoreError struct {
	Unit   string // may be unknown, and then empty
	Reason string
	Err    error
}

func (e *NoStoreError) Error() string {
	unit := e.Unit
	if unit == "" {
		unit = "this process"
	}
	text := fmt.Sprintf("holdfast: %s has no fd store that a session could be kept in: %s", unit, e.Reason)
	if e.Err != nil {
		text = strings.TrimSuffix(text, ": ") + ": " + e.Err.Error()
	}
	return text
}

func (e *NoStoreError) Unwrap() error { return e.Err }

// StoreFullError says that the unit's fd store has no room for all that was to be committed.
type StoreFullError struct {
	Unit string
	Max  int // FileDescriptorStoreMax=, in descriptors
	Need int // what it would have to be
}

func (e *StoreFullError) Error() string {
	return fmt.Sprintf("holdfast: the fd store of %s takes %d descriptors and would need %d; raise FileDescriptorStoreMax= to %d or more",
		e.Unit, e.Max, e.Need, e.Need)
}

// MemoryLimitError says that the memory limit of a cgroup leaves no room for what a session holds. Nothing was
// retrieved, and nothing is lost: raise the limit and try again.
type MemoryLimitError struct {
	Cgroup    string // whose limit it is: one's own, or one above
	Need      int64  // bytes
	Available int64  // bytes: the limit, less what is used and can't be reclaimed
	Limit     int64  // bytes, memory.max
}

func (e *MemoryLimitError) Error() string {
	return fmt.Sprintf("holdfast: the session holds %d MiB, and the memory limit of %s (%d MiB) has room for %d MiB: "+
		"retrieving would lose the memory for good, so it was left alone; raise MemoryMax= and start again",
		mebibytes(e.Need), e.Cgroup, mebibytes(e.Limit), mebibytes(e.Available))
}

func mebibytes(n int64) int64 { return (n + 1<<20 - 1) >> 20 }
