// SPDX-License-Identifier: MIT

package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// variant is what is different in a kernel of that name. The zero value is the series' own.
type variant struct {
	options []string // lines of the configuration
	// header has the compatibility string of a format, of which this kernel has the next version.
	header, format string
}

var variants = map[string]variant{
	"noluo": {options: []string{"CONFIG_LIVEUPDATE=n", "CONFIG_LIVEUPDATE_MEMFD=n", "CONFIG_KEXEC_HANDOVER=n", "CONFIG_KEXEC_HANDOVER_DEBUGFS=n"}},
	// Kexec handover alone.
	"kho":     {options: []string{"CONFIG_LIVEUPDATE=n", "CONFIG_LIVEUPDATE_MEMFD=n"}},
	"nomemfd": {options: []string{"CONFIG_LIVEUPDATE_MEMFD=n"}},

	"nextluo":   {header: "include/linux/kho/abi/luo.h", format: "luo-v"},
	"nextmemfd": {header: "include/linux/kho/abi/memfd.h", format: "memfd-v"},

	"gzip": {options: []string{"CONFIG_KERNEL_ZSTD=n", "CONFIG_KERNEL_GZIP=y"}},
	"xz":   {options: []string{"CONFIG_KERNEL_ZSTD=n", "CONFIG_KERNEL_XZ=y"}},
	"lz4":  {options: []string{"CONFIG_KERNEL_ZSTD=n", "CONFIG_KERNEL_LZ4=y"}},
}

// Variants are the names that may follow that of a series, as in 7.2-noluo.
func Variants() []string { return slices.Sorted(maps.Keys(variants)) }

// configure puts the options into a fragment, in place of what it says of them.
func (v variant) configure(fragment string) string {
	var kept []string
	for _, line := range strings.Split(strings.TrimSuffix(fragment, "\n"), "\n") {
		option, _, _ := strings.Cut(line, "=")
		if !slices.ContainsFunc(v.options, func(o string) bool { return strings.HasPrefix(o, option+"=") }) {
			kept = append(kept, line)
		}
	}
	return strings.Join(append(kept, v.options...), "\n") + "\n"
}

// edit makes the headers of the tree this variant's: the one that it changes, and those that another one may have changed before.
// Only a header whose text differs is written, since make goes by the time of that.
func (v variant) edit(tree string) error {
	for _, name := range Variants() {
		other := variants[name]
		if other.header == "" {
			continue
		}
		file := filepath.Join(tree, other.header)
		original := file + ".orig"
		text, err := os.ReadFile(original)
		if errors.Is(err, fs.ErrNotExist) {
			if v.header != other.header {
				continue
			}
			if text, err = os.ReadFile(file); err == nil {
				err = save(original, text)
			}
		}
		if err == nil && v.header == other.header {
			text, err = nextVersion(text, v.format)
		}
		if err != nil {
			return err
		}
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, text) {
			if err := os.WriteFile(file, text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// save writes a file that is there whole or not at all.
func save(name string, text []byte) error {
	if err := os.WriteFile(name+".part", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".part", name)
}

// nextVersion makes luo-v6 of luo-v5.
func nextVersion(text []byte, format string) ([]byte, error) {
	pattern := regexp.MustCompile(`"` + regexp.QuoteMeta(format) + `(\d+)"`)
	found := pattern.FindAllSubmatch(text, -1)
	if len(found) != 1 {
		return nil, fmt.Errorf("the header has %d strings like %s1, and should have one", len(found), format)
	}
	n, err := strconv.Atoi(string(found[0][1]))
	return pattern.ReplaceAll(text, fmt.Appendf(nil, `"%s%d"`, format, n+1)), err
}
