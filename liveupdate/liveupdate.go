// SPDX-License-Identifier: MIT

package liveupdate

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// DevicePath is where udev and devtmpfs put the device.
const DevicePath = "/dev/liveupdate"

// DefaultTimeout is how long a call waits for a busy device if its context has no deadline.
const DefaultTimeout = 5 * time.Second

const (
	// MaxName is the longest session name in bytes: LIVEUPDATE_SESSION_NAME_LENGTH less the terminating NUL
	// (include/uapi/linux/liveupdate.h, Linux 7.2.13).
	MaxName = 63

	// MaxLinkName is the longest session name in bytes that can be read back on a kernel without GET_NAME, from the
	// link /proc/self/fd/N. Up to Linux 7.0 dynamic_dname() in fs/d_path.c gave links 64 bytes with the NUL, and
	// [LinkPrefix] takes 25 of them; "dcache: permit dynamic_dname()s up to NAME_MAX" has lifted that, and in 7.2.13
	// it is gone. A longer link can't be read at all (ENAMETOOLONG).
	MaxLinkName = 63 - len(LinkPrefix)

	// LinkPrefix is what the link /proc/self/fd/N of a session starts with; the session's name follows
	// (luo_session_getfile() in kernel/liveupdate/luo_session.c, Linux 7.2.13).
	LinkPrefix = "anon_inode:[luo_session] "
)

// Direction says which kernel a session was made in.
type Direction int

const (
	// Outgoing is a session made in this kernel: files can be preserved in it for the next one.
	Outgoing Direction = iota + 1
	// Incoming is a session from the previous kernel: its files can be retrieved, and it can be finished.
	Incoming
)

// String is "outgoing" or "incoming".
func (d Direction) String() string {
	switch d {
	case Outgoing:
		return "outgoing"
	case Incoming:
		return "incoming"
	}
	return fmt.Sprintf("Direction(%d)", int(d))
}

// Features is what differs between kernels, see [Device.Features].
type Features struct {
	// GetName says whether a session's name can be asked of its descriptor (GET_NAME, since Linux 7.2). Without, it is
	// read from the link /proc/self/fd/N.
	GetName bool
	// NameMax is the longest session name in bytes that can be read back: [MaxName] or [MaxLinkName].
	NameMax int
}

// Device is the path of the Live Update Orchestrator's device; the zero value means [DevicePath]. It holds nothing
// open: only one process at a time can have the device open, systemd is one of those that want it, so each method
// opens it for the length of an ioctl. Its methods are safe for concurrent use.
type Device struct {
	Path string
}

func (d Device) path() string {
	if d.Path == "" {
		return DevicePath
	}
	return d.Path
}

// checkName finds a name that the kernel would refuse, and one that it would cut short at a NUL.
func checkName(op, name string) error {
	var reason error
	switch {
	case name == "":
		reason = errors.New("it is empty")
	case len(name) > MaxName:
		reason = fmt.Errorf("it has %d bytes", len(name))
	case strings.IndexByte(name, 0) >= 0:
		reason = errors.New("it has a NUL in it")
	default:
		return nil
	}
	return &Error{Op: op, Name: name, Kind: ErrNameInvalid, Err: reason, Hint: fix(ErrNameInvalid)}
}
