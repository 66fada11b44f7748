// SPDX-License-Identifier: MIT

// Package debian gets packages from Debian's archive: of other suites than the machine's own,
// without touching the machine's package lists, and the tools that hfvm needs to build and run.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/holdfast-project/holdfast/internal/hfvm/cache"
)

// Keyring holds the keys of Debian's archive, of all suites.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// MirrorVariable names the environment variable that overrides the mirror.
const MirrorVariable = "HFVM_MIRROR"

// Mirror is the URL of the Debian archive that this machine uses.
func Mirror(ctx context.Context) (string, error) {
	if m := os.Getenv(MirrorVariable); m != "" {
		return m, nil
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for this machine's mirror: %w", explain(err))
	}
	// Origin and label would be surer than the path, but apt knows them only after an update.
	for _, uri := range strings.Fields(string(out)) {
		if uri = strings.TrimSuffix(uri, "/"); strings.HasSuffix(uri, "/debian") {
			return uri, nil
		}
	}
	return "", fmt.Errorf("apt knows no Debian mirror on this machine; name one in $%s", MirrorVariable)
}

// An Archive is Debian's archive as seen through package lists of our own.
type Archive struct {
	dir     string
	options []string
}

// OpenArchive fetches the package lists of the suites.
func OpenArchive(ctx context.Context, c *cache.Cache, log *cache.Log, suites ...string) (*Archive, error) {
	mirror, err := Mirror(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Dir, "apt")
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, suite := range suites {
		fmt.Fprintf(&sources, "deb [signed-by=%s] %s %s main\n", Keyring, mirror, suite)
	}
	a := &Archive{dir: dir}
	for name, content := range map[string]string{"sources.list": sources.String(), "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	for _, o := range []string{
		"Dir::Etc::sourcelist=" + dir + "/sources.list",
		"Dir::Etc::sourceparts=-",
		"Dir::State::Lists=" + dir + "/lists",
		"Dir::State::status=" + dir + "/status",
		"Dir::Cache=" + dir + "/cache",
		"APT::Architecture=amd64",
		"APT::Architectures::=amd64",
		"APT::Sandbox::User=",
		"Acquire::Languages=none",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		// A mirror may be a snapshot: old, but signed.
		"Acquire::Check-Valid-Until=false",
	} {
		a.options = append(a.options, "-o", o)
	}
	return a, log.Command(ctx, "apt-get", append(a.options, "update")...).Run()
}

// A Source is a package with a kernel's source.
type Source struct {
	Package string // linux-source-7.2
	Version string // 7.2.13-1
}

// Series is the kernel's, as in "7.2".
func (s Source) Series() string { return strings.TrimPrefix(s.Package, "linux-source-") }

// String is the form that ParseSource reads.
func (s Source) String() string { return s.Package + " " + s.Version }

// ParseSource reads what String wrote.
func ParseSource(text string) (Source, error) {
	f := strings.Fields(text)
	if len(f) != 2 {
		return Source{}, fmt.Errorf("%q names no source package and version", text)
	}
	return Source{f[0], f[1]}, nil
}

var sourceName = regexp.MustCompile(`^linux-source-\d+\.\d+$`)

// KernelSources lists the kernel sources in the archive, each in its newest version.
func (a *Archive) KernelSources(ctx context.Context) ([]Source, error) {
	// A pattern makes apt-cache show every match; dumpavail would be 40 MB.
	names, err := a.cache(ctx, "pkgnames", "linux-source-")
	if err != nil {
		return nil, err
	}
	var sources []Source
	for _, name := range strings.Fields(names) {
		if !sourceName.MatchString(name) {
			continue
		}
		// madison prints "name | version | where", the newest version first.
		out, err := a.cache(ctx, "madison", name)
		if err != nil {
			return nil, err
		}
		line, _, _ := strings.Cut(out, "\n")
		if f := strings.Split(line, "|"); len(f) == 3 {
			sources = append(sources, Source{name, strings.TrimSpace(f[1])})
		}
	}
	return sources, nil
}

func (a *Archive) cache(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", append(a.options, args...)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache %s: %w", strings.Join(args, " "), explain(err))
	}
	return string(out), nil
}

// Download fetches a package into dir, checked against the archive's signature, and returns its file.
func (a *Archive) Download(ctx context.Context, log *cache.Log, s Source, dir string) (string, error) {
	cmd := log.Command(ctx, "apt-get", append(a.options, "download", s.Package+"="+s.Version)...)
	cmd.Dir = dir
	if err := cmd.Run(); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, s.Package+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download of %s left %v in %s", s, debs, dir)
	}
	return debs[0], nil
}

func explain(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

// A Tool is something that has to be on this machine: a command, or a file given by its path.
type Tool struct{ Name, Package string }

// Need makes sure that the tools are there. On Debian, and as root, it installs those that aren't.
func Need(ctx context.Context, c *cache.Cache, tools ...Tool) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("hfvm makes amd64 guests on amd64 hosts only, this one is %s", runtime.GOARCH)
	}
	missing := missing(tools)
	if len(missing) == 0 {
		return nil
	}
	list := strings.Join(missing, " ")
	if _, err := os.Stat("/etc/debian_version"); err != nil || os.Getuid() != 0 {
		return fmt.Errorf("missing on this machine; install, by their names in Debian: %s", list)
	}
	unlock, err := c.Lock(ctx, "install")
	if err != nil {
		return err
	}
	defer unlock()
	log, err := c.NewLog("install")
	if err != nil {
		return err
	}
	defer log.Close()
	return log.Step(ctx, "installing "+list+" (apt-get)", func() error {
		for _, args := range [][]string{
			{"update"},
			append([]string{"install", "--yes", "--no-install-recommends"}, missing...),
		} {
			cmd := log.Command(ctx, "apt-get", args...)
			cmd.Env = append(cmd.Env, "DEBIAN_FRONTEND=noninteractive")
			if err := cmd.Run(); err != nil {
				return err
			}
		}
		return nil
	})
}

func missing(tools []Tool) []string {
	var packages []string
	for _, t := range tools {
		var err error
		if filepath.IsAbs(t.Name) {
			_, err = os.Stat(t.Name)
		} else {
			_, err = exec.LookPath(t.Name)
		}
		if err != nil {
			packages = append(packages, t.Package)
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}
