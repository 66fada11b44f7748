// SPDX-License-Identifier: MIT

package kimage

import (
	"fmt"
	"slices"
	"strings"
)

// Kernel is what is known of a kernel: the one in an image, or the running one.
type Kernel struct {
	// Release is that of uname -r, Banner the line "Linux version …", which also has who built it, and when. Empty: not known.
	Release, Banner string
	// Config is nil if it isn't known; ConfigFrom says what it was read from.
	Config     Config
	ConfigFrom string
	// Formats are what the kernel hands over, and takes, in the order of their names. FormatsFrom says where they were found.
	// With Complete, one that isn't among them isn't in the kernel (but may be in one of its modules); without, nothing is known of it.
	Formats     []Format
	FormatsFrom string
	Complete    bool

	// symbols are names from /proc/kallsyms, of the running kernel only.
	symbols map[string]bool
}

// Format is one of the formats that two kernels have to agree on: KHO's, LUO's, that of a type of file, or of state that
// files share. The next kernel compares the whole string, and takes only one that it has itself.
type Format struct {
	// Name is Compatible without the version: "kho", "luo", "memfd".
	Name string
	// Compatible is the compatibility string: "kho-v4", "luo-v5", "memfd-v2".
	Compatible string
}

// The names of formats that are known to be in kernels. Others are found by their struct liveupdate_file_handler.
const (
	KHO   = "kho"
	LUO   = "luo"
	Memfd = "memfd"
)

var known = []string{KHO, LUO, "luo-session", "luo-flb", Memfd, "memblock", "reserve-mem"}

// Options of the kernel's configuration that matter to a live update.
const (
	KexecFile            = "CONFIG_KEXEC_FILE"
	KexecSig             = "CONFIG_KEXEC_SIG"
	KexecSigForce        = "CONFIG_KEXEC_SIG_FORCE"
	KexecHandover        = "CONFIG_KEXEC_HANDOVER"
	KexecHandoverDefault = "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT"
	LiveUpdate           = "CONFIG_LIVEUPDATE"
	LiveUpdateMemfd      = "CONFIG_LIVEUPDATE_MEMFD"
)

// Options are the above, in the order in which one needs the other.
var Options = []string{KexecFile, KexecSig, KexecSigForce, KexecHandover, KexecHandoverDefault, LiveUpdate, LiveUpdateMemfd}

// Answer is Yes, No or Unknown.
type Answer int

// Unknown means that nothing that could be read tells.
const (
	Unknown Answer = iota
	No
	Yes
)

func (a Answer) String() string { return [...]string{"unknown", "no", "yes"}[a] }

// traces are what options leave in a kernel: a format, and a function in /proc/kallsyms (kernel/liveupdate/kexec_handover.c,
// luo_session.c, mm/memfd_luo.c; kernel/kexec_file.c; Linux 7.2.13).
var traces = map[string]struct{ format, symbol string }{
	KexecHandover:   {KHO, "kho_add_subtree"},
	LiveUpdate:      {LUO, "luo_session_retrieve"},
	LiveUpdateMemfd: {Memfd, "memfd_luo_preserve"},
	KexecFile:       {"", "kexec_add_buffer"},
}

// Option says whether an option is on, and where that is known from. What was found in the kernel itself counts more than
// a file that says how it was configured.
func (k *Kernel) Option(name string) (answer Answer, from string) {
	trace := traces[name]
	if trace.format != "" {
		if len(k.formats(trace.format)) > 0 {
			return Yes, k.FormatsFrom
		}
		if k.Complete {
			return No, k.FormatsFrom
		}
	}
	switch k.Config[name] {
	case "y", "m":
		return Yes, k.ConfigFrom
	case "":
		if k.Config != nil {
			return No, k.ConfigFrom
		}
	}
	if trace.symbol != "" && k.symbols != nil {
		if k.symbols[trace.symbol] {
			return Yes, "/proc/kallsyms"
		}
		return No, "/proc/kallsyms"
	}
	// CONFIG_KEXEC_HANDOVER selects it (kernel/liveupdate/Kconfig).
	if name == KexecFile {
		if on, from := k.Option(KexecHandover); on == Yes {
			return Yes, from
		}
	}
	return Unknown, ""
}

func (k *Kernel) formats(name string) []string {
	var found []string
	for _, f := range k.Formats {
		if f.Name == name {
			found = append(found, f.Compatible)
		}
	}
	return found
}

func (k *Kernel) setFormats(formats []Format, from string, complete bool) {
	slices.SortFunc(formats, func(a, b Format) int { return strings.Compare(a.Compatible, b.Compatible) })
	k.Formats, k.FormatsFrom, k.Complete = slices.Compact(formats), from, complete
}

// Side is what one of two kernels has of a format.
type Side struct {
	// Has says whether it has the format at all. If Yes and Compatible is empty, the version isn't known.
	Has        Answer
	Compatible []string
}

func (s Side) String() string {
	switch {
	case len(s.Compatible) > 0:
		return "has " + strings.Join(s.Compatible, ", ")
	case s.Has == Yes:
		return "has it in a version that isn't known"
	case s.Has == No:
		return "doesn't have it"
	}
	return "isn't known to have it"
}

// Difference is a format in which one kernel can't follow another, or may not be able to.
type Difference struct {
	// Name is the format's: KHO or LUO, without which nothing crosses, or that of a type of file, of which then none crosses.
	Name          string
	Running, Next Side
	// Certain is false if too little is known to say that they differ.
	Certain bool
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: this kernel %s, the next one %s", d.Name, d.Running, d.Next)
}

// Compare says in what the next kernel can't take what the running one hands over; nothing, if it takes all. KHO and LUO
// come first, and are there unless both kernels are known to agree on them. Types of files that only the next kernel has are no
// difference.
func Compare(running, next *Kernel) []Difference {
	names := []string{KHO, LUO, Memfd}
	for _, f := range running.Formats {
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	var found []Difference
	for _, name := range names {
		d := Difference{Name: name, Running: running.side(name), Next: next.side(name)}
		switch {
		case d.Running.Has == No && name != KHO && name != LUO:
			continue
		case d.Running.Has == No || d.Next.Has == No:
			d.Certain = true
		case len(d.Running.Compatible) == 0 || len(d.Next.Compatible) == 0:
		case slices.ContainsFunc(d.Running.Compatible, func(c string) bool { return !slices.Contains(d.Next.Compatible, c) }):
			d.Certain = true
		default:
			continue
		}
		found = append(found, d)
	}
	return found
}

func (k *Kernel) side(name string) Side { return Side{k.has(name), k.formats(name)} }

// has says whether a kernel has a format, in whatever version.
func (k *Kernel) has(name string) Answer {
	if len(k.formats(name)) > 0 {
		return Yes
	}
	if k.Complete {
		return No
	}
	for option, trace := range traces {
		if trace.format == name {
			answer, _ := k.Option(option)
			return answer
		}
	}
	return Unknown
}
