// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const aReport = `{"version":1,"round":3,"began":"2026-11-23T17:00:00Z","from":{"release":"7.2.13","bootID":"a"},"to":{"release":"7.3.4","bootID":"b"},
 "clock":{"source":"counter","accuracyUSec":14},"spans":[{"name":"stop","beginUSec":0,"endUSec":2000000}],"participants":[],
 "owners":[{"owner":"/cache.service","blackout":{"name":"blackout","beginUSec":0,"endUSec":9000000},"sessions":[{"name":"ram","kernelName":"h1-x.ram","state":"reclaimed","backUSec":9000000}]}],
 "dropped":0}`

func runReport(t *testing.T, fetched string, err error, args ...string) (string, error) {
	t.Helper()
	cmd := reportCommand(func(context.Context) (json.RawMessage, error) { return json.RawMessage(fetched), err })
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestReportInEachForm(t *testing.T) {
	dir := t.TempDir()
	saved := filepath.Join(dir, "report.json")
	for form, want := range map[string]struct {
		args []string
		file string
		has  string
	}{
		"text":           {nil, "", "/cache.service  "},
		"JSON":           {[]string{"--json"}, "", `"blackout": {`},
		"HTML":           {[]string{"--html", filepath.Join(dir, "a.html")}, filepath.Join(dir, "a.html"), "<!DOCTYPE html>"},
		"HTML to stdout": {[]string{"--html", "-"}, "", "<!DOCTYPE html>"},
		"trace":          {[]string{"--trace", filepath.Join(dir, "a.json")}, filepath.Join(dir, "a.json"), `"traceEvents"`},
	} {
		out, err := runReport(t, aReport, nil, want.args...)
		if err != nil {
			t.Fatal(form, err)
		}
		if want.file != "" {
			if out != "" {
				t.Errorf("%s: printed %q", form, out)
			}
			data, err := os.ReadFile(want.file)
			if err != nil {
				t.Fatal(form, err)
			}
			out = string(data)
		}
		if !strings.Contains(out, want.has) || strings.Contains(out, "\x1b") {
			t.Errorf("%s: %q isn't in\n%s", form, want.has, out)
		}
		// What --json printed can be shown later, on another machine.
		if form == "JSON" {
			if err := os.WriteFile(saved, []byte(out), 0o600); err != nil {
				t.Fatal(err)
			}
			again, err := runReport(t, "", errors.New("nobody is to be asked"), "--json", "--input", saved)
			if err != nil || again != out {
				t.Errorf("from the file: %v\n%s", err, again)
			}
		}
	}
}

func TestReportThatCannotBeShown(t *testing.T) {
	for what, c := range map[string]struct {
		fetched string
		err     error
		args    []string
		want    string
	}{
		"none":              {"", errors.New("no update"), nil, "no update"},
		"a newer one":       {`{"version":2}`, nil, nil, "version 2"},
		"no JSON":           {"no JSON", nil, nil, "can't be read"},
		"no sessions":       {`{"version":1,"owners":[{"owner":"x"}]}`, nil, nil, "can't be read"},
		"no file":           {"", nil, []string{"--input", filepath.Join(t.TempDir(), "a")}, "no such file"},
		"no directory":      {aReport, nil, []string{"--html", filepath.Join(t.TempDir(), "a", "b.html")}, "no such file"},
		"two forms at once": {aReport, nil, []string{"--json", "--html", "-"}, "one of --json, --html and --trace"},
	} {
		if out, err := runReport(t, c.fetched, c.err, c.args...); err == nil || !strings.Contains(err.Error(), c.want) || out != "" {
			t.Errorf("%s: %v, printed %q", what, err, out)
		}
	}
}
