// SPDX-License-Identifier: MIT

package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/name"
)

// TestUnclaimed asks what becomes of sessions of owners that no process is there for.
func TestUnclaimed(t *testing.T) {
	const day = 24 * time.Hour
	p, err := Load(dir(t, map[string]string{
		"10.toml": `
[[rule]]
name = "vms"
cgroup = '/machine.slice/machine-{vm}.scope'
uid = "any"
owner = "qemu/{vm}"

[[rule]]
name = "cache"
cgroup = ['/system.slice/cache.service', '/vm.slice/other.service']
uid = 0
reclaim-within = "90s"
release-unclaimed-after = "12h"

[[rule]]
name = "kept"
cgroup = '/system.slice/database-*.service'
uid = "any"
owner = "database"
reclaim-within = "2h"
release-unclaimed-after = "never"

[[rule]]
name = "denied"
cgroup = '/system.slice/old.service'
uid = "any"
allow = false
release-unclaimed-after = "1s"
`,
		"20.toml": `
release-unclaimed-after = "7d"

[[rule]]
name = "helper"
cgroup = '/system.slice/helper.service'
uid = 0
owner = "database"
reclaim-within = "1s"
release-unclaimed-after = "1s"
`,
		"30.toml": `
reclaim-within = "10m"
release-unclaimed-after = "1s"
`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	for owner, want := range map[string]Unclaimed{
		"/cache.service": {90 * time.Second, 12 * time.Hour, "cache"},
		"/other.service": {90 * time.Second, 12 * time.Hour, "cache"},
		"database":       {2 * time.Hour, 0, "kept"}, // the first rule that says it
		"/old.service":   {10 * time.Minute, time.Second, "denied"},
		"qemu/vm1":       {10 * time.Minute, 7 * day, "20.toml"}, // whom no rule can speak of
		"/x.service":     {10 * time.Minute, 7 * day, "20.toml"},
	} {
		if got := p.Unclaimed(name.Kernel(owner, "ram")); got != want {
			t.Errorf("%s: %+v, want %+v", owner, got, want)
		}
	}
	if got := p.Unclaimed("systemd"); got != (Unclaimed{}) {
		t.Errorf("a foreign session: %+v", got)
	}
	if got := (&Policy{}).Unclaimed(name.Kernel("/cache.service", "ram")); got != (Unclaimed{}) {
		t.Errorf("without a policy: %+v", got)
	}
	for owner, want := range map[string]string{"/cache.service": "/cache.service", "database": "database", "/helper.service": "", "qemu/vm1": ""} {
		if got := p.OwnerOf(name.Digest(owner)); got != want {
			t.Errorf("of the digest of %q it is known that it is %q's, not %q's", owner, got, want)
		}
	}
}

// TestBrokenPolicyGivesNothingUp has the file that would have said "never" be the broken one.
func TestBrokenPolicyGivesNothingUp(t *testing.T) {
	p, err := Load(dir(t, map[string]string{"10.toml": "release-unclaimed-after = 'never", "20.toml": "release-unclaimed-after = '1s'\nreclaim-within = '1m'"}))
	if err == nil {
		t.Fatal("the file isn't broken")
	}
	if got := p.Unclaimed(name.Kernel("/cache.service", "ram")); got.ReleaseAfter != 0 || got.ReclaimWithin != time.Minute {
		t.Errorf("%+v", got)
	}
}

func TestUnclaimedProblems(t *testing.T) {
	const head = "[[rule]]\nname = 'x'\nuid = 0\n"
	for text, want := range map[string]string{
		"release-unclaimed-after = 7":                                            "1:27: release-unclaimed-after is a time like",
		"release-unclaimed-after = '7'":                                          `, "12h" or "7d" or "never"`,
		"release-unclaimed-after = '0s'":                                         "is a time like",
		"release-unclaimed-after = '100000d'":                                    "is a time like",
		"reclaim-within = 'never'":                                               "1:18: reclaim-within is a time like",
		head + "cgroup = '/a.slice/b-*.service'\nrelease-unclaimed-after = '7d'": "5:1: release-unclaimed-after is for an owner that is known while nobody of it runs",
		head + "cgroup = '/a.slice/b-{c}.service'\nowner = 'b/{c}'\nrelease-unclaimed-after = '7d'": "6:1: release-unclaimed-after is for an owner",
		head + "cgroup = 'any'\nreclaim-within = '1m'":                                              "5:1: reclaim-within is for an owner",
	} {
		_, err := Load(dir(t, map[string]string{"x.toml": text}))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s:\n%v\nwant %q", text, err, want)
		}
	}
}

func TestPeriod(t *testing.T) {
	for d, want := range map[time.Duration]string{90 * time.Second: "90s", 30 * time.Minute: "30m", 12 * time.Hour: "12h", 168 * time.Hour: "7d"} {
		if got := Period(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
