// SPDX-License-Identifier: MIT

package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// maxPattern bounds patterns and owners, in bytes. A cgroup's component has at most 255 (NAME_MAX).
const maxPattern = 1024

// inUnits are the characters of unit names, and so of what a capture takes (VALID_CHARS_WITH_AT in
// src/basic/unit-name.c, systemd 262).
const inUnits = `A-Za-z0-9:_.@\\-`

// pattern is a path or a name with parts left open. It always speaks of the whole: nothing may come before or after.
//
//   - any characters but /
//     #       one or more digits
//     {vm}    one or more characters of a unit's name, to be used in the owner
//     {vm:unescaped}   the same, with systemd's escapes (\x2d) undone
//
// What a capture takes must not be open to choice: who picks a part of a unit's name could else have it taken for
// another. So the path's component that a capture is in has no other part but # that could grow into it.
type pattern struct {
	text     string
	regexp   *regexp.Regexp
	captures []capture
}

type capture struct {
	name      string
	unescaped bool
}

// literal is what a pattern names outright: slices and plain directories have more characters than units.
var literal = regexp.MustCompile(`^[+,=~%` + inUnits + `]+$`)

var partName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

func parsePattern(text string) (pattern, error) {
	p := pattern{text: text}
	if text == "" {
		return p, errors.New("it is empty")
	}
	if len(text) > maxPattern {
		return p, fmt.Errorf("it has %d bytes, the most are %d", len(text), maxPattern)
	}
	var whole strings.Builder
	whole.WriteString(`\A`)
	for i, component := range strings.Split(text, "/") {
		if i > 0 {
			whole.WriteByte('/')
		}
		parts, err := parts(component)
		if err != nil {
			return p, err
		}
		for j, part := range parts {
			switch {
			case part == "*" && len(parts) == 1:
				whole.WriteString("[^/]+")
			case part == "*":
				whole.WriteString("[^/]*")
			case part == "#":
				whole.WriteString("[0-9]+")
			case part[0] == '{':
				c, err := parseCapture(part)
				if err != nil {
					return p, err
				}
				if p.has(c.name) {
					return p, fmt.Errorf("{%s} is there twice", c.name)
				}
				if err := alone(parts, j); err != nil {
					return p, err
				}
				p.captures = append(p.captures, c)
				whole.WriteString("([" + inUnits + "]+)")
			default:
				if !literal.MatchString(part) {
					return p, fmt.Errorf("%q has a character that can't be in it; * # {name} are what a pattern may leave open", part)
				}
				whole.WriteString(regexp.QuoteMeta(part))
			}
		}
	}
	whole.WriteString(`\z`)
	var err error
	p.regexp, err = regexp.Compile(whole.String())
	return p, err
}

// parts cuts a component at what it leaves open.
func parts(component string) ([]string, error) {
	var parts []string
	for rest := component; rest != ""; {
		n := strings.IndexAny(rest, "*#{")
		switch {
		case n < 0:
			n = len(rest)
		case n > 0:
		case strings.HasPrefix(rest, "**"):
			return nil, errors.New("there is no **: a * never crosses a /, so that every level is written out")
		case rest[0] == '{':
			end := strings.IndexByte(rest, '}')
			if end < 0 {
				return nil, fmt.Errorf("%q has no closing }", rest)
			}
			n = end + 1
		default:
			n = 1
		}
		parts = append(parts, rest[:n])
		rest = rest[n:]
	}
	return parts, nil
}

func parseCapture(part string) (capture, error) {
	name, form, formed := strings.Cut(part[1:len(part)-1], ":")
	if !partName.MatchString(name) {
		return capture{}, fmt.Errorf("%s: the name of a part has small letters, digits and _", part)
	}
	if formed && form != "unescaped" {
		return capture{}, fmt.Errorf("%s: only :unescaped can follow the name", part)
	}
	return capture{name, formed}, nil
}

