// SPDX-License-Identifier: MIT

package holdfast

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast/internal/name"
)

// ManifestToken is the token under which the manifest lies in a session.
const ManifestToken = 0

// Manifest is the record that a session was committed, and of what it holds. It lies in the session, as JSON in a
// sealed memfd, and was put there last: a session that has one is whole.
type Manifest struct {
	Version    int            `json:"version"` // 1
	Owner      string         `json:"owner"`
	Name       string         `json:"name"`       // the client's own portion of the session's
	Generation uint64         `json:"generation"` // from 1, one more with each renewal
	Files      []ManifestFile `json:"files"`      // in the order in which they were preserved
}

// ManifestFile is one file in a session.
type ManifestFile struct {
	Name  string
	Token uint64
	Size  int64 // bytes
}

// The token is a string in JSON, since many readers of JSON keep numbers as doubles.
type manifestFileJSON struct {
	Name  string `json:"name"`
	Token string `json:"token"`
	Size  int64  `json:"size"`
}

// MarshalJSON writes the token as a decimal string.
func (f ManifestFile) MarshalJSON() ([]byte, error) {
	return json.Marshal(manifestFileJSON{f.Name, strconv.FormatUint(f.Token, 10), f.Size})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (f *ManifestFile) UnmarshalJSON(data []byte) error {
	var j manifestFileJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	token, err := strconv.ParseUint(j.Token, 10, 64)
	if err != nil {
		return fmt.Errorf("token of %q: %w", j.Name, err)
	}
	*f = ManifestFile{j.Name, token, j.Size}
	return nil
}

// Size is the sum of the files', in bytes: what whoever retrieves them will pay for.
func (m *Manifest) Size() int64 {
	var sum int64
	for _, f := range m.Files {
		sum += f.Size
	}
	return sum
}

// manifestMax bounds a manifest that is read, in bytes. 4,096 files with the longest names fit.
const manifestMax = 1 << 20

// parkedManifest is the name of a manifest among parked files, before its generation.
const parkedManifest = "manifest@"

// fileNameMax is the longest name of a file, in bytes. It is part of an FDNAME, which has room for 255.
const fileNameMax = 128

// checkFileName holds file names to the same characters as sessions' names, since both become part of an FDNAME.
func checkFileName(file string) error {
	var invalid *name.InvalidError
	if err := name.Check(file, fileNameMax); errors.As(err, &invalid) {
		return fmt.Errorf("holdfast: the file name %q can't be one: %s", file, invalid.Reason)
	}
	if strings.HasPrefix(file, parkedManifest) {
		return fmt.Errorf("holdfast: the file name %q can't be one: names that begin with %q are for manifests", file, parkedManifest)
	}
	return nil
}

// parseManifest reads a manifest and makes sure that it can be believed.
func parseManifest(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("the manifest can't be read: %w", err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("the manifest has version %d, and this program knows 1", m.Version)
	}
	if err := name.Check(m.Name, name.Max); err != nil {
		return nil, fmt.Errorf("the manifest: %w", err)
	}
	names, tokens := map[string]bool{}, map[uint64]bool{ManifestToken: true}
	var sum int64
	for _, f := range m.Files {
		if err := checkFileName(f.Name); err != nil {
			return nil, fmt.Errorf("the manifest: %w", err)
		}
		if names[f.Name] || tokens[f.Token] || f.Size < 0 || sum+f.Size < sum {
			return nil, fmt.Errorf("the manifest's entry for %q can't be", f.Name)
		}
		names[f.Name], tokens[f.Token] = true, true
		sum += f.Size
	}
	return m, nil
}
