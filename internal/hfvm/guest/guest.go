// SPDX-License-Identifier: MIT

// Package guest is the half of hfvm that runs inside the virtual machine. One static binary serves
// under several names: as init of a machine without an operating system, as the service that runs
// the script, and as the commands that a script calls.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Where things are in a guest. A script that loads kernels by itself finds the next one at
// KernelNext, its command line in CmdlineNext, and in Initrd the initrd, if there is one.
const (
	Home        = "/hfvm"
	Agent       = Home + "/agent"
	ConfigFile  = Home + "/config.json"
	Script      = Home + "/script"
	Kernels     = Home + "/kernels" // the images: 1 for odd boots, 2 for even ones
	Initrd      = Home + "/initrd"
	KernelNext  = Home + "/kernel-next"
	CmdlineNext = Home + "/cmdline-next"
	boots       = Home + "/boots" // the boot ids seen, one a line
)

// Where the guest writes what is for the host: virtio ports, which can be open only once.
const (
	outputPort  = "/dev/vport0p1"
	messagePort = "/dev/vport0p2"
)

// BootWord is the word on the kernel's command line that counts the boots of a guest with no disk.
const BootWord = "hfvm.boot="

// Config is what the host tells the guest.
type Config struct {
	Env     []string // NAME=VALUE, for the script
	Kernels int      // how many images there are: 1 or 2
	Disk    bool     // the root file system outlasts a boot
	Network bool     // there is an interface beside lo
}

// commands are the names under which the binary is the guest's, with their meaning.
var commands = map[string]func(args []string) error{
	"init":            runInit,
	"hfvm-boot":       runService,
	"hfvm-output":     runOutput,
	"hfvm-network":    runNetwork,
	"hfvm-kexec-load": kexecLoad,
	"hfvm-kexec":      kexec,
	"hfvm-pass":       pass,
	"hfvm-fail":       fail,
}

// services are the commands that are for units.
var services = []string{"hfvm-boot", "hfvm-output", "hfvm-network"}

// Commands are the names that have to be on the guest's PATH.
func Commands() []string {
	var names []string
	for name := range commands {
		if strings.HasPrefix(name, "hfvm-") && !slices.Contains(services, name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// Main runs the command that the binary was called as. It returns false if that's none of the guest's.
func Main() bool {
	name := filepath.Base(os.Args[0])
	command, ok := commands[name]
	if !ok || name == "init" && os.Getpid() != 1 {
		return false
	}
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	return true
}

func readConfig() (Config, error) {
	var c Config
	data, err := os.ReadFile(ConfigFile)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}

// end tells the verdict and waits for the host to stop the machine, so that nothing comes after it.
func end(kind, text string) error {
	n, err := bootNumber()
	if err != nil {
		text = fmt.Sprintf("%s (%v)", text, err)
	}
	if err := tell(Message{Kind: kind, Boot: n, Text: text}); err != nil {
		return err
	}
	for {
		if err := unix.Pause(); err != nil && err != unix.EINTR {
			return err
		}
	}
}

func pass([]string) error { return end("pass", "") }

func fail(args []string) error {
	text := strings.Join(args, " ")
	if text == "" {
		text = "hfvm-fail without a text"
	}
	return end("fail", text)
}
