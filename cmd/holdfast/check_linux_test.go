// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-project/holdfast/internal/check"
	"github.com/holdfast-project/holdfast/internal/kimage/kimagetest"
	"github.com/holdfast-project/holdfast/liveupdate"
	"github.com/holdfast-project/holdfast/luosim"
)

// image is a file with these bytes.
func image(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func bzImage(t *testing.T, formats ...string) string { return image(t, kimagetest.BzImage(formats...)) }

func findingsOf(t *testing.T, r result) map[string]check.Finding {
	t.Helper()
	var answer struct{ Findings []check.Finding }
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil || len(answer.Findings) == 0 {
		t.Fatalf("%+v: %v", r, err)
	}
	found := map[string]check.Finding{}
	for _, f := range answer.Findings {
		if _, worse := found[f.ID]; !worse { // errors come first
			found[f.ID] = f
		}
	}
	return found
}

// TestLoad loads and drops kernels on an emulated machine, which takes any file for one.
func TestLoad(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		good, noLUO := bzImage(t, kimagetest.Formats...), bzImage(t, "kho-v4", "memfd-v2")
		if r := tool(t, nowhere, "unload"); r != (result{0, "no kernel was loaded\n", ""}) {
			t.Errorf("%+v", r)
		}
		r := tool(t, nowhere, "load", good, "--cmdline", "root=/dev/vda -- single")
		if r.status != 0 || !strings.Contains(r.stdout, "loaded "+good+"\ncommand line: root=/dev/vda kho=on liveupdate=on -- single\nadded: kho=on liveupdate=on\n") {
			t.Errorf("%+v", r)
		}
		r = tool(t, nowhere, "load", good, "--json", "--cmdline", "root=/dev/vda kho=on liveupdate=on")
		var done loadedJSON
		if err := json.Unmarshal([]byte(r.stdout), &done); err != nil || r.status != 0 || !done.Replaced || len(done.Added) != 0 || done.CommandLine != "root=/dev/vda kho=on liveupdate=on" {
			t.Errorf("%+v", r)
		}
		// A refusal leaves what is loaded alone.
		r = tool(t, nowhere, "load", noLUO, "--cmdline", "root=/dev/vda")
		r.failed(t, 3, noLUO+" was not loaded: next-luo: ")
		r.failed(t, 3, "--force")
		r.failed(t, 3, "the kernel that was loaded before still is")
		if _, s := statusOf(t, nowhere); !*s.Kernel.KexecLoaded {
			t.Error("nothing is loaded any more")
		}
		if r := tool(t, nowhere, "unload"); r != (result{0, "unloaded the next kernel\n", ""}) {
			t.Errorf("%+v", r)
		}
		if _, s := statusOf(t, nowhere); *s.Kernel.KexecLoaded {
			t.Error("it is still loaded")
		}
		if r := tool(t, nowhere, "load", noLUO, "--force", "--cmdline", "root=/dev/vda"); r.status != 0 || !strings.Contains(r.stdout, "error: next-luo: ") {
			t.Errorf("%+v", r)
		}
		// A unified image brings its command line along.
		uki := image(t, kimagetest.UKI(".linux", string(kimagetest.BzImage(kimagetest.Formats...)), ".cmdline", "root=/dev/vdb"))
		if r := tool(t, nowhere, "load", uki); r.status != 0 || !strings.Contains(r.stdout, "\ncommand line: root=/dev/vdb kho=on liveupdate=on\n") {
			t.Errorf("%+v", r)
		}
		tool(t, nowhere, "unload")
		if r := tool(t, nowhere, "load", noLUO, "--cmdline", "root=/dev/vda"); r.status != 3 || strings.Contains(r.stderr, "loaded before") {
			t.Errorf("%+v", r)
		}
		tool(t, nowhere, "load", filepath.Dir(good)).failed(t, 1, "no regular file")
		tool(t, nowhere, "load", good+"-none").failed(t, 1, "no such file")
		tool(t, nowhere, "load", good, "--initrd", good+"-none").failed(t, 1, "no such file")
		tool(t, nowhere, "load", "--entry", "holdfast-has-no-such-entry").failed(t, 1, "boot entr")
	})
}

// TestEntryLine: an image that is given no options takes its own, if it has any.
func TestEntryLine(t *testing.T) {
	uki, plain := kimagetest.UKI(".linux", "x", ".cmdline", "root=/dev/vdb"), kimagetest.BzImage()
	for _, test := range []struct {
		image         []byte
		options, want string
	}{{uki, "", "its own"}, {uki, "quiet", "quiet"}, {plain, "", ""}, {plain, "quiet", "quiet"}} {
		f, err := os.Open(image(t, test.image))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := entryLine(f, test.options)
		if err != nil || (got == nil) != (test.want == "its own") || got != nil && *got != test.want {
			t.Errorf("%q: %v, %v; want %q", test.options, got, err, test.want)
		}
	}
}

// TestCheck looks at kernels, good and bad, on an emulated machine. What else is wrong with the machine is another matter.
func TestCheck(t *testing.T) {
	luosim.Run(t, luosim.Machine{}, func(t *testing.T) {
		const line = "root=/dev/vda kho=on liveupdate=on"
		good := bzImage(t, kimagetest.Formats...)
		whole := kimagetest.BzImage(kimagetest.Formats...)
		uki := func(line string) string {
			return image(t, kimagetest.UKI(".linux", string(whole), ".initrd", "not an initrd", ".cmdline", line))
		}
		for _, test := range []struct{ what, kernel, cmdline, wrong string }{
			{"good", good, line, ""},
			{"no LUO", bzImage(t, "kho-v4", "memfd-v2"), line, "next-luo"},
			{"no KHO", bzImage(t, "luo-v5", "memfd-v2"), line, "next-kho"},
			{"cut off", image(t, whole[:len(whole)-100]), line, "next-kernel"},
			{"a UKI with a bad initrd", uki(line), "", "next-initrd"},
			{"no liveupdate=on", good, "root=/dev/vda kho=on", "next-cmdline"},
		} {
			args := []string{"check", "--json", test.kernel}
			if test.cmdline != "" {
				args = append(args, "--cmdline", test.cmdline)
			}
			r := tool(t, nowhere, args...)
			for id, f := range findingsOf(t, r) {
				if strings.HasPrefix(id, "next-") && (f.Severity == check.Error) != (id == test.wrong) {
					t.Errorf("%s: %+v", test.what, f)
				}
			}
			if test.wrong != "" {
				r.failed(t, 3, "an update would be refused")
			}
		}
		r := tool(t, nowhere, "check", good, "--cmdline", "root=/dev/vda kho=on")
		if r.status != 3 || !strings.HasPrefix(r.stdout, "error ") || !strings.Contains(r.stdout, "-> add it; holdfast load does\n") || strings.Contains(r.stdout, "\x1b") {
			t.Errorf("%+v", r)
		}

		s, err := liveupdate.Device{}.Create(t.Context(), "foreign")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r = tool(t, nowhere, "check", "--json")
		if f := findingsOf(t, r)["uncommitted"]; f.Severity == check.OK || !strings.Contains(f.Text, `"foreign"`) {
			t.Errorf("a session that only a process holds: %+v", f)
		}
	})
}
