// SPDX-License-Identifier: MIT

package holdfast

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestManifestAsItIsWritten(t *testing.T) {
	m := Manifest{Version: 1, Owner: "/vmm.service", Name: "ram", Generation: 2,
		Files: []ManifestFile{{Name: "ram", Token: 11975621476549492130, Size: 64 << 20}}}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"owner":"/vmm.service","name":"ram","generation":2,` +
		`"files":[{"name":"ram","token":"11975621476549492130","size":67108864}]}`
	if string(data) != want {
		t.Errorf("%s\nwant %s", data, want)
	}
	back, err := parseManifest(data)
	if err != nil || !reflect.DeepEqual(*back, m) {
		t.Errorf("%+v, %v", back, err)
	}
	if back.Size() != 64<<20 {
		t.Errorf("size %d", back.Size())
	}
}

func TestManifestThatCantBeBelieved(t *testing.T) {
	file := func(name, token string, size string) string {
		return `{"name":"` + name + `","token":"` + token + `","size":` + size + `}`
	}
	with := func(files ...string) string {
		return `{"version":1,"owner":"/a.service","name":"n","generation":1,"files":[` + strings.Join(files, ",") + `]}`
	}
	for _, bad := range []string{
		``, `[]`, `{}`, `{"version":2,"name":"n"}`, `{"version":1,"name":"../n"}`, `{"version":1,"name":""}`,
		with(file("f", "0", "1")),                                                          // the manifest's own token
		with(file("f", "1", "1"), file("f", "2", "1")),                                     // one name twice
		with(file("f", "1", "1"), file("g", "1", "1")),                                     // one token twice
		with(file("f", "1", "-1")),                                                         // no size
		with(file("f", "1", "9223372036854775807"), file("g", "2", "9223372036854775807")), // a sum that overflows
		with(file("f", "18446744073709551616", "1")), with(file("f", "x", "1")), with(file("a/b", "1", "1")), with(file("", "1", "1")),
	} {
		if m, err := parseManifest([]byte(bad)); err == nil {
			t.Errorf("%s was believed: %+v", bad, m)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"owner":"/a.service","name":"n","generation":1,"files":[{"name":"f","token":"1","size":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		if m.Size() < 0 {
			t.Errorf("size %d of %+v", m.Size(), m)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseManifest(again); err != nil || back.Generation != m.Generation || len(back.Files) != len(m.Files) {
			t.Errorf("%+v came back as %+v, %v", m, back, err)
		}
	})
}
