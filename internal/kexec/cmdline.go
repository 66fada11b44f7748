// SPDX-License-Identifier: MIT

package kexec

import "strings"

// Needed are the parameters without which a kernel takes nothing over.
var Needed = []string{"kho", "liveupdate"}

// words takes a kernel's command line apart as next_arg() does (lib/cmdline.c, Linux 7.2.13): blanks within double quotes don't
// end a word. after is where "--" begins, behind which everything is init's, or the end.
func words(cmdline string) (list []string, after int) {
	for start := 0; start < len(cmdline); {
		if isBlank(cmdline[start]) {
			start++
			continue
		}
		end, quoted := start, false
		for ; end < len(cmdline) && (quoted || !isBlank(cmdline[end])); end++ {
			if cmdline[end] == '"' {
				quoted = !quoted
			}
		}
		word := cmdline[start:end]
		if word == "--" {
			return list, start
		}
		list = append(list, word)
		start = end
	}
	return list, len(cmdline)
}

// isBlank is isspace() without the letters beyond ASCII.
func isBlank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// Param is the value of the last word of that name on a kernel's command line. found is false where there is none; of a word
// without "=" the value is empty.
func Param(cmdline, name string) (value string, found bool) {
	list, _ := words(cmdline)
	for _, word := range list {
		word = strings.Trim(word, `"`)
		if n, v, _ := strings.Cut(word, "="); n == name {
			value, found = strings.Trim(v, `"`), true
		}
	}
	return value, found
}

// On says whether a parameter is switched on or off by a command line, or, with said false, not mentioned in a way that counts. Of
// several words the last one counts that means something (kstrtobool() in lib/kstrtox.c, Linux 7.2.13).
func On(cmdline, name string) (on, said bool) {
	list, _ := words(cmdline)
	for _, word := range list {
		n, v, _ := strings.Cut(strings.Trim(word, `"`), "=")
		if v = strings.ToLower(strings.Trim(v, `"`)); n != name || v == "" {
			continue
		}
		switch {
		case strings.IndexByte("eyt1", v[0]) >= 0, strings.HasPrefix(v, "on"):
			on, said = true, true
		case strings.IndexByte("dnf0", v[0]) >= 0, strings.HasPrefix(v, "of"):
			on, said = false, true
		}
	}
	return on, said
}

// Enable returns the command line with what is missing for a live update, and what that was: "kho=on", "liveupdate=on". It is
// put before a "--", as what comes behind is for init. A word that switches one off stays, and counts no more.
func Enable(cmdline string) (enabled string, added []string) {
	for _, name := range Needed {
		if on, _ := On(cmdline, name); !on {
			added = append(added, name+"=on")
		}
	}
	if added == nil {
		return cmdline, nil
	}
	_, after := words(cmdline)
	parts := append([]string{strings.TrimSpace(cmdline[:after])}, added...)
	parts = append(parts, strings.TrimSpace(cmdline[after:]))
	return strings.TrimSpace(strings.Join(parts, " ")), added
}

// Reuse is the running kernel's command line as it is good for the next: without the boot loader's word for the image that it
// started.
func Reuse(cmdline string) string {
	list, after := words(cmdline)
	var kept []string
	for _, word := range list {
		if !strings.HasPrefix(word, "BOOT_IMAGE=") {
			kept = append(kept, word)
		}
	}
	return strings.TrimSpace(strings.Join(append(kept, strings.TrimSpace(cmdline[after:])), " "))
}