// alone makes sure that there is one way only for the capture parts[at] to match.
func alone(parts []string, at int) error {
	endsInDigit := func(i int) bool { // or may do so
		return i < 0 || i >= len(parts) || parts[i] == "#" || parts[i][0] == '{' ||
			digit(parts[i][0]) || digit(parts[i][len(parts[i])-1])
	}
	for i, part := range parts {
		switch {
		case i == at:
		case part == "*" || part[0] == '{':
			return fmt.Errorf("%s and %s are in one component, so what each takes is open to choice; write # where a number is", parts[min(i, at)], parts[max(i, at)])
		case part == "#" && (i > 0 && endsInDigit(i-1) || i+1 < len(parts) && endsInDigit(i+1)):
			return fmt.Errorf("# stands beside a digit, another # or %s, so what each takes is open to choice", parts[at])
		}
	}
	return nil
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func (p *pattern) has(name string) bool {
	return slices.ContainsFunc(p.captures, func(c capture) bool { return c.name == name })
}

// match tells whether the pattern is of text, the whole of it, and what its captures took.
func (p *pattern) match(text string) (taken []string, ok bool) {
	// Outside of holdfastd's cgroup namespace, paths begin with "/..".
	if strings.Contains(text+"/", "/../") {
		return nil, false
	}
	found := p.regexp.FindStringSubmatch(text)
	if found == nil {
		return nil, false
	}
	return found[1:], true
}

// owner is the name that a rule maps to, with captures to be put in.
type owner struct {
	text  string
	parts []string
}

// parseOwner takes a mapped owner apart. It never begins with /, as the owners made of units do, nor with what
// stands for users. Whatever the captures take, the first component is the rule's own.
func parseOwner(text string) (owner, error) {
	o := owner{text: text}
	first, _, _ := strings.Cut(text, "/")
	switch {
	case text == "":
		return o, errors.New("it is empty")
	case first == "":
		return o, errors.New("it begins with /, as only the owners do that are made of units' names")
	case first == "uid":
		return o, errors.New("uid/… is for the owners of holdfastd --uid-owners")
	case strings.ContainsRune(first, '{'):
		return o, fmt.Errorf("%s is all or part of its first component, which must be fixed, as in qemu/%s", first, first)
	}
	example := ""
	parts, err := parts(text)
	if err != nil {
		return o, err
	}
	for _, part := range parts {
		switch {
		case part == "*" || part == "#":
			return o, fmt.Errorf("%s leaves open whose the session is; take it as {name} in the cgroup, and put that here", part)
		case part[0] == '{':
			c, err := parseCapture(part)
			if err != nil {
				return o, err
			}
			if c.unescaped {
				return o, fmt.Errorf("%s: write :unescaped in the cgroup, and here {%s}", part, c.name)
			}
			example += "x"
		default:
			example += part
		}
	}
	o.parts = parts
	return o, checkMapped(example)
}

var ownerComponent = regexp.MustCompile("^[" + inUnits + "]+$")

// checkMapped tells whether an owner can be one that a rule maps to.
func checkMapped(owner string) error {
	if len(owner) > maxOwner {
		return fmt.Errorf("it has %d bytes, the most are %d", len(owner), maxOwner)
	}
	for component := range strings.SplitSeq(owner, "/") {
		if !ownerComponent.MatchString(component) || strings.Trim(component, ".") == "" {
			return fmt.Errorf(`%q can't be a part of it: it has letters, digits and : _ . @ \ - between single /`, component)
		}
	}
	return nil
}

// maxOwner bounds a mapped owner, in bytes.
const maxOwner = 255

// of makes the owner of what p took of a path.
func (o *owner) of(p *pattern, taken []string) (string, error) {
	var made strings.Builder
	for _, part := range o.parts {
		if part[0] != '{' {
			made.WriteString(part)
			continue
		}
		i := slices.IndexFunc(p.captures, func(c capture) bool { return c.name == part[1:len(part)-1] })
		value := taken[i]
		if p.captures[i].unescaped {
			var err error
			if value, err = unescape(value); err != nil {
				return "", err
			}
		}
		// A / out of an escape would make it another owner's.
		if !ownerComponent.MatchString(value) || strings.Trim(value, ".") == "" {
			return "", fmt.Errorf("%s is %q, which can't be a part of an owner", part, value)
		}
		made.WriteString(value)
	}
	return made.String(), checkMapped(made.String())
}

// unescape undoes unit_name_escape (do_escape in src/basic/unit-name.c, systemd 262). It takes only what that makes, so
// that two different names never become one.
func unescape(escaped string) (string, error) {
	var plain strings.Builder
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		switch {
		case c == '\\':
			var b byte
			if n, err := fmt.Sscanf(escaped[i:min(i+4, len(escaped))], `\x%02x`, &b); n != 1 || err != nil ||
				escaped[i:min(i+4, len(escaped))] != fmt.Sprintf(`\x%02x`, b) || plainInUnits(b) {
				return "", fmt.Errorf("%q isn't what systemd-escape makes", escaped)
			}
			plain.WriteByte(b)
			i += 3
		case plainInUnits(c):
			plain.WriteByte(c)
		default: // "-" stands for a "/", and "@" is always escaped
			return "", fmt.Errorf("%q has a %q that isn't escaped", escaped, c)
		}
	}
	return plain.String(), nil
}

func plainInUnits(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || digit(c) || c == ':' || c == '_' || c == '.'
}
