// SPDX-License-Identifier: MIT

//go:build linux

// Command mutate takes each check out of luosim's model of the kernel, one at a time, and says whether the comparison
// with the real kernel's results notices. It changes no file: the changed source is an overlay of the build.
//
//	go run ./test/differential -count 1000 -record DIR
//	go run ./test/differential/mutate -results DIR
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A check is an if whose condition can be made false.
type check struct {
	file       string
	line       int
	from, to   int // of the condition
	function   string
	condition  string
	givesErrno bool
}

func main() {
	results := flag.String("results", "", "results of the real kernel, from differential -record")
	dir := flag.String("dir", "internal/luosim/luo", "the package")
	all := flag.Bool("all", false, "take out every condition, not only those that give an errno")
	only := flag.String("only", "", "only checks whose \"file:line condition\" matches this regular expression")
	list := flag.Bool("list", false, "only list the checks")
	flag.Parse()
	if err := run(*results, *dir, *all, *only, *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(results, dir string, all bool, only string, list bool) error {
	filter, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	checks, err := find(filepath.Join(root, dir), all)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	m := mutation{root, tmp, results}
	if !list {
		if err := m.build("differential", "./test/differential"); err != nil {
			return err
		}
		if err := m.build("luosim", "./cmd/luosim"); err != nil {
			return err
		}
		if out, err := m.compare(); err != nil {
			return fmt.Errorf("luosim differs without any change, so nothing can be said: %w\n%s", err, out)
		}
	}
	var survived, tried int
	for _, c := range checks {
		name, _ := filepath.Rel(root, c.file)
		text := fmt.Sprintf("%s:%d %s: %s", name, c.line, c.function, c.condition)
		if !filter.MatchString(text) {
			continue
		}
		tried++
		if list {
			fmt.Println(text)
			continue
		}
		if dangerous.MatchString(text) {
			fmt.Println("not tried, as memory would run out:", text)
			continue
		}
		verdict := "caught"
		if err := m.without(c); err != nil {
			fmt.Fprintln(os.Stderr, "mutate:", err)
			verdict = "NOT TRIED"
			survived++
		} else if _, err := m.compare(); err == nil {
			verdict = "NOT CAUGHT"
			if why := excused(text); why != "" {
				verdict = "not caught, as " + why
			} else {
				survived++
			}
		}
		fmt.Printf("%-11s %s\n", verdict, text)
	}
	fmt.Printf("%d checks, %d neither caught nor excused\n", tried, survived)
	if survived > 0 {
		return fmt.Errorf("%d checks can be taken out unnoticed", survived)
	}
	return nil
}

// find lists the conditions of a package's files.
func find(dir string, all bool) ([]check, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var checks []check
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, name, source, 0)
		if err != nil {
			return nil, err
		}
		function := ""
		ast.Inspect(f, func(n ast.Node) bool {
			if d, ok := n.(*ast.FuncDecl); ok {
				function = d.Name.Name
			}
			i, ok := n.(*ast.IfStmt)
			if !ok {
				return true
			}
			from, to := files.Position(i.Cond.Pos()), files.Position(i.Cond.End())
			c := check{name, from.Line, from.Offset, to.Offset, function, string(source[from.Offset:to.Offset]), givesErrno(i.Body)}
			if all || c.givesErrno {
				checks = append(checks, c)
			}
			return true
		})
	}
	return checks, nil
}

var errno = regexp.MustCompile(`^E[A-Z0-9]+$`)

// givesErrno says whether a block itself returns an errno: one of unix's, or a variable that is called err.
func givesErrno(b *ast.BlockStmt) bool {
	gives := false
	for _, s := range b.List {
		r, ok := s.(*ast.ReturnStmt)
		if !ok {
			continue
		}
		for _, e := range r.Results {
			ast.Inspect(e, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					gives = gives || errno.MatchString(n.Sel.Name)
				case *ast.Ident:
					gives = gives || n.Name == "err" || n.Name == "errno"
				}
				return true
			})
		}
	}
	return gives
}

type mutation struct{ root, tmp, results string }

func (m mutation) build(name, pkg string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build", "-o", filepath.Join(m.tmp, name)}, flags...), pkg)...)
	cmd.Dir = m.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// without builds luosim with a condition that never holds.
func (m mutation) without(c check) error {
	source, err := os.ReadFile(c.file)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%sfalse && (%s)%s", source[:c.from], c.condition, source[c.to:])
	changed := filepath.Join(m.tmp, "changed.go")
	if err := os.WriteFile(changed, b.Bytes(), 0o644); err != nil {
		return err
	}
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{c.file: changed}})
	name := filepath.Join(m.tmp, "overlay.json")
	if err := os.WriteFile(name, overlay, 0o644); err != nil {
		return err
	}
	return m.build("luosim", "./cmd/luosim", "-overlay", name)
}

func (m mutation) compare() ([]byte, error) {
	cmd := exec.Command(filepath.Join(m.tmp, "differential"), "-check", m.results, "-quick", "-luosim", filepath.Join(m.tmp, "luosim"))
	cmd.Dir = m.root
	return cmd.CombinedOutput()
}

// dangerous are the checks that keep luosim from filling a file of terabytes, or from not stopping.
var dangerous = regexp.MustCompile(`available|preserve: pages|preserve: f.size|copyPages: n == 0|fill:`)

// excuses are the checks that no comparison with a kernel can notice.
var excuses = []struct{ check, why string }{
	{`faults\.`, "no kernel has faults by order"},
	{`err != nil$|give: i >= 0|memfd.go:\d+ errno: ok`, "only the host's own failure comes this way"},
	{`retrieveFile: f.failed != 0|restore: err != 0`, "only a fault by order or the host's own failure comes this way"},
	{`answer: err != 0`, "there was room for a descriptor a moment before"},
	{`sweepSometimes|Tidy|Kexec: (s.handle|k.device) != nil`, "it only gives back early what luosim itself holds"},
	{`features|LinkMax`, "it is of an older kernel than those compared with"},
}

func excused(text string) string {
	for _, e := range excuses {
		if regexp.MustCompile(e.check).MatchString(text) {
			return e.why
		}
	}
	return ""
}
