// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/oneline"
	"github.com/holdfast-project/holdfast/internal/update"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const updateInterface = "io.holdfast.Update."

// dialUpdated connects to holdfast-updated.
func dialUpdated(ctx context.Context) (*varlink.Client, error) {
	conn, err := varlink.Dial(ctx, cmp.Or(os.Getenv("HOLDFAST_UPDATE_ADDRESS"), holdfast.UpdateAddress))
	if err != nil {
		return nil, fmt.Errorf("%w; is holdfast-updated.socket started? (systemctl enable --now holdfast-updated.socket holdfast-updated.service)", err)
	}
	return conn, nil
}

// participant, finding and outcome are those of io.holdfast.Update.
type participant struct {
	Name      string       `json:"name"`
	Owner     string       `json:"owner"`
	Required  bool         `json:"required"`
	State     update.State `json:"state"`
	Reason    string       `json:"reason,omitempty"`
	SinceUSec int64        `json:"sinceUSec,omitempty"`
}

func (p participant) String() string {
	does := "is " + string(p.State)
	if p.State == update.Vetoed {
		does = "vetoes"
	}
	text := fmt.Sprintf("%s (%s) %s", p.Name, p.Owner, does)
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	return text
}

type finding struct {
	ID       string `json:"id"`
	Severity string `json:"severity"`
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"`
}

func (f finding) String() string {
	if f.Hint == "" {
		return f.Text
	}
	return f.Text + " (" + f.Hint + ")"
}

type outcome struct {
	Owner  string `json:"owner"`
	Name   string `json:"name"`
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

// roundStatus is a reply to Start, and with the rest one to Status.
type roundStatus struct {
	Round        int           `json:"round"`
	Phase        update.Phase  `json:"phase"`
	Reason       string        `json:"reason,omitempty"`
	Participants []participant `json:"participants"`
	Loaded       bool          `json:"loaded"`
	Outcomes     []outcome     `json:"outcomes"`

	at time.Time // when it came
}

// refusedUpdate is what holdfast-updated answered instead.
type refusedUpdate struct {
	kind         string
	Phase        update.Phase  `json:"phase"`
	Reason       string        `json:"reason"`
	Rule         string        `json:"rule"`
	Participants []participant `json:"participants"`
	Findings     []finding     `json:"findings"`
	Parameter    string        `json:"parameter"`
}

// refusal makes err a *refusedUpdate, if it is an answer.
func refusal(err error) error {
	var answered *varlink.Error
	if !errors.As(err, &answered) {
		return err
	}
	r := &refusedUpdate{kind: strings.TrimPrefix(answered.Name, updateInterface)}
	if err := answered.Decode(r); err != nil {
		return err
	}
	return r
}

func texts[T fmt.Stringer](of []T) string {
	var all []string
	for _, t := range of {
		all = append(all, t.String())
	}
	return strings.Join(all, "; ")
}

// kernelStays is in the reason where dropping the loaded kernel failed (update.Rounds.Dropped).
const kernelStays = "the next kernel is still loaded"

func (r *refusedUpdate) Error() string {
	text := r.text()
	if _, rest, found := strings.Cut(r.Reason, kernelStays); found {
		text += "; " + kernelStays + rest
	}
	return text
}

func (r *refusedUpdate) text() string {
	switch r.kind {
	case "NothingLoaded":
		return "no kernel is loaded to switch to; name one: holdfast update KERNEL"
	case "Blocked":
		return "refused, since memory would be lost: " + texts(r.Findings) + "; --force goes on in spite of it"
	case "Vetoed":
		return "called off, and everything runs on: " + texts(r.Participants) + "; --without NAME does not wait for one"
	case "TimedOut":
		return "called off, and everything runs on: " + texts(r.Participants) + "; --timeout gives more time, --without NAME does not wait for one"
	case "InProgress":
		return fmt.Sprintf("an update is %s already; see holdfast status --watch", r.Phase)
	case "NotPermitted":
		return "not permitted: " + r.Reason
	case "NoReport":
		return "there was no update yet"
	case varlink.ErrMethodNotImplemented, varlink.ErrMethodNotFound:
		return "the holdfast-updated that runs here does not know how to; is it of another version?"
	case varlink.ErrInvalidParameter:
		return fmt.Sprintf("holdfast-updated does not accept the parameter %q", r.Parameter)
	case "io.systemd.System":
		return "holdfast-updated could not do it, for a reason that its log has (journalctl -u holdfast-updated)"
	}
	return r.kind
}

// exitStatus of an update that ended so.
func (r *refusedUpdate) exitStatus() int {
	switch r.kind {
	case "Blocked":
		return 3
	case "Vetoed", "TimedOut":
		return 4
	}
	return 1
}

// callUpdated makes one call.
func callUpdated(ctx context.Context, conn *varlink.Client, method string, in any, fds []int, out any) error {
	got, err := conn.Call(ctx, updateInterface+method, in, fds, out)
	fd.CloseAll(got)
	return refusal(err)
}

// follow calls a method that answers with each change, until the last one.
func follow(ctx context.Context, conn *varlink.Client, method string, in any, each func(roundStatus) error) error {
	return refusal(conn.CallMore(ctx, updateInterface+method, in, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
		fd.CloseAll(fds)
		s := roundStatus{at: time.Now()}
		if err := json.Unmarshal(parameters, &s); err != nil {
			return err
		}
		return each(s)
	}))
}

