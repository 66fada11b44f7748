// SPDX-License-Identifier: MIT

package run

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Config is what to run, and on what.
type Config struct {
	Session string // the name of the session, the owner's own
	Memory  []Memory
	Files   []File
	Command []string

	StopSignal  syscall.Signal
	StopCommand string        // instead of the signal, if not empty
	StopTimeout time.Duration // how long the command may take to stop
	Settle      time.Duration // how long it stays stopped before it is started on the same memory
	Restart     bool          // start it again, on its memory, after a crash
	Notify      bool          // it speaks sd_notify(3) itself
	Park        bool          // have the orchestrator keep the memory, though there is an fd store

	Required, Optional bool // as in holdfast.ParticipantConfig
}

// Memory is one memfd of the command's.
type Memory struct {
	Name string
	Size int64  // bytes
	Path string // of the symbolic link to it; may be empty
}

// File is a small file that is carried beside the memory.
type File struct{ Name, Path string }

// CarriedMax is the most that a carried file may have, in bytes: it is copied while the command is stopped.
const CarriedMax = 64 << 20

// ParseMemory reads NAME=SIZE[:PATH].
func ParseMemory(s string) (Memory, error) {
	name, rest, ok := strings.Cut(s, "=")
	size, path, linked := strings.Cut(rest, ":")
	m := Memory{Name: name}
	err := checkName(name)
	switch {
	case !ok:
		return m, fmt.Errorf("--mem %q is not NAME=SIZE or NAME=SIZE:PATH", s)
	case err == nil && linked && !filepath.IsAbs(path):
		err = fmt.Errorf("the PATH %q must begin with /", path)
	}
	if err == nil {
		m.Size, err = parseSize(size)
	}
	if err != nil {
		err = fmt.Errorf("--mem %q: %w", s, err)
	}
	if linked {
		m.Path = filepath.Clean(path) // as Check compares them
	}
	return m, err
}

// ParseFile reads NAME:PATH.
func ParseFile(s string) (File, error) {
	name, path, ok := strings.Cut(s, ":")
	if !ok || !filepath.IsAbs(path) {
		return File{}, fmt.Errorf("--file %q is not NAME:PATH, with a PATH that begins with /", s)
	}
	if err := checkName(name); err != nil {
		return File{}, fmt.Errorf("--file %q: %w", s, err)
	}
	return File{name, filepath.Clean(path)}, nil
}

// checkName takes names that an environment variable can have too.
func checkName(name string) error {
	if name == "" || len(name) > 32 {
		return fmt.Errorf("the name %q must have 1 to 32 characters", name)
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return fmt.Errorf("the name %q must be letters, digits and _, the first a letter", name)
		}
	}
	return nil
}

var units = map[byte]int{'K': 10, 'M': 20, 'G': 30, 'T': 40}

func parseSize(s string) (int64, error) {
	digits, shift := s, 0
	if s != "" && units[s[len(s)-1]] > 0 {
		digits, shift = s[:len(s)-1], units[s[len(s)-1]]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("the SIZE %q must be a number of bytes, or one with K, M, G or T", s)
	}
	return n << shift, nil
}

// path is how the command opens what it inherits as the i-th memory.
func path(i int) string { return "/proc/self/fd/" + strconv.Itoa(3+i) }

// expand puts the paths in the place of {NAME}.
func expand(words []string, memory []Memory) []string {
	var pairs []string
	for i, m := range memory {
		pairs = append(pairs, "{"+m.Name+"}", path(i))
	}
	r := strings.NewReplacer(pairs...)
	expanded := make([]string, len(words))
	for i, w := range words {
		expanded[i] = r.Replace(w)
	}
	return expanded
}

// variables are $HOLDFAST_MEM_NAME for each memory, how the command was started, and of which generation the memory is.
func variables(memory []Memory, how string, generation uint64) []string {
	env := []string{"HOLDFAST_START=" + how, "HOLDFAST_GENERATION=" + strconv.FormatUint(generation, 10)}
	for i, m := range memory {
		env = append(env, "HOLDFAST_MEM_"+strings.ToUpper(m.Name)+"="+path(i))
	}
	return env
}

// Check makes sure that no two have the same name, in either case, or path.
func Check(memory []Memory, files []File) error {
	if len(memory) == 0 {
		return errors.New("there is no --mem: what would cross the update?")
	}
	seen := map[string]bool{}
	twice := func(what string) error {
		if seen[what] {
			return fmt.Errorf("there are two of %s", what)
		}
		seen[what] = true
		return nil
	}
	for _, m := range memory {
		if err := twice("--mem " + strings.ToUpper(m.Name)); err != nil {
			return err
		}
		if m.Path != "" {
			if err := twice(m.Path); err != nil {
				return err
			}
		}
	}
	for _, f := range files {
		if err := errors.Join(twice("--file "+f.Name), twice(f.Path)); err != nil {
			return err
		}
	}
	return nil
}
