// SPDX-License-Identifier: MIT

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-project/holdfast/internal/name"
)

// Dirs are where holdfastd looks for policies: a file in the first one masks that of the same name in the second.
var Dirs = []string{"/etc/holdfast/policy.d", "/usr/lib/holdfast/policy.d"}

// Load reads the policy from directories: their *.toml, in the order of the files' names, whichever directory each is
// in. A file in an earlier directory masks those of its name in later ones; one that is empty, or a link to /dev/null,
// does nothing else. A directory that isn't there has no files.
//
// Where something is wrong, the error is [Problems], and the policy is one that is safe to start with: a broken file
// stands for a denial of all that the files before it don't decide.
//
// Files and directories must belong to root or to whom this process runs as, and be writable by nobody else: whoever
// writes a policy has every session.
func Load(dirs ...string) (*Policy, error) {
	l := newLoading()
	paths := map[string]string{} // by name
	for _, dir := range slices.Backward(dirs) {
		names, err := list(dir)
		if err != nil {
			l.broken(dir, Problems{{File: dir, What: err.Error()}})
		}
		for _, name := range names {
			paths[name] = filepath.Join(dir, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		data, err := read(paths[name])
		if err != nil {
			l.broken(paths[name], Problems{{File: paths[name], What: err.Error()}})
			continue
		}
		l.add(paths[name], data)
	}
	return l.result()
}

// LoadFiles reads a policy from files that needn't be installed yet, in the order given, whoever they belong to.
func LoadFiles(paths ...string) (*Policy, error) {
	l := newLoading()
	for _, path := range paths {
		data, _, err := open(path)
		if err != nil {
			l.broken(path, Problems{{File: path, What: err.Error()}})
			continue
		}
		l.add(path, data)
	}
	return l.result()
}

// loading is a policy that is being read.
type loading struct {
	policy   *Policy
	problems Problems
	names    map[string]string // of rules, and where each is
	rules    int
}

func newLoading() *loading {
	return &loading{policy: &Policy{named: map[string]string{}}, names: map[string]string{}}
}

func (l *loading) result() (*Policy, error) {
	if l.problems == nil {
		return l.policy, nil
	}
	return l.policy, l.problems
}

// broken has a file, or directory, stand for a denial.
func (l *loading) broken(path string, problems Problems) {
	l.problems = append(l.problems, problems...)
	l.policy.rules = append(l.policy.rules, rule{name: brokenFile, file: path, broken: true})
}

func (l *loading) add(path string, data []byte) {
	l.policy.files = append(l.policy.files, path)
	f := parse(path, data)
	for i, r := range f.rules {
		whole := func(format string, args ...any) {
			f.problems = append(f.problems, Problem{path, r.line, 1, fmt.Sprintf(format, args...)})
		}
		if l.rules+i == maxRules {
			whole("this rule is one too many: the most are %d, of all files", maxRules)
			break
		}
		if at, taken := l.names[r.name]; taken {
			whole("there is a rule %q already, at %s; the log would not tell them apart", r.name, at)
		} else if r.name != "" {
			l.names[r.name] = r.at()
		}
	}
	if f.problems != nil {
		slices.SortStableFunc(f.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		l.broken(path, f.problems)
		return
	}
	l.rules += len(f.rules)
	l.policy.rules = append(l.policy.rules, f.rules...)
	l.policy.unclaimed = append(l.policy.unclaimed, f.unclaimed...)
	for i := range f.rules {
		for _, owner := range f.rules[i].owners() {
			l.policy.named[name.Digest(owner)] = owner
		}
	}
}

// list returns the names of a directory's policies.
func list(dir string) ([]string, error) {
	opened, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, errors.New("it is no directory")
	}
	if err := trusted(info); err != nil {
		return nil, err
	}
	entries, err := opened.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("it has %d policies, the most are %d", len(names), maxFiles)
	}
	return names, nil
}

// read returns what is in an installed file.
func read(path string) ([]byte, error) {
	data, info, err := open(path)
	if err != nil || info == nil {
		return nil, err
	}
	return data, trusted(info)
}

// open reads a regular file; for /dev/null there is neither data nor info.
func open(path string) ([]byte, fs.FileInfo, error) {
	// Not to wait for a writer, where it is a pipe.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		var of *fs.PathError
		errors.As(err, &of)
		return nil, nil, fmt.Errorf("it can't be read: %w", of.Err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(info, null) {
		return nil, nil, nil
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	return data, info, err
}

// trusted makes sure that nobody but root, or who runs this, can write it.
func trusted(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to uid %d; policies are root's: chown root:root", stat.Uid)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("others than its owner may write it (mode %04o): chmod go-w", perm)
	}
	return nil
}
