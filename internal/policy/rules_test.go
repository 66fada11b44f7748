// SPDX-License-Identifier: MIT

package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-project/holdfast/internal/peer"
)

// dir has files, by name.
func dir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "policy.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Load(dir(t, map[string]string{"x.toml": text}))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// decided is the rule and the owner, or the kind of error; what Decide says must be the same.
func decided(t *testing.T, p *Policy, cgroup string, uid uint32) string {
	t.Helper()
	id := identity(cgroup, uid)
	grant, err := p.Allow(id)
	d := p.Decide(id)
	if d.Grant != grant || fmt.Sprint(d.Err) != fmt.Sprint(err) {
		t.Errorf("%s, uid %d: Allow says %+v, %v; Decide %+v, %v", cgroup, uid, grant, err, d.Grant, d.Err)
	}
	for i, s := range d.Steps {
		if s.Decides != (i == len(d.Steps)-1) || s.Rule == "" || s.Why == "" {
			t.Errorf("%s, uid %d: step %d of %d: %+v", cgroup, uid, i, len(d.Steps), s)
		}
	}
	var denial *Denial
	var none *NoOwner
	last := d.Steps[len(d.Steps)-1].Rule
	switch {
	case err == nil && grant.Rule != last, errors.As(err, &denial) && denial.Rule != last:
		t.Errorf("%s, uid %d: %+v, %v; but the last step is %+v", cgroup, uid, grant, err, d.Steps)
		return ""
	case err == nil:
		return grant.Rule + " " + grant.Owner
	case errors.As(err, &denial):
		return "denied by " + denial.Rule
	case errors.As(err, &none):
		return "no owner"
	}
	t.Errorf("%s, uid %d: %v", cgroup, uid, err)
	return ""
}

const host = `
[[rule]]
name = "no-crons"
cgroup = ['/system.slice/cron.service', '/system.slice/cron@*.service']
uid = "any"
allow = false

[[rule]]
name = "vms"
cgroup = '/machine.slice/machine-qemu\x2d#\x2d{vm:unescaped}.scope'
uid = [107, "2000-2999"]
owner = "qemu/{vm}"
names = ["ram", "disk-*"]
max-parked = 4
rate = "20/1m"

[[rule]]
name = "libvirt"
cgroup = '/system.slice/libvirtd.service'
uid = 0
delegate = ["qemu/*", '/machine-lxc*.scope']
list-all = true

[[rule]]
name = "users-caches"
cgroup = '/user.slice/user-*.slice/user@#.service/app.slice/cache-*.service'
uid = "1000-60000"

[[rule]]
name = "docker"
cgroup = ['/docker/{id}', '/docker.slice/docker-{id}.scope']
uid = 0
owner = "docker/{id}"

[[rule]]
name = "escaped"
cgroup = '/vm.slice/vm@{i}.service'
uid = 0
owner = 'vm/{i}'

[[rule]]
name = "inside-podman"
cgroup = '/pods/*/system.slice/*.service'
uid = 0
`

