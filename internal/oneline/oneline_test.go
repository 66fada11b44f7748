// SPDX-License-Identifier: MIT

package oneline

import "testing"

func TestOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "",
		"Größe: 5 µs, 東京, ‘no’":       "Größe: 5 µs, 東京, ‘no’",
		"a\nb\r\tc":                   "a b  c",
		"\x1b[2J\x1b]0;title\a":       " [2J ]0;title ",
		"\u009b2J\u0085\x7f":          " 2J  ",
		"user\u202etxt.exe\u2066x":    "usertxt.exex",
		"in\u200bvisi\u00adble\ufeff": "invisible",
		"a\u2028b\u2029c":             "a b c",
		"\xff\xfe":                    "\ufffd\ufffd",
	} {
		if got := Of(text); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}
