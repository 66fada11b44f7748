// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-project/holdfast/internal/policy"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// policyDir has files, by name.
func policyDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "policy.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const vms = `[[rule]]
name = "vms"
cgroup = '/machine.slice/machine-qemu\x2d#\x2d{vm}.scope'
uid = "100-200"
owner = "qemu/{vm}"
names = ["ram", "disk-*"]
max-parked = 4
rate = "20/1m"
`

func TestPolicyCheck(t *testing.T) {
	good := policyDir(t, map[string]string{"50-vms.toml": vms})
	bad := policyDir(t, map[string]string{"50-vms.toml": "= masked", "60-b.toml": vms + "typo = 1\n", "70-c.toml": "[[rule]\n"})
	b, c := filepath.Join(bad, "60-b.toml"), filepath.Join(bad, "70-c.toml")

	if r := tool(t, nowhere, "policy", "check", good); r.status != 0 || r.stdout != "1 file and 1 rule, nothing wrong\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	r := tool(t, nowhere, "policy", "check", good, bad)
	r.failed(t, 1, "problems in the policy")
	lines := strings.Split(r.stdout, "\n")
	// The same rule is there twice, now that both directories count.
	if len(lines) != 4 || !strings.HasPrefix(lines[0], b+":1:1: there is a rule \"vms\" already") || !strings.HasPrefix(lines[1], b+`:9:1: "typo" is unknown`) || !strings.HasPrefix(lines[2], c+":1:7: ") {
		t.Errorf("%+v", r)
	}
	r = tool(t, nowhere, "policy", "check", "--json", b)
	var out struct {
		OK       *bool
		Files    []string
		Rules    *int
		Problems []policy.Problem
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.status != 1 {
		t.Fatalf("%+v: %v", r, err)
	}
	if out.OK == nil || *out.OK || out.Rules == nil || len(out.Files) != 1 || len(out.Problems) != 1 ||
		out.Problems[0].File != b || out.Problems[0].Line != 9 || out.Problems[0].Column != 1 || out.Problems[0].What == "" {
		t.Errorf("%s", r.stdout)
	}
	tool(t, nowhere, "policy", "check", bad+"/none").failed(t, 1, "no such file")
	// A file that isn't installed yet may be anybody's.
	draft := filepath.Join(t.TempDir(), "draft")
	write(t, draft, vms)
	if err := os.Chmod(draft, 0o666); err != nil {
		t.Fatal(err)
	}
	if r := tool(t, nowhere, "policy", "check", draft); r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// TestExamplePolicies: what the documents and packages show is right.
func TestExamplePolicies(t *testing.T) {
	if r := tool(t, nowhere, "policy", "check", "../../packaging/policy/example.toml"); r.status != 0 || strings.Contains(r.stdout, " 0 rules") {
		t.Errorf("the packaged example: %+v", r)
	}
	help := tool(t, nowhere, "policy", "--help").stdout
	_, rest, _ := strings.Cut(help, "\n  [[rule]]\n")
	shown, rest, _ := strings.Cut(rest, "\n\nand may have, besides,\n\n")
	more, _, ok := strings.Cut(rest, "  allow ")
	if !ok {
		t.Fatalf("the help has another form:\n%s", help)
	}
	file := filepath.Join(t.TempDir(), "help.toml")
	write(t, file, "[[rule]]\n"+strings.Replace(shown, `"libvirt-qemu"`, `"root"`, 1)+"\n"+more)
	if r := tool(t, nowhere, "policy", "check", file); r.status != 0 {
		t.Errorf("the help's example: %+v", r)
	}
}

type explainedJSON struct {
	Allowed                     *bool
	Reason, Rule, Owner, Cgroup string
	From, Rate                  string
	UID, MaxParked              *int
	Names                       []string
	Steps                       []policy.Step
}

func TestPolicyExplain(t *testing.T) {
	dir := policyDir(t, map[string]string{"50-vms.toml": vms})
	explain := func(args ...string) (result, explainedJSON) {
		t.Helper()
		r := tool(t, nowhere, append([]string{"policy", "explain", "--json", "--policy", dir}, args...)...)
		var e explainedJSON
		if err := json.Unmarshal([]byte(r.stdout), &e); err != nil || e.Allowed == nil || e.UID == nil || len(e.Steps) == 0 || *e.Allowed != (r.status == 0) {
			t.Fatalf("%v: %+v, %v", args, r, err)
		}
		return r, e
	}
	const scope = `/machine.slice/machine-qemu\x2d3\x2dvm1.scope`
	if _, e := explain("--cgroup", scope+"/sub", "--uid", "107", "ram"); !*e.Allowed || e.Rule != "vms" || e.Owner != "qemu/vm1" || *e.UID != 107 || *e.MaxParked != 4 || e.Rate != "20/1m" || len(e.Names) != 2 {
		t.Errorf("%+v", e)
	}
	r, e := explain("--cgroup", scope, "--uid", "107", "rom")
	if *e.Allowed || e.Rule != "vms" {
		t.Errorf("%+v", e)
	}
	r.failed(t, 1, `the name "rom" is none of those`)
	r, e = explain("--cgroup", scope)
	r.failed(t, 1, "is a scope")
	if e.Rule != policy.BuiltIn || len(e.Steps) != 2 || e.Steps[0].At != filepath.Join(dir, "50-vms.toml")+":1" || e.Steps[0].Decides || !strings.Contains(e.Steps[0].Why, "uid 0 is not 100-200") {
		t.Errorf("%+v", e)
	}
	// Itself: this test is anywhere, but its uid is known.
	if _, e := explain("--pid", fmt.Sprint(os.Getpid())); *e.UID != os.Geteuid() || !strings.Contains(e.From, fmt.Sprint(os.Getpid())) || e.Cgroup == "" {
		t.Errorf("%+v", e)
	}
	tool(t, nowhere, "policy", "explain", "--pid", "2147483647").failed(t, 1, "there is no process 2147483647")
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		if _, e := explain("--unit", "vmm.service"); !*e.Allowed || e.Cgroup != "/system.slice/vmm.service" || !strings.Contains(e.From, "guess") {
			t.Errorf("%+v", e)
		}
	}
	plain := tool(t, nowhere, "policy", "explain", "--policy", dir, "--cgroup", "/system.slice/vmm.service")
	for _, line := range []string{"cgroup     /system.slice/vmm.service (as given)\n", "rule       vms (" + dir + "/50-vms.toml:1) does not match: ", "rule       built-in decides: ", "owner      /vmm.service\n", "sessions   can be had\n"} {
		if !strings.Contains(plain.stdout, line) || plain.status != 0 {
			t.Errorf("%q isn't in %+v", line, plain)
		}
	}
}

// What is known of sessions that nobody claims is said of the owner, whatever its rule.
func TestExplainUnclaimed(t *testing.T) {
	dir := policyDir(t, map[string]string{"x.toml": "reclaim-within = '90m'\n[[rule]]\nname = 'kept'\ncgroup = '/system.slice/vmm.service'\nuid = 0\nrelease-unclaimed-after = '7d'\n"})
	for cgroup, want := range map[string]string{
		"/system.slice/vmm.service": "reclaim     within 90m of an update\nunclaimed   released 7d after the kernel's start\n",
		"/system.slice/x.service":   "reclaim    within 90m of an update\nsessions ",
	} {
		if r := tool(t, nowhere, "policy", "explain", "--policy", dir, "--cgroup", cgroup); r.status != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("%q isn't in %+v", want, r)
		}
	}
	var e struct{ ReclaimWithin, ReleaseUnclaimedAfter string }
	r := tool(t, nowhere, "policy", "explain", "--policy", dir, "--cgroup", "/system.slice/vmm.service", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &e); err != nil || e.ReclaimWithin != "90m" || e.ReleaseUnclaimedAfter != "7d" {
		t.Errorf("%v: %+v", err, r)
	}
}

// TestReload: a good policy takes effect at a SIGHUP, a broken one doesn't and leaves the old one in place.
func TestReload(t *testing.T) {
	denyAll := "[[rule]]\nname = '%s'\ncgroup = 'any'\nuid = 'any'\nallow = false\n"
	dir := policyDir(t, map[string]string{"x.toml": fmt.Sprintf(denyAll, "one")})
	address, process, notify := runDaemon(t, "--policy", dir)
	rule := func() string {
		t.Helper()
		client, err := varlink.Dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = client.Call(t.Context(), "io.holdfast.Sessions.Acquire", map[string]string{"name": "x"}, nil, nil)
		refused, ok := err.(*varlink.Error)
		var parameters struct{ Rule string }
		if !ok || refused.Decode(&parameters) != nil || refused.Name != "io.holdfast.Sessions.NotPermitted" {
			t.Fatalf("Acquire: %v", err)
		}
		return parameters.Rule
	}
	reload := func() (status string) {
		t.Helper()
		if err := process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if said := told(t, notify); !strings.HasPrefix(said, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Fatalf("first it said %q", said)
		}
		said := told(t, notify)
		status, ok := strings.CutPrefix(said, "READY=1\nSTATUS=")
		if !ok || strings.Contains(status, "\n") {
			t.Fatalf("then it said %q", said)
		}
		return status
	}
	if got := rule(); got != "one" {
		t.Errorf("at first, %s decides", got)
	}
	file := filepath.Join(dir, "x.toml")
	write(t, file, fmt.Sprintf(denyAll, "two"))
	if status, got := reload(), rule(); got != "two" || status != "" {
		t.Errorf("after a reload, %s decides; status %q", got, status)
	}
	write(t, file, fmt.Sprintf(denyAll, "three")+"typo = 1\n")
	if status, got := reload(), rule(); got != "two" || !strings.Contains(status, "the old one stays") || !strings.Contains(status, file+":6:1: ") {
		t.Errorf("after a reload of a broken one, %s decides; status %q", got, status)
	}
	write(t, file, fmt.Sprintf(denyAll, "four"))
	if status, got := reload(), rule(); got != "four" || status != "" {
		t.Errorf("after a reload of a good one again, %s decides; status %q", got, status)
	}
}

// TestBrokenAtTheStart: the daemon serves, and denies.
func TestBrokenAtTheStart(t *testing.T) {
	dir := policyDir(t, map[string]string{"x.toml": "typo = 1\n"})
	address := startDaemon(t, "--policy", dir)
	client, err := varlink.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Call(t.Context(), "io.holdfast.Sessions.Acquire", map[string]string{"name": "x"}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "NotPermitted") || !strings.Contains(err.Error(), dir+"/x.toml is broken") {
		t.Errorf("%v", err)
	}
}
