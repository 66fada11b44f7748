// SPDX-License-Identifier: MIT

package check

import (
	"cmp"
	"fmt"
	"slices"
)

// Severity is OK, Warning or Error, as in io.holdfast.Update.
type Severity string

// An Error stops an update. A Warning is for somebody to look at: it may go well. OK is what was found right.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Error   Severity = "error"
)

// Finding is one thing that was looked at.
type Finding struct {
	// ID is a stable word for the thing. Several findings may have the same.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Text is what was found; Hint what to do about it, or empty.
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func ok(id, format string, args ...any) []Finding {
	return []Finding{{id, OK, fmt.Sprintf(format, args...), ""}}
}

func warning(id, hint, format string, args ...any) []Finding {
	return []Finding{{id, Warning, fmt.Sprintf(format, args...), hint}}
}

func failure(id, hint, format string, args ...any) []Finding {
	return []Finding{{id, Error, fmt.Sprintf(format, args...), hint}}
}

// rule looks at one thing.
type rule func(*System) []Finding

// kernelRules are about the two kernels, the others about what is meant to cross.
var (
	kernelRules = []rule{support, allowed, image, loadable, unifiedAlone, handover, orchestrator, fileTypes, commandLine, signature, initialRAM, scratch}
	hostRules   = []rule{loaded, systemdVersion, minimumUptime, inhibitDelay, exitrd, incoming, uncommitted, twoStores, storePreserved, storeRoom,
		notPreservable, memoryLimit, pinned, unretrieved, unseen}
)

// Findings are what the rules say, errors first.
func (s *System) Findings() []Finding { return s.apply(kernelRules, hostRules) }

// KernelFindings are those about the two kernels alone.
func (s *System) KernelFindings() []Finding { return s.apply(kernelRules) }

func (s *System) apply(lists ...[]rule) []Finding {
	findings := []Finding{}
	for _, list := range lists {
		for _, look := range list {
			findings = append(findings, look(s)...)
		}
	}
	rank := map[Severity]int{Error: 0, Warning: 1, OK: 2}
	slices.SortStableFunc(findings, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return findings
}

// Errors are the findings that stop an update.
func Errors(findings []Finding) (errors []Finding) {
	for _, f := range findings {
		if f.Severity == Error {
			errors = append(errors, f)
		}
	}
	return errors
}
