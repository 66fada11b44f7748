// SPDX-License-Identifier: MIT

package varlink

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	for _, tt := range []struct {
		data string
		ok   bool
	}{
		{`{}`, true},
		{" \t\r\n{ } ", true},
		{`{"a":"[[[[{{{{"}`, true},
		{deep(maxDepth), true},
		{deep(maxDepth + 1), false},
		{strings.Repeat("[", 60000), false},
		{``, false},
		{` `, false},
		{`null`, false},
		{`[]`, false},
		{`"{}"`, false},
		{`{}{}`, false},
		{`{"a":1,}`, false},
		{`{"a":"` + "\xff" + `"}`, false},
		{`{"a":"` + "\xed\xa0\x80" + `"}`, false},
		{"{\"a\":\"\n\"}", false},
	} {
		if err := check([]byte(tt.data)); (err == nil) != tt.ok {
			t.Errorf("check(%.40q): %v", tt.data, err)
		}
	}
}

// FuzzMembers compares with encoding/json.
func FuzzMembers(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":"x","c":[1,{"d":null}],"e":{"f":true},"\u0067":-1.5e3}`))
	f.Add([]byte(` { "a" : "\"}],:\\" , "b" : [ ] } `))
	f.Add([]byte(`{"":"","a":{"a":[[],{}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if check(data) != nil {
			return
		}
		want := map[string]json.RawMessage{}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q passed check: %v", data, err)
		}
		got := map[string]json.RawMessage{}
		for name, value := range members(data) {
			got[string(name)] = value
			if value[0] == '[' {
				var wantArray, gotArray []json.RawMessage
				if err := json.Unmarshal(value, &wantArray); err != nil {
					t.Fatal(err)
				}
				for name, element := range members(value) {
					if name != nil {
						t.Fatalf("an element of %q has the name %q", value, name)
					}
					gotArray = append(gotArray, element)
				}
				if !bytes.Equal(bytes.Join(raw(gotArray), []byte{0}), bytes.Join(raw(wantArray), []byte{0})) {
					t.Fatalf("elements of %q: %q, want %q", value, gotArray, wantArray)
				}
			}
		}
		if len(got) != len(want) {
			t.Fatalf("members of %q: %q, want %q", data, got, want)
		}
		for name := range want {
			if !bytes.Equal(got[name], want[name]) {
				t.Fatalf("%q in %q: %q, want %q", name, data, got[name], want[name])
			}
		}
	})
}

func raw(values []json.RawMessage) [][]byte {
	var all [][]byte
	for _, value := range values {
		all = append(all, value)
	}
	return all
}
