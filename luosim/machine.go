// SPDX-License-Identifier: MIT

package luosim

import (
	"errors"
	"os"
	"strconv"
)

// BootVariable is the environment variable that tells a process under luosim which boot it is.
const BootVariable = "LUOSIM_BOOT"

// ErrUnsupported says that this system can't run luosim: it isn't Linux.
var ErrUnsupported = errors.New("luosim: only Linux can emulate the Live Update Orchestrator")

// Machine is the machine that a program gets. The zero value is one in order.
type Machine struct {
	// Kernel is the version that is emulated: "7.2", which is the default, or "7.0", which has no GET_NAME.
	Kernel string
	// Updates, if it isn't 0, is how many updates there are at most: the reboot(KEXEC) after them ends the run, with
	// status 0.
	Updates int
	// Faults are what goes wrong, each as NAME[=ARGUMENT][@BOOT]: "busy", "busy=3", "eio@2", "retrieve=7@2".
	// `luosim run --help` lists the names.
	Faults []string
}

// Boot is the number of this boot, from 1 on, under luosim; elsewhere it is 0.
func Boot() int {
	n, err := strconv.Atoi(os.Getenv(BootVariable))
	if err != nil || n < 1 {
		return 0
	}
	return n
}
