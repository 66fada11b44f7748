// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// warm is how many rounds don't count.
const warm = 50

// way is one way to get a descriptor.
type way struct {
	name  string
	once  func() error
	times []time.Duration
}

func speed(rounds int) error {
	ctx := context.Background()
	raw, stopRaw, err := dialRaw()
	if err != nil {
		return err
	}
	defer stopRaw()
	bus, stopBus, err := dialBus()
	if err != nil {
		return err
	}
	defer stopBus()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	floor := &way{name: "raw: Go over a unix socket, kept connection", once: raw}
	kept := &way{name: "Acquire, kept connection", once: func() error { return acquire(ctx, client, "bench") }}
	connected := 0
	connecting := &way{name: "Acquire, connecting each time", once: func() error {
		client, err := holdfast.Dial(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		// The daemon closes its copy of the last session after the answer, when the next connection may be there: its
		// name can still be taken.
		connected++
		return acquire(ctx, client, fmt.Sprint("bench-", connected))
	}}
	dbus := &way{name: "D-Bus: godbus over dbus-daemon, kept connections", once: bus}
	bare := &way{name: "bare open, CREATE_SESSION, close of both", once: func() error {
		session, err := liveupdate.Device{}.Create(ctx, "bench-bare")
		if err != nil {
			return err
		}
		return session.Close()
	}}

	ways := []*way{floor, kept, connecting, dbus, bare}
	for round := range warm + rounds {
		// Nobody always comes after the same one.
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			start := time.Now()
			if err := w.once(); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if round >= warm {
				w.times = append(w.times, time.Since(start))
			}
		}
	}

	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	fmt.Printf("\nOne descriptor handed over; Linux %.*s, %d times each, in turn\n\n", len(release)-1, release, rounds)
	fmt.Printf("%-50s %10s %10s %10s\n", "µs", "median", "10th %", "90th %")
	for _, w := range ways {
		slices.Sort(w.times)
		fmt.Printf("%-50s %10.1f %10.1f %10.1f\n", w.name, w.at(0.5), w.at(0.1), w.at(0.9))
	}
	net := kept.at(0.5) - bare.at(0.5)
	fmt.Println()
	verdict(net/floor.at(0.5), "Acquire less the bare ioctls / raw floor", 2, true)
	verdict(dbus.at(0.5)/net, "D-Bus / Acquire less the bare ioctls", 5, false)
	return nil
}

func acquire(ctx context.Context, client *holdfast.Client, name string) error {
	session, err := client.Acquire(ctx, name)
	if err != nil {
		return err
	}
	return session.Close()
}

// at is a quantile of the sorted times, in microseconds.
func (w *way) at(quantile float64) float64 {
	return float64(w.times[int(quantile*float64(len(w.times)-1))].Nanoseconds()) / 1e3
}

// verdict prints a figure beside what it should be, which on a busy machine it may miss.
func verdict(figure float64, what string, aim float64, atMost bool) {
	bound, missed := "at least", figure < aim
	if atMost {
		bound, missed = "at most", figure > aim
	}
	note := ""
	if missed {
		note = "  MISSED"
	}
	fmt.Printf("%s: %.2f (aim: %s %g)%s\n", what, figure, bound, aim, note)
}
