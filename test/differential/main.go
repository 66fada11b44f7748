// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

const boots = 3

func main() {
	var c comparison
	var seed int64
	flag.Int64Var(&c.first, "first", 1, "first seed")
	flag.Int64Var(&c.count, "count", 240, "how many seeds")
	flag.Int64Var(&seed, "seed", 0, "this seed alone, without the regression cases")
	flag.Int64Var(&c.batch, "batch", 500, "how many sequences share two updates")
	flag.StringVar(&c.script, "script", "", "the operations in this file, too")
	flag.StringVar(&c.record, "record", "", "only run the real kernel, and keep its results in this directory")
	flag.StringVar(&c.check, "check", "", "compare luosim with the results in this directory")
	flag.StringVar(&c.luosim, "luosim", "", "the luosim to run (default bin/luosim)")
	flag.BoolVar(&c.coverage, "coverage", false, "fail if a pair that can be met was met less than 10 times, or a listed difference never")
	flag.BoolVar(&c.quick, "quick", false, "don't look for the sequence in which luosim itself failed")
	flag.BoolVar(&c.verbose, "v", false, "print every result of a sequence that differs")
	flag.Parse()
	c.regressions = true
	if seed != 0 {
		c.first, c.count, c.regressions, c.verbose = seed, 1, false, true
	}
	if c.script != "" && !isSet("count") && !isSet("seed") {
		c.count, c.regressions, c.verbose = 0, false, true
	}
	if err := c.run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		os.Exit(1)
	}
}

