// SPDX-License-Identifier: MIT

//go:build linux

package machine

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast/internal/luosim/luo"
)

// Faults are what goes wrong, and in which boots.
type Faults []fault

type fault struct {
	boot int // 0: in all
	set  func(*luo.Faults)
}

// FaultHelp is for --help.
const FaultHelp = `  busy[=N]          the first N opens of the device (default: all) fail with EBUSY
  eio               every open fails with EIO: what the old kernel left can't be read
  nodevice          there is no device
  lost              the old kernel's sessions did not arrive
  freeze[=N]        the first N reboot(KEXEC) (default: one) fail with EIO; sessions go on
  preserve[=TOKEN]  PRESERVE_FD (of that token) fails with ENOMEM
  retrieve[=TOKEN]  RETRIEVE_FD (of that token) fails with ENOMEM, for ever
  finish[=N]        the first N FINISH (default: one) fail with EBUSY`

// AddFault reads NAME[=ARGUMENT][@BOOT].
func (f *Faults) AddFault(spec string) error {
	rest, boot, atBoot := strings.Cut(spec, "@")
	name, argument, given := strings.Cut(rest, "=")
	entry := fault{}
	if atBoot {
		n, err := strconv.Atoi(boot)
		if err != nil || n < 1 {
			return fmt.Errorf("fault %q: the boot after @ must be a number from 1 on", spec)
		}
		entry.boot = n
	}
	number := func(otherwise int) (int, error) {
		if !given {
			return otherwise, nil
		}
		n, err := strconv.Atoi(argument)
		if err != nil || n < 1 {
			return 0, fmt.Errorf("fault %q: the number after = must be from 1 on", spec)
		}
		return n, nil
	}
	tokens := func() (luo.TokenFault, error) {
		if !given {
			return luo.TokenFault{All: true}, nil
		}
		token, err := strconv.ParseUint(argument, 0, 64)
		if err != nil {
			return luo.TokenFault{}, fmt.Errorf("fault %q: the token after = must be a number of 64 bits", spec)
		}
		return luo.TokenFault{Tokens: []uint64{token}}, nil
	}
	var err error
	var n int
	var t luo.TokenFault
	switch name {
	case "busy":
		n, err = number(luo.Every)
		entry.set = func(f *luo.Faults) { f.Busy = n }
	case "freeze":
		n, err = number(1)
		entry.set = func(f *luo.Faults) { f.Freezing = n }
	case "finish":
		n, err = number(1)
		entry.set = func(f *luo.Faults) { f.Finishing = n }
	case "preserve":
		t, err = tokens()
		entry.set = func(f *luo.Faults) { f.Preserve.Add(t) }
	case "retrieve":
		t, err = tokens()
		entry.set = func(f *luo.Faults) { f.Retrieve.Add(t) }
	case "eio", "nodevice", "lost":
		if given {
			return fmt.Errorf("fault %q: %s takes no argument", spec, name)
		}
		entry.set = map[string]func(*luo.Faults){
			"eio":      func(f *luo.Faults) { f.EIO = true },
			"nodevice": func(f *luo.Faults) { f.NoDevice = true },
			"lost":     func(f *luo.Faults) { f.Lost = true },
		}[name]
	default:
		return fmt.Errorf("there is no fault %q: %s", name, strings.Join(faultNames(), ", "))
	}
	if err != nil {
		return err
	}
	*f = append(*f, entry)
	return nil
}

func faultNames() []string {
	var names []string
	for line := range strings.Lines(FaultHelp) {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "[")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// of are a boot's.
func (f Faults) of(boot int) luo.Faults {
	var all luo.Faults
	for _, one := range f {
		if one.boot == 0 || one.boot == boot {
			one.set(&all)
		}
	}
	return all
}
