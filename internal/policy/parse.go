// SPDX-License-Identifier: MIT

package policy

import (
	"errors"
	"fmt"
	"maps"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Bounds of what is read. They are far above what a host needs.
const (
	maxFile  = 64 << 10 // bytes
	maxFiles = 256      // a directory
	maxRules = 1024     // in all files
	maxList  = 256      // patterns in a list
)

// Problem is something wrong in a file. Line and Column begin at 1; 0 is the file as a whole.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	What   string `json:"what"`
}

func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.What)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.What)
}

// Problems is the error for files that aren't as they should be: all that is wrong, a line each.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// file is one that is being read.
type file struct {
	path     string
	parser   unstable.Parser
	problems Problems
	rules    []rule
	// unclaimed is what the rules say of unclaimed sessions, and last what the file itself does.
	unclaimed []unclaimed
}

// parse reads a file's rules. All that is wrong is in the file's problems.
func parse(path string, data []byte) *file {
	f := &file{path: path}
	if len(data) > maxFile {
		f.problem(nil, "it has %d bytes, the most are %d", len(data), maxFile)
		return f
	}
	// What is TOML, and says everything once, the library decides; what stands where, its parser tells.
	var whole map[string]any
	if err := toml.Unmarshal(data, &whole); err != nil {
		at := Problem{File: path, What: strings.TrimPrefix(err.Error(), "toml: ")}
		var decode *toml.DecodeError
		if errors.As(err, &decode) {
			at.Line, at.Column = decode.Position()
		}
		f.problems = append(f.problems, at)
		return f
	}
	f.parser.Reset(data)
	var table *table
	own := unclaimed{rule: filepath.Base(path)}
	finish := func() {
		if table != nil {
			f.rules = append(f.rules, table.rule())
			if said := table.said(); said != nil {
				f.unclaimed = append(f.unclaimed, *said)
			}
		}
	}
	for f.parser.NextExpression() {
		node := f.parser.Expression()
		key := node.Key()
		key.Next()
		first := *key.Node()
		name := string(first.Data)
		if key.Next() {
			name += "." + string(key.Node().Data)
		}
		switch {
		case node.Kind == unstable.ArrayTable && name == "rule":
			finish()
			table = newTable(f, first)
		case node.Kind == unstable.KeyValue && table != nil:
			table.set(name, first, node.Value())
		case node.Kind == unstable.KeyValue && unclaimedKeys[name] != nil:
			f.setPeriod(&own, name, node.Value())
		default:
			f.problem(&first, "%q is unknown; a policy is made of [[rule]], each followed by its keys: %s; before them there may be %s", name,
				strings.Join(slices.Sorted(maps.Keys(keys)), ", "), strings.Join(slices.Sorted(maps.Keys(unclaimedKeys)), ", "))
			return f // each key below it would be a problem too
		}
	}
	finish()
	f.unclaimed = append(f.unclaimed, own)
	return f
}

func (f *file) problem(at *unstable.Node, format string, args ...any) {
	p := Problem{File: f.path, What: fmt.Sprintf(format, args...)}
	if at != nil {
		start := f.parser.Shape(at.Raw).Start
		p.Line, p.Column = start.Line, start.Column
	}
	f.problems = append(f.problems, p)
}

// table is a [[rule]] that is being read. Nodes of the parser are good until its next expression, but for their Raw.
type table struct {
	*file
	made rule
	head unstable.Node
	at   map[string]unstable.Node // by key

	allow   *bool
	maximum *int64
	limited *Rate

	unclaimed unclaimed
}

func newTable(f *file, head unstable.Node) *table {
	return &table{file: f, head: head, at: map[string]unstable.Node{},
		made: rule{file: f.path, line: f.parser.Shape(head.Raw).Start.Line}}
}

// keys are those of a rule.
var keys = map[string]func(t *table, key, value *unstable.Node){
	"name":       (*table).setName,
	"cgroup":     (*table).setCgroup,
	"uid":        (*table).setUID,
	"allow":      func(t *table, _, value *unstable.Node) { t.allow = t.boolean(value) },
	"owner":      (*table).setOwner,
	"names":      func(t *table, key, value *unstable.Node) { t.made.names = t.patterns(key, value, parseName) },
	"max-parked": (*table).setMaxParked,
	"rate":       (*table).setRate,
	"delegate": func(t *table, key, value *unstable.Node) {
		t.made.delegate = t.patterns(key, value, parseDelegate)
	},
	"list-all": func(t *table, _, value *unstable.Node) { t.made.listAll = deref(t.boolean(value)) },
	"required": func(t *table, _, value *unstable.Node) { t.made.required = deref(t.boolean(value)) },

	"reclaim-within":          func(t *table, _, value *unstable.Node) { t.setPeriod(&t.unclaimed, "reclaim-within", value) },
	"release-unclaimed-after": func(t *table, _, value *unstable.Node) { t.setPeriod(&t.unclaimed, "release-unclaimed-after", value) },
}

