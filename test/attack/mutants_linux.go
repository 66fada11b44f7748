// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// A mutant is a holdfastd without one check, or with another unit.
type mutant struct {
	name  string
	edits []edit
}

// edit is a change of a file of the source. The text must be there exactly once.
type edit struct{ file, from, to string }

const (
	asking       = "internal/orchestrator/asking_linux.go"
	orchestrator = "internal/orchestrator/orchestrator_linux.go"
	places       = "internal/places/places.go"
	parking      = "internal/orchestrator/parking_linux.go"
	custody      = "internal/custody/custody_linux.go"
	fdstore      = "internal/custody/fdstore_linux.go"
	service      = "packaging/systemd/holdfastd.service"
	peer         = "internal/peer/peer_linux.go"
	pattern      = "internal/policy/pattern.go"
	policy       = "internal/policy/policy.go"
	connection   = "internal/varlink/connection.go"
	server       = "internal/varlink/server.go"
	wire         = "internal/varlink/wire.go"
)

var mutants = []mutant{
	// Whose a session is.
	{"one-digest", []edit{{"internal/name/name.go", "[]byte(domain + owner)", "[]byte(domain)"}}},
	{"raw-names", []edit{{"internal/name/name.go", `	return version + Digest(owner) + "." + name`,
		`	if _, _, ok := Parse(name); ok {
		return name
	}
	return version + Digest(owner) + "." + name`}}},
	{"innermost-unit", []edit{{"internal/peer/owner.go", "		owner.WriteByte('/')", "		owner.Reset()\n		owner.WriteByte('/')"}}},
	{"any-place", []edit{{policy, `if !strings.HasSuffix(component, ".slice") {`, "if false {"}}},
	{"the-dead", []edit{{peer, "		if err := alive(pidfd); err != nil {\n			return err", "		if err := alive(pidfd); false {\n			return err"}}},
	{"uid-of-now", []edit{{peer, "uid: cred.Uid,", "uid: cred.Uid, uidOfNow: true,"}}},
	{"subject-of-anything", []edit{{"internal/peer/pidfd_linux.go", "if err := pidfd.Use(isPIDFD); err != nil {", "if err := pidfd.Use(isPIDFD); false {"}}},

	// May it.
	{"no-policy", []edit{{policy, "if v.err = builtIn(id); v.err == nil {", "if v.err = builtIn(id); true {\n		v.err = nil"}}},
	{"any-uid", []edit{{policy, "case id.UID != 0:", "case false:"}}},
	{"part-of-a-path", []edit{{pattern, "whole.WriteString(`\\A`)", "whole.WriteString(`.*`)"}}},
	{"escaped-without-need", []edit{{pattern, " || plainInUnits(b) {", " {"}}},
	{"capital-escapes", []edit{{pattern, "escaped[i:min(i+4, len(escaped))] != fmt.Sprintf(`\\x%02x`, b) || ", ""}}},
	{"not-escaped", []edit{{pattern, "case plainInUnits(c):", "default:\n			plain.WriteByte(c)\n		case false:"},
		{pattern, "		default: // ", "		case c == 0: // "}}},
	{"slash-in-a-capture", []edit{{pattern, "if !ownerComponent.MatchString(value) || ", "if "}}},
	{"any-name", []edit{{asking, "return who.grant.CheckName(n)", "return nil"}}},
	{"act-for-anybody", []edit{{asking, "if !who.grant.MayActFor(owner) {", "if false {"}}},
	{"anybody-parks", []edit{{parking, "digest != name.Digest(who.owner) {", "digest == \"\" {"}}},
	{"anybody-sees-all", []edit{{parking, "if err == nil && !yes {", "if err == nil && yes {"}}},
	{"containers-administer", []edit{{"internal/peer/privilege_linux.go", "return capable && pids == 1", "return capable && pids > 0"}}},
	{"list-of-all", []edit{{parking, "if !mine && !all {", "if false {"}}},
	{"everybodys", []edit{{orchestrator, `if ok && who.owner != "" && digest == name.Digest(who.owner) {`, `if ok && digest != "" {`}}},

	// How much.
	{"no-quota", []edit{{custody, "limit >= 0 && n > limit:", "limit < 0 && n > limit:"}}},
	{"quota-of-what-is-done", []edit{{custody, "		names[n] = other\n", "		_, _ = n, other\n"}}},
	{"no-share", []edit{{fdstore, "if room.Owned > share || room.OwnedNames > shareNames {", "if false {"}}},
	{"no-rate", []edit{{asking, "	if wait > 0 {", "	if wait < 0 {"}}},
	{"inner-units-count", []edit{{places, "Place{Name: peer.Outermost(id.Cgroup),", "Place{Name: id.Owner,"},
		{places, `strings.CutPrefix(id.Cgroup, "/user.slice/"); below {`, `strings.CutPrefix(id.Cgroup, "/user.slice/"); below && rest == "" {`}}},
	{"any-number-of-connections", []edit{{places, " || !p.Root && (full(c.from[p], PerUser) || full(c.among[p.Among], p.all()) || full(c.users, OfUsers))", ""}}},
	{"one-connection-at-a-time", []edit{{server, "	go func() {\n		defer v.remove(c)\n		c.serve(calls)\n	}()", "	func() {\n		defer v.remove(c)\n		c.serve(calls)\n	}()"}}},
	{"descriptors-stay", []edit{{connection, "		c.closing.close(call.fds)\n", ""}}},
	{"few-descriptors", []edit{{service, "LimitNOFILE=1048576", "LimitNOFILE=65536"}}},
	{"long-messages", []edit{{server, "cmp.Or(s.MaxMessage, 64<<10)", "cmp.Or(s.MaxMessage, 64<<20)"}}},
	{"slow-messages", []edit{{wire, "if w.end > w.start && w.messageTime > 0 && !w.timed {", "if false {"}}},

	// What comes with it.
	{"any-file", []edit{{parking, "if !custody.IsMemory(taken) {", "if false {"}}},
	{"paths-too", []edit{{custody, " || flags&unix.O_PATH != 0 {", " || flags < 0 {"}}},
	{"a-file-once", []edit{{fdstore, "if has.files[key] && key.regular {", "if false {"}}},
	{"waits-for-a-lease", []edit{{fdstore, "|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)", "|unix.O_CLOEXEC, 0)"}}},
	{"one-fails-all-fail", []edit{{fdstore, "			if r.err = s.send(has, i); r.err != nil {\n				break\n", "			if err := s.send(has, i); err != nil {\n				return err\n"}}},
	{"any-file-name", []edit{{parking, "if name.Check(f.Name, custody.FileNameMax) != nil || names[f.Name] {", "if names[f.Name] {"}}},
	{"any-session", []edit{{"liveupdate/session_linux.go", "if fs.Type != unix.ANON_INODE_FS_MAGIC {", "if false {"}}},
}