func TestRules(t *testing.T) {
	p := load(t, host)
	const scope = `/machine.slice/machine-qemu\x2d3\x2d`
	for _, c := range []struct {
		cgroup string
		uid    uint32
		want   string
	}{
		{scope + `vm1.scope`, 107, "vms qemu/vm1"},
		{`/machine.slice/machine-qemu\x2d44\x2dvm1.scope`, 107, "vms qemu/vm1"}, // as after the next boot
		{scope + `vm1.scope/libvirt/emulator`, 107, "vms qemu/vm1"},
		{scope + `vm1.scope`, 2000, "vms qemu/vm1"},
		{scope + `vm1.scope`, 2999, "vms qemu/vm1"},
		{scope + `my\x2dvm.scope`, 107, "vms qemu/my-vm"},
		{scope + `7\x2dvm.scope`, 107, "vms qemu/7-vm"},
		{`/machine.slice/machine-qemu\x2d37\x2dvm.scope`, 107, "vms qemu/vm"},
		{"/system.slice/libvirtd.service", 0, "libvirt /libvirtd.service"},
		{"/system.slice/libvirtd.service/vcpu", 0, "libvirt /libvirtd.service"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/cache-a.service", 1000, "users-caches /user@1000.service/cache-a.service"},
		{"/docker/0123abc", 0, "docker docker/0123abc"},
		{"/docker.slice/docker-0123abc.scope/init", 0, "docker docker/0123abc"},
		{`/vm.slice/vm@a\x2db.service`, 0, `escaped vm/a\x2db`},
		{"/vm.slice/vm@a-b.service", 0, "escaped vm/a-b"},
		// What no rule is for, the built-in one decides.
		{"/system.slice/vmm.service", 0, "built-in /vmm.service"},
		{"/system.slice/vmm.service", 107, "denied by built-in"},
		{"/plain", 0, "no owner"},
		// The first one decides.
		{"/system.slice/cron.service", 0, "denied by no-crons"},
		{"/system.slice/cron@x.service", 0, "denied by no-crons"},
		{"/system.slice/cron@x.service/sub", 1, "denied by no-crons"},

		// Another user.
		{scope + `vm1.scope`, 0, "denied by built-in"},
		{scope + `vm1.scope`, 1999, "denied by built-in"},
		{scope + `vm1.scope`, 3000, "denied by built-in"},
		// A unit inside is another owner, and not of the rule for the one outside.
		{scope + `vm1.scope/evil.service`, 107, "denied by built-in"},
		{"/system.slice/libvirtd.service/x.scope", 0, "denied by built-in"},
		// A subtree that somebody else makes can't look like the system's own.
		{"/user.slice/user-107.slice/user@107.service" + scope + "vm1.scope", 107, "denied by built-in"},
		{"/system.slice/x.service" + scope + "vm1.scope", 107, "denied by built-in"},
		{"/machine.slice/x.scope/machine-qemu\\x2d3\\x2dvm1.scope", 107, "denied by built-in"},
		{"/machine.slice/machine-qemu\\x2d3\\x2d/vm1.scope", 107, "denied by built-in"},
		{"/.." + scope + "vm1.scope", 107, "denied by built-in"},
		{"/docker/0123/45", 0, "no owner"},
		{"/docker/0123/sub", 0, "no owner"},
		{"/docker/..", 0, "no owner"},
		{"/docker/0123/system.slice/libvirtd.service", 0, "denied by built-in"},
		{"/user.slice/user-1/x.slice/user@1000.service/app.slice/cache-a.service", 1000, "denied by built-in"},
		// Below what isn't the system manager's, a unit could be called as one of the system's is.
		{"/pods/1/system.slice/vmm.service", 0, "denied by inside-podman"},
		// Parts of names that would make another's owner.
		{scope + `a\x2fb.scope`, 107, "denied by vms"},
		{scope + `a-b.scope`, 107, "denied by vms"}, // - stands for a /
		{scope + `a\x2Db.scope`, 107, "denied by vms"},
		{scope + `\x61.scope`, 107, "denied by vms"},
		{scope + `a\x2.scope`, 107, "denied by vms"},
		{scope + `a\x00.scope`, 107, "denied by vms"},
		{scope + `...scope`, 107, "denied by vms"},
		{scope + `\x20.scope`, 107, "denied by vms"},
		{scope + `.scope`, 107, "denied by built-in"},
		{`/machine.slice/machine-qemu\x2dx\x2dvm.scope`, 107, "denied by built-in"},
		{`/machine.slice/machine-qemu\x2d\x2dvm.scope`, 107, "denied by built-in"},
	} {
		if got := decided(t, p, c.cgroup, c.uid); got != c.want {
			t.Errorf("%s, uid %d: %s, want %s", c.cgroup, c.uid, got, c.want)
		}
	}
}

func TestGrants(t *testing.T) {
	p := load(t, host)
	allow := func(cgroup string, uid uint32) Grant {
		grant, err := p.Allow(identity(cgroup, uid))
		if err != nil {
			t.Fatal(err)
		}
		return grant
	}
	vm := allow(`/machine.slice/machine-qemu\x2d3\x2dvm1.scope`, 107)
	if vm.MaxParked != 4 || vm.Rate != (Rate{20, time.Minute}) || vm.ListAll || vm.Required || vm.Rate.String() != "20/1m" {
		t.Errorf("%+v", vm)
	}
	for name, want := range map[string]bool{"ram": true, "disk-": true, "disk-1": true, "rams": false, "xram": false, "disk": false, "other": false} {
		var denial *Denial
		if err := vm.CheckName(name); (err == nil) != want || err != nil && (!errors.As(err, &denial) || denial.Rule != "vms") {
			t.Errorf("name %s: %v", name, err)
		}
	}
	libvirt := allow("/system.slice/libvirtd.service", 0)
	if libvirt.MaxParked != DefaultMaxParked || libvirt.Rate != (Rate{}) || !libvirt.ListAll || libvirt.CheckName("anything") != nil {
		t.Errorf("%+v", libvirt)
	}
	for owner, want := range map[string]bool{
		"qemu/vm1": true, `qemu/my\x2dvm`: true, "/machine-lxc1.scope": true, "/libvirtd.service": true,
		"qemu": false, "qemu/": false, "qemu/a/b": false, "xqemu/a": false, "/qemu/a": false,
		"/machine-lxc1.scope/x.service": false, "/vmm.service": false, "uid/0": false, "qemu/../x": false,
	} {
		if got := libvirt.MayActFor(owner); got != want {
			t.Errorf("acts for %s: %v", owner, got)
		}
	}
	if builtIn := allow("/system.slice/vmm.service", 0); builtIn.MayActFor("qemu/vm1") || builtIn.MayActFor("") || !builtIn.MayActFor("/vmm.service") || builtIn.CheckName("any") != nil || builtIn.ListAll {
		t.Errorf("%+v", builtIn)
	}
	// Others than root are limited, even where the rule forgets to.
	if user := allow("/user.slice/user-1000.slice/user@1000.service/app.slice/cache-a.service", 1000); user.Rate != (Rate{60, time.Minute}) {
		t.Errorf("%+v", user)
	}
}

// TestDeniedHaveOwners: sessions that are denied to a VM itself may still be asked for in its name.
func TestDeniedHaveOwners(t *testing.T) {
	p := load(t, `
[[rule]]
name = "vms"
cgroup = '/machine.slice/machine-{vm}.scope'
uid = "any"
owner = "vm/{vm}"
allow = false
`)
	for cgroup, want := range map[string]string{
		"/machine.slice/machine-a.scope":          "vm/a",
		"/machine.slice/other.scope":              "/other.scope",
		"/docker/1/system.slice/vmm.service":      "",
		"/plain":                                  "",
		"/machine.slice/machine-a.scope/in.scope": "/machine-a.scope/in.scope",
	} {
		if owner, err := p.Owner(identity(cgroup, 7)); owner != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", cgroup, owner, err, want)
		}
		if _, err := p.Allow(identity(cgroup, 7)); err == nil {
			t.Errorf("%s is allowed", cgroup)
		}
	}
}

