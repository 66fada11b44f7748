// SPDX-License-Identifier: MIT

// Package layering has no code. Its tests hold the source tree to the rules in CONTRIBUTING.md.
package layering

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/holdfast-project/holdfast"
	unix   = "golang.org/x/sys/unix"
)

// layers lists for each package of the product what it may import of this module. "." is the client library. What
// isn't here (commands, examples, hfvm, tests) sits on top: it may import all of these, and none of these may import it.
var layers = map[string][]string{
	"api":              {},
	"internal/fd":      {},
	"internal/name":    {},
	"internal/version": {},
	"internal/oneline": {},
	"internal/journal": {},
	"internal/systemd": {"internal/fd"},
	"liveupdate":       {"internal/fd"},

	// A request reads: who is asking, may it, do it, answer. Only the orchestrator sees all of the steps.
	"internal/varlink":      {"internal/fd"},
	"internal/peer":         {"internal/fd"},
	"internal/policy":       {"internal/name", "internal/peer"},
	"internal/fdname":       {"internal/name"},
	"internal/custody":      {"internal/fd", "internal/fdname", "internal/name", "internal/systemd", "liveupdate"},
	"internal/inventory":    {"internal/fd", "internal/fdname", "internal/peer", "internal/systemd", "liveupdate"},
	"internal/orchestrator": {"api", "internal/custody", "internal/fd", "internal/fdname", "internal/inventory", "internal/name", "internal/peer", "internal/places", "internal/policy", "internal/systemd", "internal/varlink", "liveupdate"},

	"internal/daemon": {"internal/peer", "internal/policy", "internal/systemd"},
	"internal/places": {"internal/peer"},

	// An update: the rules of a round, and who conducts it.
	"internal/update":  {},
	"internal/updated": {"api", "internal/fd", "internal/fdname", "internal/kexec", "internal/name", "internal/oneline", "internal/peer", "internal/places", "internal/policy", "internal/systemd", "internal/update", "internal/varlink"},

	// What files say, without running them.
	"internal/decompress": {},
	"internal/kimage":     {"internal/decompress"},
	"internal/initrd":     {"internal/decompress"},

	// Before an update: what would be lost, and loading what comes next.
	"internal/kexec": {"internal/kimage"},
	"internal/check": {"internal/decompress", "internal/fdname", "internal/initrd", "internal/inventory", "internal/kexec", "internal/kimage", "internal/name", "internal/peer", "internal/systemd", "liveupdate"},

	// The emulator, which a test can use without the rest.
	"internal/luosim/luo":     {},
	"internal/luosim/handle":  {},
	"internal/luosim/notify":  {},
	"internal/luosim/machine": {"internal/luosim/luo", "internal/luosim/handle", "internal/luosim/notify"},
	"luosim":                  {"internal/luosim/machine"},

	// What came of an update.
	"internal/timeline":  {".", "internal/name", "internal/systemd"},
	"internal/report":    {"internal/oneline", "internal/timeline"},
	"internal/reconcile": {"internal/name", "internal/timeline", "internal/varlink"},
	"internal/shutdown":  {},

	// A program that knows nothing of updates.
	"internal/run": {".", "internal/fd", "internal/peer", "internal/systemd"},

	".": {"internal/fd", "internal/fdname", "internal/name", "internal/peer", "internal/systemd", "internal/varlink", "liveupdate"},
}

// kernel are the packages, and trees of packages, that make system calls by themselves.
var kernel = []string{
	".", "liveupdate",
	"internal/check", "internal/custody", "internal/fd", "internal/inventory", "internal/kexec", "internal/peer", "internal/run", "internal/systemd", "internal/timeline", "internal/varlink",
	// It puts descriptors where the command that it becomes wants them.
	"cmd/holdfast",
	// Tools for tests, and programs that show how the library is used.
	"luosim", "internal/luosim", "internal/hfvm", "cmd/hfvm", "examples", "demo", "test",
}

// imports are those of the non-test files, for all operating systems, by the package's directory.
func imports(t *testing.T) map[string][]string {
	found := map[string][]string{}
	for _, file := range sources(t) {
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(file)
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(found[dir], imported) {
				found[dir] = append(found[dir], imported)
			}
		}
	}
	if len(found) == 0 {
		t.Fatal("no Go files were found")
	}
	return found
}

func TestLayers(t *testing.T) {
	for dir, imported := range imports(t) {
		allowed, isLayer := layers[dir]
		if !isLayer {
			continue
		}
		for _, i := range imported {
			if i == module {
				i = module + "/."
			}
			if below, ours := strings.CutPrefix(i, module+"/"); ours && !slices.Contains(allowed, below) {
				t.Errorf("%s imports %s, which isn't below it", dir, below)
			}
		}
	}
}

func TestOnlyTheBottomSpeaksToTheKernel(t *testing.T) {
	for dir, imported := range imports(t) {
		if slices.Contains(imported, unix) && !slices.ContainsFunc(kernel, func(k string) bool {
			return dir == k || k != "." && strings.HasPrefix(dir, k+"/")
		}) {
			t.Errorf("%s imports %s, which is for %s", dir, unix, strings.Join(kernel, ", "))
		}
	}
}

// TestLicence looks for the SPDX line at the top of each file of code. The varlink files have none: they are served
// as they are.
func TestLicence(t *testing.T) {
	const licence = "SPDX-License-Identifier: MIT"
	code := []string{".go", ".c", ".h", ".sh", ".service", ".socket", ".rules", ".config", ".yaml", ".yml", ".mk"}
	for _, file := range sources(t) {
		data := read(t, file)
		if !slices.Contains(code, path.Ext(file)) && path.Base(file) != "Makefile" && !bytes.HasPrefix(data, []byte("#!")) {
			continue
		}
		lines := bytes.SplitN(data, []byte("\n"), 4)
		if !bytes.Contains(bytes.Join(lines[:min(3, len(lines))], nil), []byte(licence)) {
			t.Errorf("%s: %q isn't in its first three lines", file, licence)
		}
	}
}

// elsewhere are directories that are only on somebody's machine.
var elsewhere = regexp.MustCompile(`(?:^|[^A-Za-z0-9_.$})-])/(?:home|Users|work|workspace|builds)/[A-Za-z0-9_.-]+`)

func TestNoPathsOfDevelopersMachines(t *testing.T) {
	for _, file := range sources(t) {
		if strings.HasPrefix(file, "test/") {
			continue // scripts for guests name the guest's homes
		}
		if found := elsewhere.Find(read(t, file)); found != nil {
			t.Errorf("%s names %q", file, bytes.TrimSpace(found))
		}
	}
}

func read(t *testing.T, file string) []byte {
	data, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sources are the files of the repository, new ones included; without git, all that is in the tree.
func sources(t *testing.T) []string {
	var files []string
	if out, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output(); err == nil {
		files = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	} else if err := fs.WalkDir(os.DirFS(root), ".", func(file string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.IsDir() && (file == ".git" || file == "bin") {
			return fs.SkipDir
		}
		files = append(files, file)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(file string) bool {
		// Directories, symbolic links, and what is in git's index and no longer there.
		info, err := os.Lstat(filepath.Join(root, file))
		return err != nil || !info.Mode().IsRegular()
	})
}
