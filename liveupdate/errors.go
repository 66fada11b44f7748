// SPDX-License-Identifier: MIT

package liveupdate

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// What went wrong, for [errors.Is]. The errno that the kernel gave can be asked for in the same way, and so can
// [io/fs.ErrPermission], [os.ErrClosed] and [errors.ErrUnsupported] where they fit.
var (
	// ErrNoDevice: there is no device to open, mostly because the kernel has no Live Update Orchestrator.
	ErrNoDevice = newKind("there is no live update device",
		"boot Linux 6.19 or newer built with CONFIG_LIVEUPDATE, and with kho=on liveupdate=on on its command line")
	// ErrNotEnabled: the kernel has the Live Update Orchestrator, but it was not turned on at boot.
	ErrNotEnabled = newKind("live update is not enabled in this kernel",
		"boot with kho=on liveupdate=on on the kernel's command line")
	// ErrBusy: somebody else had the device open for as long as the call could wait. It comes as a [*BusyError].
	ErrBusy = newKind("the live update device is open elsewhere",
		"have its holder close it, or wait for longer")
	// ErrHandoverFailed: the kernel could not read what the previous one left (EIO at open).
	ErrHandoverFailed = newKind("the kernel could not take over the previous kernel's sessions",
		"see the kernel's log for why, and reboot: every open of the device fails until then")
	// ErrNameTaken: an outgoing session of that name exists (EEXIST of CREATE_SESSION).
	ErrNameTaken = newKind("an outgoing session of this name exists already",
		"close every descriptor of it, or choose another name")
	// ErrNoSuchSession: no incoming session of that name exists (ENOENT of RETRIEVE_SESSION).
	ErrNoSuchSession = newKind("no session of this name came from the previous kernel",
		"it was never there, was finished, or its last descriptor was closed: start afresh")
	// ErrAlreadyRetrieved: somebody has the incoming session (EINVAL of RETRIEVE_SESSION).
	ErrAlreadyRetrieved = newKind("the incoming session was retrieved already",
		"get a descriptor from whoever holds it")
	// ErrNameInvalid: a name is 1 to [MaxName] bytes long, without NUL.
	ErrNameInvalid = newKind("the session name is not valid",
		"use 1 to 63 bytes, none of them NUL")
	// ErrWrongSide: files are preserved in outgoing sessions only, retrieved and finished in incoming ones only.
	ErrWrongSide = newKind("the session is on the wrong side of the update for this",
		"preserve in a session made in this kernel; retrieve from one of the previous kernel, and finish that one")
	// ErrNotPreservable: the kernel can't preserve files of this kind (ENOENT of PRESERVE_FD).
	ErrNotPreservable = newKind("the kernel can't preserve a file of this kind",
		"use a memfd without MFD_HUGETLB, and a kernel with CONFIG_LIVEUPDATE_MEMFD")
	// ErrTokenTaken: the session has a file under this token (EEXIST of PRESERVE_FD).
	ErrTokenTaken = newKind("the session has a file under this token already",
		"use another token")
	// ErrAlreadyPreserved: the file is in a session, or was retrieved from one that isn't finished (EBUSY of
	// PRESERVE_FD). A memfd is the same file through every descriptor.
	ErrAlreadyPreserved = newKind("the file is in a session already",
		"close that outgoing session, or finish that incoming one, first")
	// ErrNoSuchToken: the session has no file under this token (ENOENT of RETRIEVE_FD); a finished one has none at all.
	ErrNoSuchToken = newKind("the session has no file under this token",
		"use a token that a file was preserved under, before the session is finished")
	// ErrFileLost: the kernel failed to restore a file, and gives the same answer from then on.
	ErrFileLost = newKind("the file could not be restored and is lost",
		"see the kernel's log for why; asking again gives the same answer")
	// ErrNoMemory is an [ErrFileLost] for want of memory (ENOMEM of RETRIEVE_FD), mostly the cgroup's: whoever retrieves a
	// file pays for its pages. Want of memory elsewhere is a plain ENOMEM, after which nothing is lost.
	ErrNoMemory error = &kind{what: "the file is lost for want of memory", wraps: ErrFileLost,
		fix: "asking again gives the same answer; next time retrieve from a cgroup whose memory.max has room for it"}
	// ErrNotASession: the descriptor is something else.
	ErrNotASession = newKind("the descriptor is not a live update session",
		"pass one that Create or Retrieve has made, not opened with O_PATH")
	// ErrNotSupported: the kernel doesn't know the operation (ENOTTY), or isn't Linux. It is also an
	// [errors.ErrUnsupported].
	ErrNotSupported error = &kind{what: "the kernel does not know this operation", wraps: errors.ErrUnsupported,
		fix: "use a newer kernel"}
)