func TestAnywhere(t *testing.T) {
	p := load(t, `
[[rule]]
name = "vmm"
cgroup = '/system.slice/vmm.service'
uid = 0
[[rule]]
name = "nobody-else"
cgroup = "any"
uid = "any"
allow = false
`)
	p.UIDOwners = &UIDOwners{}
	for cgroup, want := range map[string]string{
		"/system.slice/vmm.service":         "vmm /vmm.service",
		"/system.slice/other.service":       "denied by nobody-else",
		"/":                                 "denied by nobody-else",
		"/../system.slice/vmm.service":      "denied by nobody-else",
		"/system.slice/vmm.service/x.scope": "denied by nobody-else",
	} {
		if got := decided(t, p, cgroup, 0); got != want {
			t.Errorf("%s: %s, want %s", cgroup, got, want)
		}
	}
}

func TestProblems(t *testing.T) {
	// rule is a good one with a line more, its seventh.
	rule := func(line string) string {
		return "# a comment\n\n[[rule]]\nname = 'x'\ncgroup = '/system.slice/x.service'\nuid = 0\n" + line + "\n"
	}
	cgroup := func(value string) string {
		return "[[rule]]\nname = 'x'\nuid = 0\ncgroup = " + value + "\nowner = 'x/y'\n"
	}
	for text, want := range map[string]string{
		"rule = 5":                                    `1:1: "rule" is unknown`,
		"colour = 'blue'":                             `1:1: "colour" is unknown`,
		"[rule]\nname = 'x'":                          `1:2: "rule" is unknown`,
		"[[rules]]\nname = 'x'":                       `1:3: "rules" is unknown`,
		"rule = [{name = 'x'}]":                       `1:1: "rule" is unknown`,
		"[[rule]]\nname = 'x":                         "2:",
		"[[rule]]\nname = 'x'\nname=1":                "3:1: ",
		"[[rule]]\nname = 'x'\nuid = 0":               "1:3: the rule has no cgroup",
		"[[rule]]\ncgroup = '/a.service'\nuid = 0":    "1:3: the rule has no name",
		"[[rule]]\nname = 'x'\ncgroup = '/a.service'": "1:3: the rule has no uid",

		rule("Owner = 'x/y'"):                                `7:1: "Owner" is unknown; a rule may have allow, cgroup`,
		rule("max-parkd = 1"):                                `7:1: "max-parkd" is unknown`,
		rule("rule.owner = 'x/y'"):                           `7:1: "rule.owner" is unknown`,
		rule("[rule.x]\ny = 1"):                              `7:2: "rule.x" is unknown`,
		rule("allow = 'no'"):                                 "7:9: true or false",
		rule("list-all = 1"):                                 "7:12: true or false",
		rule("required = 'yes'"):                             "7:12: true or false",
		rule("names = 'ram'"):                                "",
		rule("names = []"):                                   "7:1: the list names must have",
		rule("names = ['ram', 7]"):                           "7:17: a string",
		rule("names = ['ram', '']"):                          `7:17: "": it can't be a session's name: it is empty`,
		rule("names = ['disk-#']"):                           "",
		rule("names = ['a/*']"):                              "7:10: ",
		rule("names = ['-x']"):                               "7:10: ",
		rule("names = ['" + strings.Repeat("a", 44) + "']"):  "the longest here is 43",
		rule("names = ['a{b}']"):                             "7:10: ",
		rule("max-parked = -1"):                              "7:14: max-parked is a whole number",
		rule("max-parked = 1.5"):                             "7:14: max-parked is a whole number",
		rule("max-parked = '4'"):                             "7:14: max-parked is a whole number",
		rule("max-parked = 99999999999999999999"):            "7:",
		rule("rate = 20"):                                    "7:8: a string",
		rule("rate = '20'"):                                  "7:8: the rate \"20\" is not like",
		rule("rate = '0/1s'"):                                "7:8: the rate",
		rule("rate = '20/0s'"):                               "7:8: the rate",
		rule("rate = '20/25h'"):                              "7:8: the rate",
		rule("rate = '20/1d'"):                               "7:8: the rate",
		rule("rate = '20/s'"):                                "",
		rule("rate = 'any'"):                                 "",
		rule("delegate = ['qemu/{vm}']"):                     "7:13: ",
		rule("delegate = ['qemu/**']"):                       "there is no **",
		rule("delegate = [\"/a\\\\x2d*.scope\"]"):            "7:13: write \"/a\\\\x2d*.scope\" in single quotes",
		rule("owner = '/vmm.service'"):                       "7:9: the owner \"/vmm.service\": it begins with /",
		rule("owner = 'uid/0'"):                              "7:9: the owner \"uid/0\": uid/… is for",
		rule("owner = 'uid'"):                                "7:9: ",
		rule("owner = '{x}/y'"):                              "which must be fixed",
		rule("owner = 'x{x}'"):                               "which must be fixed",
		rule("owner = 'a/{x}'"):                              "7:1: {x} isn't in the cgroup /system.slice/x.service",
		rule("owner = 'a/*'"):                                "leaves open whose",
		rule("owner = 'a//b'"):                               "7:9: ",
		rule("owner = 'a/'"):                                 "7:9: ",
		rule("owner = 'a/..'"):                               "7:9: ",
		rule("owner = 'a b'"):                                "7:9: ",
		rule("owner = ''"):                                   "7:9: ",
		rule("owner = 'a/" + strings.Repeat("b", 255) + "'"): "the most are 255",
		rule("allow = false\nrate = '1/s'\nnames = ['a']"):   "8:1: rate means nothing where",

		cgroup(`'system.slice/x.service'`):             "4:10: \"system.slice/x.service\": it must begin with /",
		cgroup(`''`):                                   "4:10: \"\": it is empty",
		cgroup(`'/'`):                                  "an empty component",
		cgroup(`'/a//b'`):                              "an empty component",
		cgroup(`'/a/b/'`):                              "an empty component",
		cgroup(`'/a/../b'`):                            "one of dots only",
		cgroup(`'/a/**/b.service'`):                    "there is no **",
		cgroup(`'/a/b?.service'`):                      "has a character that can't be in it",
		cgroup(`'/a/[ab].service'`):                    "has a character that can't be in it",
		cgroup(`'/a/b c.service'`):                     "has a character that can't be in it",
		cgroup(`'/a/b}.service'`):                      "has a character that can't be in it",
		cgroup(`'/a/{b.service'`):                      "no closing }",
		cgroup(`'/a/{}.service'`):                      "the name of a part",
		cgroup(`'/a/{B}.service'`):                     "the name of a part",
		cgroup(`'/a/{b:escaped}.service'`):             "only :unescaped",
		cgroup(`'/a/{b}/{b}.service'`):                 "{b} is there twice",
		cgroup(`'/a/*-{b}.service'`):                   "* and {b} are in one component, so what each takes is open to choice; write # where a number is",
		cgroup(`'/a/{c}-{b}.service'`):                 "{c} and {b} are in one component",
		cgroup(`'/a/#{b}.service'`):                    "# stands beside",
		cgroup(`'/a/{b}#.service'`):                    "# stands beside",
		cgroup(`'/a/#1-{b}.service'`):                  "# stands beside",
		cgroup(`'/a/x1#-{b}.service'`):                 "# stands beside",
		cgroup(`'/a/*-#-*.service'`):                   "",
		cgroup(`'/*/{a}/{b}-#.service'`):               "",
		cgroup(`'/` + strings.Repeat("a", 1024) + `'`): "the most are 1024",
		cgroup(`"/a/b\\x2dc.service"`):                 "4:10: write \"/a/b\\\\x2dc.service\" in single quotes",
		cgroup(`"/a/b\x2dc.service"`):                  "in single quotes",
		cgroup(`['/a.service', 7]`):                    "4:25: a string",
		cgroup(`[]`):                                   "4:1: the list cgroup must have",
		cgroup(`7`):                                    "4:10: a string",
		"[[rule]]\nname = 'x'\nuid = 0\ncgroup = '/system.slice/vmm'":          "4:1: /system.slice/vmm names no unit",
		"[[rule]]\nname = 'x'\nuid = 0\ncgroup = '/system.slice/*.timer'":      "names no unit",
		"[[rule]]\nname = 'x'\nuid = 0\ncgroup = 'any'\nowner = 'a/{b}'":       "5:1: {b} isn't known",
		"[[rule]]\nname = 'built-in'\nuid = 0\ncgroup = 'any'":                 "2:8: \"built-in\" is the name of a rule",
		"[[rule]]\nname = 'a b'\nuid = 0\ncgroup = 'any'":                      "2:8: \"a b\" can't be a rule's name",
		"[[rule]]\nname = 1\nuid = 0\ncgroup = 'any'":                          "2:8: a string",
		"[[rule]]\nname = 'x'\nuid = -1\ncgroup = 'any'":                       "3:7: ",
		"[[rule]]\nname = 'x'\nuid = 4294967295\ncgroup = 'any'":               "3:7: 4294967295 is not a uid",
		"[[rule]]\nname = 'x'\nuid = '5-1'\ncgroup = 'any'":                    "3:7: the range 5-1",
		"[[rule]]\nname = 'x'\nuid = 'no-such-user-'\ncgroup = 'any'":          `3:7: there is no user "no-such-user-"`,
		"[[rule]]\nname = 'x'\nuid = true\ncgroup = 'any'":                     "3:7: a uid is a number",
		"[[rule]]\nname = 'x'\nuid = ['root', '7', '8-9', 10]\ncgroup = 'any'": "",
		rule("") + rule(""):            `10:1: there is a rule "x" already, at `,
		strings.Repeat("#", maxFile+1): "it has 65537 bytes",
	} {
		_, err := Load(dir(t, map[string]string{"x.toml": text}))
		if want != "" && digit(want[0]) {
			want = "x.toml:" + want
		}
		var problems Problems
		switch {
		case want == "" && err != nil:
			t.Errorf("%s\n%v", text, err)
		case want != "" && (!errors.As(err, &problems) || !strings.Contains(err.Error(), want)):
			t.Errorf("%.300s\n%v\nwant %s", text, err, want)
		}
	}
}