// apply makes the edits in the text of a file.
func (e edit) apply(source string) (string, error) {
	if n := strings.Count(source, e.from); n != 1 {
		return "", fmt.Errorf("%s has %d times what is to be changed, and must have it once:\n%s", e.file, n, e.from)
	}
	return strings.Replace(source, e.from, e.to, 1), nil
}

// overlay has each file that a mutant changes, with its changed text.
func (m mutant) overlay(root string) (map[string]string, error) {
	changed := map[string]string{}
	for _, e := range m.edits {
		path := filepath.Join(root, e.file)
		source, ok := changed[path]
		if !ok {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("mutant %s: %w", m.name, err)
			}
			source = string(data)
		}
		var err error
		if changed[path], err = e.apply(source); err != nil {
			return nil, fmt.Errorf("mutant %s: %w", m.name, err)
		}
	}
	return changed, nil
}

// buildMutants builds all of them into a directory, under their names.
func buildMutants(dir string) error {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "attack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var mu sync.Mutex
	var failed error
	var all sync.WaitGroup
	places := make(chan struct{}, 2)
	for _, m := range mutants {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			if err := m.build(root, tmp, filepath.Join(dir, m.name)); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return failed
}

func (m mutant) build(root, tmp, out string) error {
	changed, err := m.overlay(root)
	if err != nil {
		return err
	}
	if text, changed := changed[filepath.Join(root, service)]; changed {
		return os.WriteFile(out+".service", []byte(text), 0o644)
	}
	replace := map[string]string{}
	for path, text := range changed {
		file := filepath.Join(tmp, fmt.Sprintf("%s-%d.go", m.name, len(replace)))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		replace[path] = file
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlay := filepath.Join(tmp, m.name+".json")
	if err := os.WriteFile(overlay, data, 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-overlay", overlay, "-o", out, "./cmd/holdfastd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mutant %s: go build: %w\n%s", m.name, err, text)
	}
	return nil
}
