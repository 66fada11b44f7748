// SPDX-License-Identifier: MIT

package varlink

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"
)

// maxDepth is how deeply the JSON of a message may be nested. The deepest of our interfaces needs 5.
const maxDepth = 32

// encode makes a frame of a message, with the NUL that ends it.
func encode(message any) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, 512))
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(message); err != nil {
		return nil, err
	}
	frame := b.Bytes()
	frame[len(frame)-1] = 0 // for the newline that Encode ends with
	return frame, nil
}

// check says whether data is a JSON object in valid UTF-8 that isn't nested too deeply. What else this file
// does relies on it.
func check(data []byte) error {
	// encoding/json would take invalid UTF-8 and turn it into U+FFFD.
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("JSON nested more than %d deep", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	if !json.Valid(data) {
		return errors.New("not valid JSON")
	}
	if !isObject(data) {
		return errors.New("not a JSON object")
	}
	return nil
}

func isObject(data []byte) bool {
	i := skipSpace(data, 0)
	return i < len(data) && data[i] == '{'
}

// decodeStrict puts the JSON object data, which passed check, into dst, a pointer to a struct. Unlike
// encoding/json it takes a name only as it is written, and only once, and refuses what the struct doesn't have,
// at every level. A field must be there and not null unless it is a pointer or its tag says omitempty or
// omitzero. The error is an InvalidParameter with the field's path from dst.
//
// A [json.RawMessage] in dst shares data's memory.
func decodeStrict(data []byte, dst any) *Error {
	if invalid, ok := decodeObject(data, reflect.ValueOf(dst).Elem(), ""); !ok {
		return InvalidParameter(invalid)
	}
	return nil
}

var (
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	rawMessage      = reflect.TypeFor[json.RawMessage]()
)

// decodeValue returns the path of what is invalid, if anything is.
func decodeValue(data []byte, dst reflect.Value, path string) (invalid string, ok bool) {
	t := dst.Type()
	p := reflect.PointerTo(t)
	switch {
	case t == rawMessage && !isNull(data):
		dst.SetBytes(data)
		return "", true
	case p.Implements(unmarshaler), p.Implements(textUnmarshaler):
	case t.Kind() == reflect.Pointer:
		dst.Set(reflect.New(t.Elem()))
		return decodeValue(data, dst.Elem(), path)
	case t.Kind() == reflect.Struct:
		return decodeObject(data, dst, path)
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		return decodeArray(data, dst, path)
	case t.Kind() == reflect.String && data[0] == '"':
		dst.SetString(string(unquote(data)))
		return "", true
	}
	if isNull(data) || json.Unmarshal(data, dst.Addr().Interface()) != nil {
		return path, false
	}
	return "", true
}

func decodeObject(data []byte, dst reflect.Value, path string) (invalid string, ok bool) {
	if !isObject(data) {
		return path, false
	}
	prefix := path
	if prefix != "" {
		prefix += "."
	}
	fields := fieldsOf(dst.Type())
	seen := make([]bool, len(fields.all))
	for name, value := range members(data) {
		i, known := fields.byName[string(name)]
		if !known || seen[i] {
			return prefix + string(name), false
		}
		seen[i] = true
		f := &fields.all[i]
		if f.optional && isNull(value) {
			continue
		}
		if invalid, ok := decodeValue(value, dst.Field(f.index), prefix+f.name); !ok {
			return invalid, false
		}
	}
	for i, f := range fields.all {
		if !f.optional && !seen[i] {
			return prefix + f.name, false
		}
	}
	return "", true
}

func decodeArray(data []byte, dst reflect.Value, path string) (invalid string, ok bool) {
	if i := skipSpace(data, 0); data[i] != '[' {
		return path, false
	}
	dst.Set(reflect.MakeSlice(dst.Type(), 0, 0))
	for _, value := range members(data) {
		dst.Grow(1)
		dst.SetLen(dst.Len() + 1)
		if invalid, ok := decodeValue(value, dst.Index(dst.Len()-1), path); !ok {
			return invalid, false
		}
	}
	return "", true
}

type field struct {
	name     string
	index    int
	optional bool
}

// fields are those of a struct that have a json tag.
type fields struct {
	all    []field
	byName map[string]int
}

var fieldCache sync.Map // *fields by reflect.Type

func fieldsOf(t reflect.Type) *fields {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.(*fields)
	}
	fs := &fields{byName: make(map[string]int)}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fs.byName[name] = len(fs.all)
		fs.all = append(fs.all, field{
			name:     name,
			index:    i,
			optional: f.Type.Kind() == reflect.Pointer || strings.Contains(options, "omit"),
		})
	}
	fieldCache.Store(t, fs)
	return fs
}

func isNull(value []byte) bool { return string(value) == "null" }

// members goes through an object's names and values, or an array's values, with nil for names. A name with
// escapes in it comes out unescaped.
func members(data []byte) func(yield func(name, value []byte) bool) {
	return func(yield func(name, value []byte) bool) {
		i := skipSpace(data, 0)
		object := data[i] == '{'
		for i = skipSpace(data, i+1); data[i] != '}' && data[i] != ']'; i = skipSpace(data, i) {
			if data[i] == ',' {
				i = skipSpace(data, i+1)
			}
			var name []byte
			if object {
				end := skipValue(data, i)
				name = unquote(data[i:end])
				i = skipSpace(data, end) // to the colon
				i = skipSpace(data, i+1) // to the value
			}
			end := skipValue(data, i)
			if !yield(name, data[i:end]) {
				return
			}
			i = end
		}
	}
}

func unquote(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var s string
	if err := json.Unmarshal(quoted, &s); err != nil {
		panic(fmt.Sprintf("varlink: a string that passed json.Valid: %v", err))
	}
	return []byte(s)
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the index after the value that begins at i.
func skipValue(data []byte, i int) int {
	depth, inString := 0, false
	for ; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			if inString = !inString; !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth == 0 {
				return i // the end of what contains a number or a literal
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case depth == 0 && (c == ',' || c == ':' || c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			return i
		}
	}
	return i
}