// TestAllProblems: an operator sees everything at once, in order.
func TestAllProblems(t *testing.T) {
	dir := dir(t, map[string]string{
		"20.toml": "[[rule]]\nname = 'b'\nuid = 'nobody-has-this-name'\ncgroup = 'x'\nfoo = 1\nallow = 'x'\n",
		"10.toml": "[[rule]]\nname = 'b'\n",
		"30.toml": "=\n",
	})
	_, err := Load(dir)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, fmt.Sprintf("%s:%d:%d", filepath.Base(p.File), p.Line, p.Column))
	}
	if want := []string{"10.toml:1:3", "10.toml:1:3", "20.toml:1:1", "20.toml:3:7", "20.toml:4:10", "20.toml:5:1", "20.toml:6:9", "30.toml:1:1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v; %v", got, want, err)
	}
}

func allowing(name, unit string) string {
	return fmt.Sprintf("[[rule]]\nname = '%s'\ncgroup = '/system.slice/%s.service'\nuid = 7\n", name, unit)
}

func TestMasking(t *testing.T) {
	etc := dir(t, map[string]string{
		"10-a.toml": allowing("etc-a", "a"), "30-c.toml": "", "50-e.toml": allowing("etc-e", "e"), "README": "=", ".x.toml": "=", "x.toml~": "=",
	})
	usr := dir(t, map[string]string{
		"10-a.toml": "= masked", "20-b.toml": allowing("usr-b", "b"), "30-c.toml": allowing("usr-c", "c"),
		"40-d.toml": allowing("usr-d", "d"), "60-e.toml": allowing("usr-e", "e"),
	})
	if err := os.Symlink("/dev/null", filepath.Join(etc, "40-d.toml")); err != nil {
		t.Fatal(err)
	}
	p, err := Load(etc, filepath.Join(etc, "none"), usr)
	if err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]string{"a": "etc-a /a.service", "b": "usr-b /b.service", "c": "denied by built-in", "d": "denied by built-in", "e": "etc-e /e.service"} {
		if got := decided(t, p, "/system.slice/"+unit+".service", 7); got != want {
			t.Errorf("%s: %s, want %s", unit, got, want)
		}
	}
	if p.Rules() != 4 || p.Broken() != "" {
		t.Errorf("%d rules, broken %q", p.Rules(), p.Broken())
	}
}