// terminal is where progress is drawn over and over.
type terminal struct {
	w     io.Writer
	lines int // drawn last
}

// terminalOn is nil where f isn't a terminal.
func terminalOn(f *os.File) *terminal {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return &terminal{w: f}
}

// draw puts the lines where the last ones were.
func (t *terminal) draw(lines []string) {
	if t == nil {
		return
	}
	width := 80
	if f, ok := t.w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			width = int(size.Col)
		}
	}
	var b strings.Builder
	if t.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", t.lines)
	}
	for _, line := range lines {
		if runes := []rune(line); len(runes) > width-1 {
			line = string(runes[:width-2]) + "…"
		}
		b.WriteString(line + "\n")
	}
	t.lines = len(lines)
	io.WriteString(t.w, b.String())
}

// participantCount is how many there are, in words.
func participantCount(n int) string {
	if n == 1 {
		return "1 participant"
	}
	return fmt.Sprintf("%d participants", n)
}

// shownMost is how many participants are drawn.
const shownMost = 16

// lines are the status for people: who is waited for, and since when.
func (s roundStatus) lines() []string {
	ready := 0
	for _, p := range s.Participants {
		if p.State == update.Ready {
			ready++
		}
	}
	head := fmt.Sprintf("update %d: %s", s.Round, s.Phase)
	switch s.Phase {
	case update.Idle:
		head = "no update since holdfast-updated started; " + participantCount(len(s.Participants))
	case update.Preparing, update.Prepared, update.Quiescing, update.Committing:
		head += fmt.Sprintf(", %d of %d ready", ready, len(s.Participants))
	case update.Aborted:
		head += fmt.Sprintf(", %d of %d run again", ready, len(s.Participants))
	}
	if s.Reason != "" {
		head += ": " + s.Reason
	}
	lines := []string{oneline.Of(head)}
	if s.Phase.Over() {
		return lines
	}
	more := 0
	for _, p := range s.Participants {
		if p.State == update.Ready {
			continue
		}
		if len(lines) > shownMost {
			more++
			continue
		}
		need := "optional"
		if p.Required {
			need = "required"
		}
		since := time.Duration(p.SinceUSec)*time.Microsecond + time.Since(s.at)
		line := fmt.Sprintf("  %-8s %s, %s (%s), %s", p.State, since.Round(time.Second), p.Name, p.Owner, need)
		if p.Reason != "" {
			line += ": " + p.Reason
		}
		lines = append(lines, oneline.Of(line))
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	return lines
}

// live draws the last status each second, and each new one, until stop is called.
func live(t *terminal) (show func(roundStatus), stop func()) {
	if t == nil {
		return func(roundStatus) {}, func() {}
	}
	news, done, drawn := make(chan roundStatus), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(drawn)
		second := time.NewTicker(time.Second)
		defer second.Stop()
		var last *roundStatus
		for {
			select {
			case s := <-news:
				last = &s
			case <-second.C:
			case <-done:
				return
			}
			if last != nil {
				t.draw(last.lines())
			}
		}
	}()
	return func(s roundStatus) { news <- s }, func() { close(done); <-drawn }
}
