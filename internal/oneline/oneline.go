// SPDX-License-Identifier: MIT

// Package oneline shows on a terminal, or in a log, what somebody else wrote: a program's name, its reason, a file's word.
package oneline

import (
	"strings"
	"unicode"
)

// Of makes one line of text, with nothing in it that a terminal takes for more than text: no control characters and so no
// escape sequences, nothing invisible, nothing that turns the direction of what follows (Unicode's category Cf).
func Of(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case unicode.Is(unicode.Cf, c):
			return -1
		case !unicode.IsGraphic(c):
			return ' '
		}
		return c
	}, text)
}