// TestBrokenFileDenies what it would decide, and nothing else.
func TestBrokenFileDenies(t *testing.T) {
	d := dir(t, map[string]string{"10.toml": allowing("a", "a"), "20.toml": allowing("b", "b") + "typo = 1\n", "30.toml": allowing("c", "c")})
	p, err := Load(d)
	if err == nil || p.Broken() != filepath.Join(d, "20.toml") {
		t.Fatalf("%v, broken: %q", err, p.Broken())
	}
	for _, c := range []struct {
		unit string
		uid  uint32
		want string
	}{{"a", 7, "a /a.service"}, {"b", 7, "denied by broken-file"}, {"c", 7, "denied by broken-file"}, {"vmm", 0, "denied by broken-file"}} {
		if got := decided(t, p, "/system.slice/"+c.unit+".service", c.uid); got != c.want {
			t.Errorf("%s: %s, want %s", c.unit, got, c.want)
		}
	}
	if owner, err := p.Owner(identity("/system.slice/vmm.service", 0)); owner != "" || err == nil {
		t.Errorf("the owner can't be known, but is %q", owner)
	}
}

func TestUntrustedFiles(t *testing.T) {
	const good = "[[rule]]\nname = 'x'\ncgroup = 'any'\nuid = 7\n"
	for name, spoil := range map[string]func(dir, file string) error{
		"writable by others":  func(_, file string) error { return os.Chmod(file, 0o646) },
		"writable by a group": func(_, file string) error { return os.Chmod(file, 0o664) },
		"directory writable":  func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"a stranger's": func(_, file string) error {
			if os.Geteuid() != 0 {
				t.Log("giving files away needs root")
				return os.Chmod(file, 0o666)
			}
			return os.Chown(file, 12345, 0)
		},
		"a pipe": func(_, file string) error {
			os.Remove(file)
			return mkfifo(file)
		},
		"a directory": func(_, file string) error { os.Remove(file); return os.Mkdir(file, 0o755) },
		"dangling":    func(_, file string) error { os.Remove(file); return os.Symlink("/nonexistent", file) },
	} {
		d := dir(t, map[string]string{"x.toml": good})
		if err := spoil(d, filepath.Join(d, "x.toml")); err != nil {
			t.Fatal(err)
		}
		p, err := Load(d)
		if err == nil || p.Broken() == "" {
			t.Errorf("%s: was taken", name)
			continue
		}
		if got := decided(t, p, "/system.slice/vmm.service", 0); got != "denied by broken-file" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestCheckOwner(t *testing.T) {
	for owner, want := range map[string]bool{
		"/vmm.service": true, "/user@1.service/a.scope": true, "qemu/vm1": true, "uid/0": true, `a/b\x2dc`: true, "a": true,
		"": false, "/": false, "/vmm": false, "vmm.service/": false, "/a.service/": false, "//a.service": false, "/x.slice/a.service": false,
		"/_a.service": false, "a//b": false, "a/../b": false, "a b": false, "a\n": false, "qemu/*": false, "/../a.service": false,
		strings.Repeat("a", 256): false, "/" + strings.Repeat("a.service/", 500): false,
	} {
		if err := CheckOwner(owner); (err == nil) != want {
			t.Errorf("%q: %v", owner, err)
		}
	}
}

// FuzzPattern: what a pattern matches it matches in one way, as a whole, and a * never takes a /.
func FuzzPattern(f *testing.F) {
	f.Add(`/machine.slice/machine-qemu\x2d#\x2d{vm:unescaped}.scope`, `/machine.slice/machine-qemu\x2d3\x2dmy\x2dvm.scope`)
	f.Add("/a/*-#-*.service", "/a/x-1-2.service")
	f.Add("/docker/{id}", "/docker/0123")
	f.Add("/*/{a}-#.scope", "/x/1-1-1.scope")
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := parsePattern(text)
		if err != nil {
			return
		}
		taken, ok := p.match(path)
		if !ok {
			return
		}
		if strings.Count(path, "/") != strings.Count(text, "/") {
			t.Errorf("%q matches %q", text, path)
		}
		if _, ok := p.match(path + "/x"); ok {
			t.Errorf("%q matches more than %q", text, path)
		}
		// With what the captures took written out, greedy or not makes no difference.
		p.regexp.Longest()
		again := p.regexp.FindStringSubmatch(path)
		for i := range taken {
			if again[i+1] != taken[i] {
				t.Errorf("%q takes %q or %q of %q", text, taken, again[1:], path)
			}
			if strings.Contains(taken[i], "/") {
				t.Errorf("%q takes %q of %q", text, taken, path)
			}
		}
	})
}