func isSet(name string) bool {
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// A comparison is one run of this program.
type comparison struct {
	first, count, batch   int64
	regressions           bool
	script, record, check string
	luosim                string
	coverage, quick       bool
	verbose               bool

	root  string // of the module
	agent string // the agent, built
	seen  map[pair]int
	met   []int // how often each listed difference was met
	bad   int   // sequences that differ
	total int   // sequences
	ops   int
	kinds map[string][]string // kinds of unknown differences, with the ids of sequences
}

func (c *comparison) run(w io.Writer) error {
	start := time.Now()
	if err := adopt(); err != nil {
		return fmt.Errorf("prctl(PR_SET_CHILD_SUBREAPER): %w", err)
	}
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	c.root = filepath.Dir(strings.TrimSpace(string(gomod)))
	if c.luosim == "" {
		c.luosim = filepath.Join(c.root, "bin/luosim")
	}
	dir, err := os.MkdirTemp("", "differential-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c.agent = filepath.Join(dir, "agent")
	build := exec.Command("go", "build", "-o", c.agent, "./test/differential/agent")
	build.Dir = c.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	c.seen = map[pair]int{}
	c.met = make([]int, len(differences))
	c.kinds = map[string][]string{}

	if c.check != "" {
		err = c.checkAll(w, dir)
	} else {
		err = c.compareAll(w, dir)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d sequences, %d operations, %.0f s\n", c.total, c.ops, time.Since(start).Seconds())
	if c.record != "" {
		return nil
	}
	missing := c.printCoverage(w)
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		ids := c.kinds[k]
		fmt.Fprintf(w, "%4d times  %s  (%s)\n", len(ids), k, strings.Join(ids[:min(len(ids), 3)], " "))
	}
	if c.bad > 0 {
		return fmt.Errorf("%d of %d sequences differ", c.bad, c.total)
	}
	if c.coverage && missing > 0 {
		return fmt.Errorf("%d lines of coverage.go or differences.go were not met as often as they must be", missing)
	}
	return nil
}

// batchArguments are the agent's for a batch of sequences.
func batchArguments(first, count int64, regressions bool) []string {
	args := []string{"-boots", fmt.Sprint(boots), "-first", fmt.Sprint(first), "-count", fmt.Sprint(count)}
	if regressions {
		args = append(args, "-regressions")
	}
	return args
}

func batchOf(args []string) (first, count int64, regressions bool) {
	fmt.Sscan(args[3], &first)
	fmt.Sscan(args[5], &count)
	return first, count, len(args) > 6
}

func (c *comparison) compareAll(w io.Writer, dir string) error {
	for first := c.first; first == c.first || first < c.first+c.count; first += c.batch {
		// The regression cases go with the first.
		args := batchArguments(first, min(c.batch, c.first+c.count-first), c.regressions && first == c.first)
		start := time.Now()
		real, err := c.real(dir, args)
		if err != nil {
			return err
		}
		took := time.Since(start)
		if c.record != "" {
			if err := c.keep(args, real); err != nil {
				return err
			}
			c.tally(real)
			continue
		}
		start = time.Now()
		emulated, err := c.emulated(dir, args)
		fmt.Fprintf(w, "%s: real kernel %.0f s, luosim %.0f s\n", strings.Join(args[2:], " "), took.Seconds(), time.Since(start).Seconds())
		if err != nil {
			fmt.Fprintln(os.Stderr, "differential:", err)
		}
		c.compare(w, real, emulated)
	}
	return nil
}

// keep writes what a batch gave on the real kernel, after a line with the agent's arguments.
func (c *comparison) keep(args []string, real string) error {
	if err := os.MkdirAll(c.record, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(c.record, args[3]+"-"+args[5]+".gz"))
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	fmt.Fprintln(z, strings.Join(args, " "))
	io.WriteString(z, real)
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}

func (c *comparison) checkAll(w io.Writer, dir string) error {
	names, err := filepath.Glob(filepath.Join(c.check, "*.gz"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no results in %s; make them with -record", c.check)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text, err := io.ReadAll(z)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		args, real, _ := strings.Cut(string(text), "\n")
		emulated, err := c.emulated(dir, strings.Fields(args))
		if err != nil {
			fmt.Fprintln(os.Stderr, "differential:", err)
		}
		c.compare(w, real, emulated)
	}
	return nil
}

// real runs a batch on real kernels and returns its results, a line an operation.
func (c *comparison) real(dir string, args []string) (string, error) {
	log := filepath.Join(os.TempDir(), "differential-console.log")
	// On a busy host an emulated machine's timer may look dead to a kernel that checks it: no_timer_check.
	command := []string{"run", "--os", "none", "--cmdline", "no_timer_check", "--kernel", "7.2", "--next-kernel", "7.3", "--memory", "2048", "--quiet-console",
		"--timeout", "900", "--log", log, "--add", c.agent + ":/agent"}
	if c.script != "" {
		command = append(command, "--add", c.script+":/"+filepath.Base(c.script))
		args = append(args, "-script", "/"+filepath.Base(c.script))
	}
	command = append(command, "--env", "AGENT="+strings.Join(args, " "), filepath.Join(c.root, "test/differential/guest.sh"))
	cmd := exec.Command(filepath.Join(c.root, "bin/hfvm"), command...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s\nthe console is in %s", strings.Join(cmd.Args, " "), err, stderr.String(), log)
	}
	var packed [boots]strings.Builder
	var ended int
	lines := bufio.NewScanner(&stdout)
	for lines.Scan() {
		var boot int
		var text string
		if n, _ := fmt.Sscanf(lines.Text(), "results %d %s", &boot, &text); n != 2 || boot < 1 || boot > boots {
			fmt.Fprintln(os.Stderr, lines.Text())
		} else if text == "end" {
			ended++
		} else {
			packed[boot-1].WriteString(text)
		}
	}
	if ended != boots {
		return "", fmt.Errorf("%d of %d boots gave results; the console is in %s", ended, boots, log)
	}
	var all strings.Builder
	for i := range packed {
		z, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(packed[i].String())))
		if err == nil {
			_, err = io.Copy(&all, z)
		}
		if err != nil {
			return "", fmt.Errorf("the results of boot %d: %w", i+1, err)
		}
	}
	return all.String(), nil
}

// emulated runs a batch under luosim. Where luosim itself fails, the batch is halved until the sequence is found.
func (c *comparison) emulated(dir string, args []string) (string, error) {
	text, err := c.emulate(dir, args)
	first, count, regressions := batchOf(args)
	if err == nil || c.quick || count <= 1 && !regressions {
		return text, err
	}
	if regressions {
		text, err := c.emulated(dir, batchArguments(first, count, false))
		if err != nil {
			return text, err
		}
		only, err := c.emulate(dir, batchArguments(first, 0, true))
		return only + text, err
	}
	lower, err1 := c.emulated(dir, batchArguments(first, count/2, false))
	upper, err2 := c.emulated(dir, batchArguments(first+count/2, count-count/2, false))
	for _, err := range []error{err1, err2} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "differential:", err)
		}
	}
	return lower + upper, nil
}

