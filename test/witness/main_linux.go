// SPDX-License-Identifier: MIT

// Command witness is a participant with a parked session that tells of each thing that happens to it, in the moment in which it
// happens, by itself: to the kernel's log, which is on the console at once and stamps it, and to a file, which outlasts the
// kernel. It is for the tests, which compare the report of an update with what witnesses saw.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/timeline"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

// session and file are its memory's names.
const session, file = "ram", "memory"

func main() {
	log.SetFlags(0)
	log.SetPrefix("witness: ")
	w := &witness{}
	flag.StringVar(&w.name, "name", "witness", "the participant's `NAME`")
	flag.StringVar(&w.record, "record", "", "the `FILE` that what happens is appended to")
	flag.DurationVar(&w.prepare, "prepare", 0, "how long it prepares")
	flag.BoolVar(&w.store, "store", false, "keep the session in the unit's own fd store, not parked")
	clock := flag.Int("clock", 0, "tell of the clock this `NUMBER` of times, and nothing else")
	poll := flag.Bool("poll", false, "ask for the update's status until one begins; tell when it hadn't yet, and end")
	flag.Parse()
	var err error
	if w.kmsg, err = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err != nil {
		log.Fatal(err)
	}
	for range *clock {
		w.tell("clock")
		time.Sleep(10 * time.Millisecond)
	}
	switch {
	case *clock > 0:
	case *poll:
		err = w.poll(context.Background())
	default:
		err = w.run()
	}
	if err != nil {
		log.Fatal(err)
	}
}

type witness struct {
	name, record string
	prepare      time.Duration
	store        bool
	kmsg         *os.File
}

// tell says what happens now. The lines are
//
//	witness: NAME WHAT CLOCK_BOOTTIME in seconds
func (w *witness) tell(what string) { w.tellOf(what, timeline.Now()) }

func (w *witness) tellOf(what string, at time.Duration) {
	said := fmt.Sprintf("witness: %s %s %.6f\n", w.name, what, at.Seconds())
	// One write is one line. Its level is that of an alert, which every console shows.
	if _, err := w.kmsg.WriteString("<1>" + said); err != nil {
		log.Fatal(err)
	}
	if w.record == "" {
		return
	}
	f, err := os.OpenFile(w.record, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.WriteString(said)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		log.Fatal(err)
	}
}

func (w *witness) run() error {
	ctx := context.Background()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := w.keep(ctx, client); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- w.join(ctx) }()
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	select {
	case <-stop:
		w.tell("stopped")
		return nil
	case err := <-ended:
		return err
	}
}

// poll tells of the last moment in which no update was in progress.
func (w *witness) poll(ctx context.Context) error {
	conn, err := varlink.Dial(ctx, holdfast.UpdateAddress)
	if err != nil {
		return err
	}
	defer conn.Close()
	for idle := timeline.Now(); ; time.Sleep(20 * time.Millisecond) {
		asked := timeline.Now()
		var status struct{ Phase string }
		if _, err := conn.Call(ctx, "io.holdfast.Update.Status", nil, nil, &status); err != nil {
			return err
		}
		switch status.Phase {
		case "idle", "aborted", "resumed":
			idle = asked
		default:
			w.tellOf("idle", idle)
			return nil
		}
	}
}

// join takes part. It doesn't use the library for that, so as to see when its votes have arrived. A holdfast-updated that is
// started anew is joined anew.
func (w *witness) join(ctx context.Context) error {
	for {
		conn, err := varlink.Dial(ctx, holdfast.UpdateAddress)
		if err != nil {
			return err
		}
		err = conn.CallMore(ctx, "io.holdfast.Update.Join", map[string]any{"name": w.name}, nil, func(parameters json.RawMessage, fds []*fd.FD) error {
			fd.CloseAll(fds)
			var n struct {
				ID, Phase string
				Round     int
			}
			if err := json.Unmarshal(parameters, &n); err != nil {
				return err
			}
			switch n.Phase {
			case "preparing":
				w.tell("preparing")
				go func() {
					time.Sleep(w.prepare) // which is what it does
					w.vote(ctx, n.ID, n.Phase, n.Round, "prepared")
				}()
			case "quiescing":
				w.tell("quiescing")
				w.vote(ctx, n.ID, n.Phase, n.Round, "quiesced")
			}
			return nil
		})
		conn.Close()
		log.Print("joins again: ", err)
	}
}

// vote says that it is ready. It tells so before, and again when that has arrived.
func (w *witness) vote(ctx context.Context, id, phase string, round int, what string) {
	w.tell(what)
	conn, err := varlink.Dial(ctx, holdfast.UpdateAddress)
	if err == nil {
		defer conn.Close()
		_, err = conn.Call(ctx, "io.holdfast.Update.Vote", map[string]any{"id": id, "round": round, "phase": phase, "ready": true}, nil, nil)
	}
	if err != nil {
		log.Fatal(err)
	}
	w.tell(what + "-arrived")
}

// keep has a session with a page of memory kept: the one that was kept before, or else a new one.
func (w *witness) keep(ctx context.Context, client *holdfast.Client) error {
	w.tell("asking")
	committed, err := w.back(ctx, client)
	if err != nil {
		return err
	}
	var kept *holdfast.Session
	if committed == nil {
		if kept, err = begin(ctx, client); err != nil {
			return err
		}
	} else {
		w.tell("back")
		files, err := committed.Retrieve()
		if err != nil {
			return err
		}
		for _, f := range files {
			defer f.Close()
		}
		var options []holdfast.RenewOption
		if !w.store {
			options = append(options, holdfast.WithParking())
		}
		if kept, err = holdfast.Renew(ctx, client, committed, options...); err != nil {
			return err
		}
	}
	defer kept.Close()
	if w.store {
		return kept.Store(ctx)
	}
	return kept.Park(ctx, client)
}

// back is what was kept before; nil if nothing was.
func (w *witness) back(ctx context.Context, client *holdfast.Client) (*holdfast.Committed, error) {
	if !w.store {
		committed, err := client.Reclaim(ctx, session)
		if errors.Is(err, holdfast.ErrNoSuchSession) {
			return nil, nil
		}
		return committed, err
	}
	restored, err := holdfast.Restored(ctx, client)
	if err != nil || len(restored) == 0 {
		return nil, err
	}
	return restored[0], nil
}

func begin(ctx context.Context, client *holdfast.Client) (*holdfast.Session, error) {
	made, err := client.Acquire(ctx, session)
	if err != nil {
		return nil, err
	}
	raw, err := unix.MemfdCreate(file, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(raw), file)
	defer memory.Close()
	if err := memory.Truncate(int64(os.Getpagesize())); err != nil {
		return nil, err
	}
	return made, made.Preserve(file, memory)
}
