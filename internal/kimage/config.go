// SPDX-License-Identifier: MIT

package kimage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Config is a kernel's configuration: the values of the options by their names, as in "CONFIG_KEXEC_FILE": "y". Options that
// are off aren't in it.
type Config map[string]string

// ParseConfig reads a .config file.
func ParseConfig(r io.Reader) (Config, error) {
	limited := &io.LimitedReader{R: r, N: configMax + 1}
	c := Config{}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && strings.HasPrefix(name, "CONFIG_") && value != "n" {
			c[name] = strings.Trim(value, `"`)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("kernel configuration: %w", err)
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("kernel configuration: more than %d bytes", configMax)
	}
	// Each kernel's has some hundred options, whatever is left out.
	if len(c) == 0 {
		return nil, errors.New("no kernel configuration: there is no option in it")
	}
	return c, nil
}

// ConfigPaths is where distributions have the configuration of a release: Debian, Fedora and others.
func ConfigPaths(release string) []string {
	if !plainName(release) {
		return nil
	}
	return []string{"boot/config-" + release, "usr/lib/modules/" + release + "/config", "lib/modules/" + release + "/config"}
}

// FindConfig reads the first file that is there: those at ConfigPaths(release), then those named. root is the host's root
// directory. It returns a nil Config if there is none.
func FindConfig(root fs.FS, release string, more ...string) (c Config, from string, err error) {
	for _, name := range append(ConfigPaths(release), more...) {
		f, err := openRegular(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			defer f.Close()
			read := ParseConfig
			if path.Ext(name) == ".gz" {
				read = gunzipConfig
			}
			c, err = read(f)
		}
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path.Join("/", name), err)
		}
		return c, path.Join("/", name), nil
	}
	return nil, "", nil
}

// openRegular doesn't wait for the other end of a pipe.
func openRegular(root fs.FS, name string) (fs.File, error) {
	info, err := fs.Stat(root, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("no regular file")
	}
	return root.Open(name)
}

// plainName says whether a release, which may come from a hostile image, is good for a file's name.
func plainName(release string) bool {
	return release != "" && release != "." && release != ".." && !strings.ContainsAny(release, "/\x00") && fs.ValidPath(release)
}
