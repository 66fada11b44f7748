// SPDX-License-Identifier: MIT

package check

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-project/holdfast/internal/inventory"
	"github.com/holdfast-project/holdfast/internal/kexec"
	"github.com/holdfast-project/holdfast/internal/systemd"
)

// loaded: is a kernel loaded already?
func loaded(s *System) []Finding {
	const id = "loaded"
	switch {
	case s.Loaded.Err != nil:
		return warning(id, "look at /sys/kernel/kexec_loaded", "whether a kernel is loaded can't be told: %v", s.Loaded.Err)
	case s.Loaded.Is:
		return ok(id, "a kernel is loaded: any reboot switches to it")
	}
	return ok(id, "no kernel is loaded")
}

// systemdVersion: does PID 1 carry fd stores over the kexec?
func systemdVersion(s *System) []Finding {
	const id = "systemd"
	hint := fmt.Sprintf("update systemd to %d or newer, or have a process hold each session up to the kexec", systemd.CarriesSince)
	switch {
	case s.Systemd.Err != nil:
		return warning(id, "run the check as root", "which systemd PID 1 is can't be told: %v", s.Systemd.Err)
	case s.Systemd.Is == "":
		return warning(id, "switch by kexec -e while the programs that have sessions run", "PID 1 isn't systemd: only what a process holds up to the kexec crosses")
	case s.carries():
		return ok(id, "systemd %s carries fd stores across an update", s.Systemd.Is)
	case s.stored():
		return failure(id, hint, "systemd %s carries no fd store across an update: the sessions in them would be lost", s.Systemd.Is)
	}
	return warning(id, hint, "systemd %s carries no fd store across an update: only what a process holds up to the kexec crosses", s.Systemd.Is)
}

// DEFAULT_MINIMUM_UPTIME_USEC in src/shutdown/shutdown.c, systemd 262.
const defaultMinimumUptime = 15 * time.Second

// minimumUptime: will systemd-shutdown wait, when everything has stopped already, for the machine to have been up for some time?
func minimumUptime(s *System) []Finding {
	const id = "minimum-uptime"
	if !s.carries() {
		return nil // it is of 261 too
	}
	least := defaultMinimumUptime
	value, found := kexec.Param(s.CommandLine.Is, "systemd.minimum_uptime_sec")
	if found {
		seconds, err := strconv.ParseFloat(value, 64)
		if err == nil {
			least = time.Duration(seconds * float64(time.Second))
		} else if least, err = time.ParseDuration(value); err != nil {
			return warning(id, "write it in seconds", "systemd.minimum_uptime_sec=%s on this kernel's command line is not understood here", value)
		}
	}
	switch {
	case s.Uptime.Err != nil:
		return warning(id, "see that it has been up for longer than systemd waits for, 15 s by default", "for how long this machine has been up can't be told: %v", s.Uptime.Err)
	case s.CommandLine.Err != nil:
		return warning(id, "mount /proc", "this kernel's command line can't be told: %v", s.CommandLine.Err)
	case s.Uptime.Is < least:
		return warning(id, "wait, or boot with systemd.minimum_uptime_sec=0", "systemd waits for an uptime of %v, with all services stopped: %v more than there is now", least, (least - s.Uptime.Is).Round(time.Second))
	}
	return ok(id, "the machine has been up for longer than the %v that systemd waits for", least)
}

// The default of InhibitDelayMaxSec=, logind.conf(5).
const defaultInhibitDelay = 5 * time.Second

// inhibitDelay: how long have programs in scopes to commit, if the update is a plain systemctl kexec?
func inhibitDelay(s *System) []Finding {
	const id = "inhibit-delay"
	if !s.hasSystemd() {
		return nil
	}
	inScope := slices.ContainsFunc(s.outgoing(), func(session *inventory.Session) bool {
		return len(session.Stores()) == 0 && slices.ContainsFunc(session.Holders, func(h inventory.Holder) bool { return strings.HasSuffix(h.Unit, ".scope") })
	})
	const hint = "set InhibitDelayMaxSec= in logind.conf, or update by holdfast update only"
	switch d := s.InhibitDelayMax; {
	case d.Err != nil && inScope:
		return warning(id, hint, "how long logind lets programs in scopes delay a plain systemctl kexec can't be told: %v", d.Err)
	case d.Err != nil:
		return ok(id, "logind doesn't say how long a plain systemctl kexec may be delayed, and no scope has a session to commit")
	case inScope && d.Is <= defaultInhibitDelay:
		return warning(id, hint, "programs in scopes have sessions to commit, and logind delays a plain systemctl kexec by %v at most", d.Is)
	}
	return ok(id, "logind lets inhibitors delay a plain systemctl kexec by %v", s.InhibitDelayMax.Is)
}

// exitrd: will something else than systemd-shutdown end the shutdown, which is what preserves the fd stores?
func exitrd(s *System) []Finding {
	const id = "exitrd"
	if !s.hasSystemd() {
		return nil
	}
	const hint = "remove it, or build it with systemd-shutdown of 261 or newer"
	switch e := s.Exitrd; {
	case e.Err != nil:
		return warning(id, "see that there is no /run/initramfs/shutdown, and nothing that makes one when it is stopped", "whether an exitrd will end the shutdown can't be told: %v", e.Err)
	case e.Is.Reason == "":
		return ok(id, "systemd-shutdown ends the shutdown, no exitrd does")
	case e.Is.Systemd >= systemd.CarriesSince:
		return ok(id, "the exitrd (%s) has systemd-shutdown %d", e.Is.Reason, e.Is.Systemd)
	case s.stored():
		return failure(id, hint, "an exitrd (%s) ends the shutdown in place of systemd-shutdown: fd stores don't cross, and the sessions in them would be lost", e.Is.Reason)
	default:
		return warning(id, hint, "an exitrd (%s) ends the shutdown in place of systemd-shutdown: fd stores don't cross", e.Is.Reason)
	}
}