// FuzzLoad: no file brings the loader down; what has problems denies, and what has none never gives away another's.
func FuzzLoad(f *testing.F) {
	f.Add(host, "/system.slice/vmm.service", uint32(0))
	f.Add("[[rule]]\nname='x'\ncgroup='any'\nuid='any'\nowner='a/b'", "/docker/1/system.slice/vmm.service", uint32(5))
	f.Add("[[rule]]\nname='x'\ncgroup='/*/{a}.service'\nuid=0\nowner='a/{a}'", "/x/y.service", uint32(0))
	f.Add("rule=[[[[{a={b=1}}]]]]", "/", uint32(1))
	f.Fuzz(func(t *testing.T, text, cgroup string, uid uint32) {
		l := newLoading()
		l.add("x.toml", []byte(text))
		p, err := l.result()
		if (err != nil) != (p.Broken() != "") {
			t.Fatalf("%v, broken: %q", err, p.Broken())
		}
		id := peer.Identity{UID: uid, Cgroup: cgroup, Owner: peer.Owner(cgroup)}
		grant, denied := p.Allow(id)
		switch {
		case denied != nil && grant != (Grant{}):
			t.Errorf("%v, and %+v", denied, grant)
		case denied == nil && err != nil:
			t.Errorf("allowed by a broken file: %+v", grant)
		case denied == nil && grant.Owner != id.Owner && CheckOwner(grant.Owner) != nil:
			t.Errorf("owner %q", grant.Owner)
		case denied == nil && strings.HasPrefix(grant.Owner, "uid/"):
			t.Errorf("owner %q", grant.Owner)
		}
	})
}