func (c *comparison) emulate(dir string, args []string) (string, error) {
	_, count, _ := batchOf(args)
	out := filepath.Join(dir, "results")
	tmpfs, err := os.MkdirTemp("/dev/shm", "differential-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmpfs)
	args = append([]string{c.luosim, "run", "--", c.agent, "-out", out, "-tmpfs", tmpfs}, args...)
	if c.script != "" {
		args = append(args, "-script", c.script)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second+time.Duration(count)*50*time.Millisecond)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	if os.Getuid() == 0 {
		// A luosim that lets through what it should answer must not change the host's /dev.
		cmd = exec.CommandContext(ctx, "sh", append([]string{"-c", `mount --rbind /dev /dev && mount -o remount,ro,bind /dev && exec "$@"`, "sh"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	cmd.WaitDelay = time.Second
	defer killDescendants()
	go watchMemory(ctx.Done(), cancel)
	if output, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = errors.New("it didn't end, or took all memory")
		}
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, output)
	}
	var all bytes.Buffer
	for boot := 1; boot <= boots; boot++ {
		name := fmt.Sprintf("%s.%d", out, boot)
		text, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("under luosim: %w", err)
		}
		os.Remove(name)
		all.Write(text)
	}
	return all.String(), nil
}

// A result is a line: "ID BOOT.INDEX KIND A B N M L NAME -> WHAT IT GAVE".
type result struct {
	id, at, op, gave string
}

var resultLine = regexp.MustCompile(`^(\S+) (\S+) (.*?) -> (.*)$`)

// results reads lines, by sequence, in the order of the sequences' first lines.
func results(text string) ([]string, map[string][]result) {
	var order []string
	byID := map[string][]result{}
	for line := range strings.Lines(text) {
		m := resultLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		if byID[m[1]] == nil {
			order = append(order, m[1])
		}
		byID[m[1]] = append(byID[m[1]], result{m[1], m[2], m[3], m[4]})
	}
	return order, byID
}

func (c *comparison) tally(text string) {
	order, byID := results(text)
	c.total += len(order)
	for _, lines := range byID {
		for _, l := range lines {
			c.ops++
			c.cover(l)
		}
	}
}

func (c *comparison) compare(w io.Writer, real, emulated string) {
	c.tally(real)
	order, want := results(real)
	_, have := results(emulated)
	for _, id := range order {
		var unknown []string
		for i, a := range want[id] {
			b := result{gave: "nothing"}
			if i < len(have[id]) {
				b = have[id][i]
			}
			if a == b || c.listed(a, b) {
				continue
			}
			k := kindOf(a, b)
			c.kinds[k] = append(c.kinds[k], id)
			unknown = append(unknown, fmt.Sprintf("  %s  %s\n      real kernel: %s\n      luosim:      %s", a.at, a.op, a.gave, b.gave))
		}
		if len(unknown) == 0 {
			continue
		}
		c.bad++
		again := "go run ./test/differential -seed " + id
		if strings.Trim(id, "0123456789") != "" {
			again = "go run ./test/differential -script test/differential/agent/regressions/" + id + ".ops"
		}
		fmt.Fprintf(w, "sequence %s differs in %d results (%s):\n", id, len(unknown), again)
		if c.verbose {
			for i, a := range want[id] {
				gave := "nothing"
				if i < len(have[id]) {
					gave = have[id][i].gave
				}
				mark := "  "
				if a.gave != gave {
					mark = "!!"
				}
				fmt.Fprintf(w, "%s %s  %s -> %s\n", mark, a.at, a.op, a.gave)
				if mark == "!!" {
					fmt.Fprintf(w, "      luosim: %s\n", gave)
				}
			}
			continue
		}
		for _, u := range unknown[:min(len(unknown), 3)] {
			fmt.Fprintln(w, u)
		}
	}
}

// kindOf is what an unknown difference has in common with others: the operation, and the words that differ.
func kindOf(real, emulated result) string {
	kind, _, _ := strings.Cut(real.op, " ")
	a, b := strings.Fields(real.gave), strings.Fields(emulated.gave)
	if len(a) != len(b) || a[0] != b[0] {
		return fmt.Sprintf("%s: %s, luosim %s", kind, a[0], b[0])
	}
	var words []string
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		name, _, more := strings.Cut(a[i], "=")
		if more && (name == "content" || name == "size" || name == "blocks" || name == "at" || name == "n") {
			words = append(words, name+"=")
		} else {
			words = append(words, a[i]+", luosim "+b[i])
		}
	}
	return kind + ": " + a[0] + " " + strings.Join(words, " ")
}

// listed says whether a difference is one that must stay.
func (c *comparison) listed(real, emulated result) bool {
	for i, d := range differences {
		if d.applies() && d.op.MatchString(real.op) && d.real.MatchString(real.gave) && d.luosim.MatchString(emulated.gave) {
			c.met[i]++
			return true
		}
	}
	return false
}

func (c *comparison) printCoverage(w io.Writer) (missing int) {
	fmt.Fprintln(w, "met  operation, errno, where in the kernel")
	for _, p := range pairs {
		n := c.seen[p.pair]
		switch {
		case p.unreachable != "":
			if n > 0 {
				fmt.Fprintf(w, "%5d  %s: coverage.go says that it can't be met: %s\n", n, p, p.unreachable)
				missing++
			}
		case n < 10:
			fmt.Fprintf(w, "%5d  %s  (less than 10)\n", n, p)
			missing++
		default:
			fmt.Fprintf(w, "%5d  %s\n", n, p)
		}
		delete(c.seen, p.pair)
	}
	var rest []string
	for p, n := range c.seen {
		if liveUpdate(p.op) && p.errno != "EBADF" && p.errno != "ok" {
			rest = append(rest, fmt.Sprintf("%5d  %s %s  (not in coverage.go)", n, p.op, p.errno))
		}
	}
	sort.Strings(rest)
	missing += len(rest)
	for _, line := range rest {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintln(w, "met  listed difference")
	for i, d := range differences {
		if !d.applies() {
			continue
		}
		if c.met[i] == 0 {
			missing++
			fmt.Fprintf(w, "%5d  %s  (is it still there?)\n", 0, d.why)
			continue
		}
		fmt.Fprintf(w, "%5d  %s\n", c.met[i], d.why)
	}
	return missing
}