func (t *table) set(name string, key unstable.Node, value *unstable.Node) {
	set, known := keys[name]
	if !known {
		t.problem(&key, "%q is unknown; a rule may have %s", name, strings.Join(slices.Sorted(maps.Keys(keys)), ", "))
		return
	}
	t.at[name] = key
	set(t, &key, value)
}

// rule is what was read, once it is whole.
func (t *table) rule() rule {
	r := &t.made
	for _, key := range []string{"name", "cgroup", "uid"} {
		if _, ok := t.at[key]; !ok {
			hint := map[string]string{
				"name":   `what errors and the log are to call it, as name = "vms"`,
				"cgroup": `whom it is for, as cgroup = '/system.slice/vmm-*.service', or "any"`,
				"uid":    `whom it is for, as uid = 0, uid = "libvirt-qemu", uid = "1000-1999" or uid = "any"`,
			}[key]
			t.problem(&t.head, "the rule has no %s: %s", key, hint)
		}
	}
	r.denies = t.allow != nil && !*t.allow
	r.maxParked = DefaultMaxParked
	if t.maximum != nil {
		r.maxParked = int(*t.maximum)
	}
	if t.limited != nil {
		r.rate = *t.limited
	} else if !r.uids.onlyRoot() {
		r.rate = Rate{defaultBurst, defaultInterval}
	}
	if r.denies {
		for _, key := range []string{"names", "max-parked", "rate", "delegate", "list-all", "required"} {
			if at, ok := t.at[key]; ok {
				t.problem(&at, "%s means nothing where sessions are denied (allow = false)", key)
			}
		}
	}
	t.checkOwner()
	return *r
}

// checkOwner makes sure that each place that the rule is for gives it an owner.
func (t *table) checkOwner() {
	r := &t.made
	if at, ok := t.at["owner"]; ok && r.owner != nil {
		for _, part := range r.owner.parts {
			if part[0] != '{' {
				continue
			}
			name := part[1 : len(part)-1]
			if r.anywhere {
				t.problem(&at, "%s isn't known: the cgroup is any", part)
			}
			for i := range r.cgroups {
				if !r.cgroups[i].has(name) {
					t.problem(&at, "%s isn't in the cgroup %s", part, r.cgroups[i].text)
				}
			}
		}
		return
	}
	if r.denies {
		return
	}
	at := t.at["cgroup"]
	for _, p := range r.cgroups {
		last := p.text[strings.LastIndexByte(p.text, '/')+1:]
		if tail := last[strings.LastIndexAny(last, "*#}")+1:]; tail != "" && !strings.HasSuffix(tail, ".service") && !strings.HasSuffix(tail, ".scope") {
			t.problem(&at, "%s names no unit (.service, .scope), so there is nobody to own sessions; end the pattern with the unit, as its subdirectories count as it, or give the rule an owner", p.text)
		}
	}
}

var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$`)

func (t *table) setName(_, value *unstable.Node) {
	name, ok := t.text(value)
	switch {
	case !ok:
	case name == BuiltIn || name == ByUID || name == brokenFile:
		t.problem(value, "%q is the name of a rule that holdfastd has itself", name)
	case !ruleName.MatchString(name):
		t.problem(value, "%q can't be a rule's name: it has letters, digits and _ . @ -, at most 64 of them", name)
	}
	t.made.name = name
}

func (t *table) setCgroup(key, value *unstable.Node) {
	if value.Kind == unstable.String && string(value.Data) == "any" {
		t.made.anywhere = true
		return
	}
	t.made.cgroups = t.patterns(key, value, func(text string) (pattern, error) {
		p, err := parsePattern(text)
		switch {
		case err != nil:
			return p, err
		case text[0] != '/':
			return p, errors.New(`it must begin with /, as it is the whole path of a cgroup`)
		case slices.ContainsFunc(strings.Split(text[1:], "/"), func(c string) bool { return strings.Trim(c, ".") == "" }):
			return p, errors.New(`it has an empty component, or one of dots only, which no cgroup's path has`)
		}
		return p, nil
	})
}

func parseDelegate(text string) (pattern, error) {
	if strings.ContainsAny(text, "{}") {
		return pattern{}, errors.New("an owner that may be acted for has no {…}, only * and #")
	}
	return parsePattern(text)
}