// kind is a sentinel error with the way out.
type kind struct {
	what, fix string
	wraps     error
}

func newKind(what, fix string) error { return &kind{what: what, fix: fix} }

func (k *kind) Error() string { return k.what }
func (k *kind) Unwrap() error { return k.wraps }

// What was tried, for [Error.Op].
const (
	OpCheck           = "check the device"
	OpCreate          = "create session"
	OpRetrieveSession = "retrieve session"
	OpOpen            = "take descriptor for a session"
	OpPreserve        = "preserve file"
	OpRetrieve        = "retrieve file"
	OpFinish          = "finish session"
	OpDirection       = "tell the direction of session"
	OpDup             = "duplicate session"
)

// Error is what every method here fails with, but for a [*BusyError].
type Error struct {
	// Op is what was tried, one of the Op constants.
	Op string
	// Name is the session's; empty where there is none yet.
	Name string
	// Token is the file's, for OpPreserve and OpRetrieve.
	Token uint64
	// Path is the device's, where it was the device that failed.
	Path string
	// Kind is one of the Err variables; nil where none of them fits, and where Err is or wraps one.
	Kind error
	// Err is what the kernel said, mostly a [syscall.Errno], or what was found without it; may be nil next to a Kind.
	Err error
	// Hint is what to do next; may be empty.
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("liveupdate: " + e.Op)
	switch {
	case e.Op == OpPreserve:
		fmt.Fprintf(&b, " as token %d in session %q", e.Token, e.Name)
	case e.Op == OpRetrieve:
		fmt.Fprintf(&b, " of token %d from session %q", e.Token, e.Name)
	case e.Name != "":
		fmt.Fprintf(&b, " %q", e.Name)
	}
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	switch {
	case e.Kind != nil && e.Err != nil:
		fmt.Fprintf(&b, ": %v (%v)", e.Kind, e.Err)
	case e.Kind != nil:
		fmt.Fprintf(&b, ": %v", e.Kind)
	default:
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap gives [errors.Is] the Kind and what the kernel said.
func (e *Error) Unwrap() []error {
	var all []error
	if e.Kind != nil {
		all = append(all, e.Kind)
	}
	if e.Err != nil {
		all = append(all, e.Err)
	}
	return all
}

// Holder is a process that has the device open.
type Holder struct {
	PID  int
	Comm string // the name of its main thread, as in /proc/PID/comm
}

// BusyError says that the device was open elsewhere until the deadline. It is an [ErrBusy].
type BusyError struct {
	Op     string
	Name   string // the session's
	Path   string // the device's
	Waited time.Duration
	// Holders are the processes that had the device open after the last try, as far as /proc showed them: it takes
	// privilege to see those of others.
	Holders []Holder
	// Err is EBUSY, joined with the context's error if that ended the wait.
	Err error
}

func (e *BusyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "liveupdate: %s %q: %s was busy for %v", e.Op, e.Name, e.Path, e.Waited.Round(time.Millisecond))
	for i, h := range e.Holders {
		if i == 0 {
			b.WriteString(", held by")
		} else {
			b.WriteString(" and")
		}
		fmt.Fprintf(&b, " process %d (%q)", h.PID, h.Comm)
	}
	b.WriteString("; " + fix(ErrBusy))
	return b.String()
}

// Unwrap makes it an [ErrBusy].
func (e *BusyError) Unwrap() []error { return []error{ErrBusy, e.Err} }

// fix is the way out that goes with an error of the package; empty for others.
func fix(err error) string {
	var k *kind
	if errors.As(err, &k) {
		return k.fix
	}
	return ""
}
