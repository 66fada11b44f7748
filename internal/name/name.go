// SPDX-License-Identifier: MIT

// Package name builds and reads the kernel names of sessions.
//
//	kernel name = "h1-" + digest + "." + name
//
// The digest stands for the owner, so a kernel name proves whose session it is without any table: compute the
// digest of whoever asks, and compare. The whole fits into the 63 bytes that the kernel allows
// (LIVEUPDATE_SESSION_NAME_LENGTH less the NUL, include/uapi/linux/liveupdate.h, Linux 7.2).
package name

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	// KernelMax is the longest kernel name, in bytes.
	KernelMax = 63
	// LinkKernelMax is the longest kernel name that can be read back where the kernel has no GET_NAME: the link
	// of the descriptor fails for longer ones (seen on Linux 7.0).
	LinkKernelMax = 38
	// Overhead is what a kernel name has beside the client's own portion, in bytes.
	Overhead = len(version) + digestLen + 1
	// Max is the longest client's portion, in bytes.
	Max = KernelMax - Overhead
	// LinkMax is the same where the kernel has no GET_NAME.
	LinkMax = LinkKernelMax - Overhead

	version   = "h1-"
	digestLen = 16
	domain    = "holdfast/1\x00"
)

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Digest returns the 16 characters that stand for an owner in its sessions' kernel names.
func Digest(owner string) string {
	sum := sha256.Sum256([]byte(domain + owner))
	return base32Lower.EncodeToString(sum[:10])
}

// Kernel returns the kernel name of an owner's session. The name must have passed [Check].
func Kernel(owner, name string) string {
	return version + Digest(owner) + "." + name
}

// Parse takes a kernel name apart. It fails for a foreign one.
func Parse(kernel string) (digest, name string, ok bool) {
	rest, ok := strings.CutPrefix(kernel, version)
	if !ok || len(rest) < digestLen+1 || rest[digestLen] != '.' {
		return "", "", false
	}
	digest, name = rest[:digestLen], rest[digestLen+1:]
	for _, c := range []byte(digest) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return "", "", false
		}
	}
	if Check(name, Max) != nil {
		return "", "", false
	}
	return digest, name, true
}

// InvalidError says why a name can't be one. Its text is for the client that sent the name.
type InvalidError struct {
	Name   string
	Reason string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("session name %q: %s", e.Name, e.Reason)
}

// Check tells whether name can be the client's portion of a session's name, of at most max bytes (Max or
// LinkMax). The error is an *InvalidError.
func Check(name string, max int) error {
	if name == "" {
		return &InvalidError{name, "it is empty"}
	}
	if len(name) > max {
		return &InvalidError{name, fmt.Sprintf("it has %d bytes, the longest here is %d", len(name), max)}
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		switch {
		case alnum:
		case i == 0:
			return &InvalidError{name, "it must start with a letter or a digit"}
		case c != '_' && c != '.' && c != '@' && c != '-':
			return &InvalidError{name, fmt.Sprintf("byte %d is none of A-Z a-z 0-9 _ . @ -", i)}
		}
	}
	return nil
}

// Token returns the token under which a file of this name lies in a session: the first 8 bytes of the SHA-256
// of its name, big-endian.
func Token(file string) uint64 {
	sum := sha256.Sum256([]byte(file))
	return binary.BigEndian.Uint64(sum[:8])
}