func (t *table) setUID(key, value *unstable.Node) {
	u := &t.made.uids
	elements, ok := t.elements(key, value)
	if !ok {
		return
	}
	var texts []string
	for _, e := range elements {
		text := string(e.Data)
		texts = append(texts, text)
		if e.Kind != unstable.String && e.Kind != unstable.Integer {
			t.problem(&e, "a uid is a number, a name, a range or any, as 0, \"libvirt-qemu\", \"1000-1999\", \"any\"")
			continue
		}
		if text == "any" {
			u.all = true
			continue
		}
		r, err := parseUID(text)
		if err != nil {
			t.problem(&e, "%s", err)
			continue
		}
		u.ranges = append(u.ranges, r)
	}
	u.text = strings.Join(texts, " or ")
}

var uidRange = regexp.MustCompile(`^([0-9]+)(?:-([0-9]+))?$`)

// parseUID takes a number, a range or a name.
func parseUID(text string) (r [2]uint32, err error) {
	if found := uidRange.FindStringSubmatch(text); found != nil {
		if found[2] == "" {
			found[2] = found[1]
		}
		for i, digits := range found[1:] {
			n, err := strconv.ParseUint(digits, 10, 32)
			if err != nil || n == 1<<32-1 { // the last one is none (setreuid(2))
				return r, fmt.Errorf("%s is not a uid", digits)
			}
			r[i] = uint32(n)
		}
		if r[0] > r[1] {
			return r, fmt.Errorf("the range %s has its end before its start", text)
		}
		return r, nil
	}
	found, err := user.Lookup(text)
	if err != nil {
		return r, fmt.Errorf("there is no user %q in /etc/passwd; write its number", text)
	}
	n, err := strconv.ParseUint(found.Uid, 10, 32)
	return [2]uint32{uint32(n), uint32(n)}, err
}

func (t *table) setOwner(_, value *unstable.Node) {
	text, ok := t.text(value)
	if !ok {
		return
	}
	o, err := parseOwner(text)
	if err != nil {
		t.problem(value, "the owner %q: %s", text, err)
		return
	}
	t.made.owner = &o
}

func (t *table) setMaxParked(_, value *unstable.Node) {
	n, err := strconv.ParseInt(string(value.Data), 10, 64)
	if value.Kind != unstable.Integer || err != nil || n < 0 || n > 65536 {
		t.problem(value, "max-parked is a whole number from 0 to 65536")
		return
	}
	t.maximum = &n
}

var rateText = regexp.MustCompile(`^([1-9][0-9]{0,5})/([0-9]*)(ms|s|m|h)$`)

func (t *table) setRate(_, value *unstable.Node) {
	text, ok := t.text(value)
	if !ok {
		return
	}
	if text == "any" {
		t.limited = &Rate{}
		return
	}
	if found := rateText.FindStringSubmatch(text); found != nil {
		burst, _ := strconv.Atoi(found[1])
		if found[2] == "" {
			found[2] = "1"
		}
		interval, err := time.ParseDuration(found[2] + found[3])
		if err == nil && interval > 0 && interval <= 24*time.Hour {
			t.limited = &Rate{burst, interval}
			return
		}
	}
	t.problem(value, `the rate %q is not like "20/1m", which is 20 at once and then 20 a minute, or "any"; it has at most 6 digits, and at most 24h`, text)
}

func (t *table) text(value *unstable.Node) (string, bool) {
	if value.Kind != unstable.String {
		t.problem(value, "a string is wanted here, in quotes")
		return "", false
	}
	return string(value.Data), true
}

func (t *table) boolean(value *unstable.Node) *bool {
	if value.Kind != unstable.Bool {
		t.problem(value, "true or false is wanted here")
		return nil
	}
	b := string(value.Data) == "true"
	return &b
}

func deref(b *bool) bool { return b != nil && *b }

// elements are those of an array, or a value that is by itself.
func (t *table) elements(key, value *unstable.Node) (elements []unstable.Node, ok bool) {
	if value.Kind != unstable.Array {
		return []unstable.Node{*value}, true
	}
	for children := value.Children(); children.Next(); {
		elements = append(elements, *children.Node())
	}
	if len(elements) == 0 || len(elements) > maxList {
		t.problem(key, "the list %s must have 1 to %d elements", key.Data, maxList)
		return nil, false
	}
	return elements, true
}

func (t *table) patterns(key, value *unstable.Node, parse func(string) (pattern, error)) (patterns []pattern) {
	elements, _ := t.elements(key, value)
	for _, e := range elements {
		text, ok := t.text(&e)
		if !ok {
			continue
		}
		// TOML makes a - of \x2d in double quotes, and so another name than is written there.
		if raw := t.parser.Raw(e.Raw); len(raw) > 0 && raw[0] == '"' && strings.Contains(string(raw), `\`) {
			t.problem(&e, `write %s in single quotes, so that \ stays what it is`, raw)
			continue
		}
		p, err := parse(text)
		if err != nil {
			t.problem(&e, "%q: %s", text, err)
			continue
		}
		patterns = append(patterns, p)
	}
	return patterns
}
