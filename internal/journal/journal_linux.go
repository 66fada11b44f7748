// SPDX-License-Identifier: MIT

// Package journal logs to systemd's journal with fields, or to standard error where that isn't the journal's.
package journal

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// New returns a logger, and a function that waits until what was logged has been handed over, for a second at most.
//
// Attributes become fields in the journal: owner is HOLDFAST_OWNER. Writing to the journal happens on a goroutine of
// its own, and what it can't take in time is dropped and counted: journald may stand still, above all while the host
// is being stopped, and who waits for an answer shall not wait for it.
func New(level slog.Level) (log *slog.Logger, flush func()) {
	if ours, err := journal.StderrIsJournalStream(); err != nil || !ours {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), func() {}
	}
	w := &writer{entries: make(chan entry, 1024)}
	go w.run()
	return slog.New(&handler{level: level, writer: w}), w.flush
}

type entry struct {
	record  slog.Record
	attrs   []slog.Attr
	flushed chan<- struct{}
}

type writer struct {
	entries chan entry
	dropped atomic.Int64
}

func (w *writer) run() {
	for e := range w.entries {
		if e.flushed != nil {
			close(e.flushed)
			continue
		}
		if n := w.dropped.Swap(0); n > 0 {
			journal.Send(fmt.Sprintf("%d log lines were dropped: the journal did not take them in time", n), journal.PriWarning, nil)
		}
		// There is nobody to tell if the journal is gone.
		_ = e.send()
	}
}

func (w *writer) flush() {
	flushed := make(chan struct{})
	timeout := time.After(time.Second)
	select {
	case w.entries <- entry{flushed: flushed}:
		select {
		case <-flushed:
		case <-timeout:
		}
	case <-timeout:
	}
}

type handler struct {
	level  slog.Level
	writer *writer
	attrs  []slog.Attr
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle leaves it to the writer to make text of the record: somebody waits for an answer.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.writer.entries <- entry{record: r, attrs: h.attrs}:
	default:
		h.writer.dropped.Add(1)
	}
	return nil
}

func (e *entry) send() error {
	priority := journal.PriDebug
	switch {
	case e.record.Level >= slog.LevelError:
		priority = journal.PriErr
	case e.record.Level >= slog.LevelWarn:
		priority = journal.PriWarning
	case e.record.Level >= slog.LevelInfo:
		priority = journal.PriInfo
	}
	fields := make(map[string]string, e.record.NumAttrs()+len(e.attrs))
	text := []byte(e.record.Message)
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		text = append(append(append(text, ' '), a.Key...), '=')
		text = strconv.AppendQuote(text, value)
		fields[field(a.Key)] = value
		return true
	}
	for _, a := range e.attrs {
		add(a)
	}
	e.record.Attrs(add)
	return journal.Send(string(text), priority, fields)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.level, h.writer, append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup drops the group: fields of the journal are flat, and nothing here is grouped.
func (h *handler) WithGroup(string) slog.Handler { return h }

// field makes a journal field's name of an attribute's: kernelName is HOLDFAST_KERNEL_NAME.
func field(key string) string {
	var b strings.Builder
	b.WriteString("HOLDFAST_")
	for _, c := range key {
		switch {
		case c >= 'a' && c <= 'z':
			b.WriteRune(c - 'a' + 'A')
		case c >= 'A' && c <= 'Z':
			b.WriteRune('_')
			b.WriteRune(c)
		case c >= '0' && c <= '9':
			b.WriteRune(c)
		default:
			b.WriteRune('_')
		}
	}
	return b.String()
}
