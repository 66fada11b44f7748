// SPDX-License-Identifier: MIT

// Package fdname makes and reads the names of descriptors in fd stores (FDNAME, sd_notify(3)). They are hints: what a
// session is, the kernel says.
//
//	session   b<8 hex digits of the boot id>-<kernel name>
//	file      b<8 hex digits of the boot id>-<kernel name>/<file>, in the store of the unit itself
//
// The boot id keeps the generations of a session apart: removing a name removes every entry that has it, and a renewed
// session has the kernel name of the one before it.
package fdname

import (
	"fmt"
	"os"
	"strings"

	"github.com/holdfast-project/holdfast/internal/name"
)

// Name is an FDNAME taken apart.
type Name struct {
	Boot       string // 8 hex digits
	KernelName string
	File       string // empty for a session's
}

const bootLen = 8

// ThisBoot is the part of this boot's names.
func ThisBoot() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	if len(boot) < bootLen || !isHex(string(boot[:bootLen])) {
		return "", fmt.Errorf("the boot id %q isn't one", boot)
	}
	return string(boot[:bootLen]), nil
}

// Session is the name of the session that it belongs to.
func (n Name) Session() string { return "b" + n.Boot + "-" + n.KernelName }

// Parse takes a name apart. It fails for what isn't one of ours.
func Parse(s string) (Name, bool) {
	session, file, hasFile := strings.Cut(s, "/")
	if len(session) < bootLen+2 || session[0] != 'b' || session[bootLen+1] != '-' || hasFile && file == "" {
		return Name{}, false
	}
	n := Name{Boot: session[1 : bootLen+1], KernelName: session[bootLen+2:], File: file}
	if _, _, ok := name.Parse(n.KernelName); !ok || !isHex(n.Boot) {
		return Name{}, false
	}
	return n, true
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
