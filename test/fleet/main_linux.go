// SPDX-License-Identifier: MIT

// Command fleet is one of many units that park many sessions each. After an update it reclaims its own, and tries in
// vain to get its neighbour's. It is for the tests, which compare the sums that it writes down. Or it fills up what the
// orchestrator keeps sessions in.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/internal/fd"
	"github.com/holdfast-project/holdfast/internal/varlink"
)

const fileName = "memory"

func main() {
	log.SetFlags(0)
	log.SetPrefix("fleet: ")
	f := &fleet{}
	flag.StringVar(&f.unit, "unit", "", "the `WORD` for this unit in the names of its sessions")
	flag.StringVar(&f.neighbour, "neighbour", "", "the `WORD` of the unit whose sessions it must not get")
	flag.StringVar(&f.neighbourOwner, "neighbour-owner", "", "that unit's `OWNER`")
	flag.IntVar(&f.count, "count", 10, "sessions, `N` of them")
	flag.Int64Var(&f.size, "size", 64<<10, "of the memory in each, in `BYTES`")
	flag.StringVar(&f.dir, "dir", "", "the existing `DIRECTORY` for the files start (a line for each session: name, where it came from, sum, microseconds to park or reclaim it) and error")
	flag.BoolVar(&f.renew, "renew", false, "renew what came back, once all of it has")
	fill := flag.Bool("fill", false, "park until there is no more room, and write the file full: how many sessions, and the error")
	flag.Parse()
	run := f.run
	if *fill {
		run = f.fill
	}
	if err := run(); err != nil {
		f.write("error", err.Error())
		log.Fatal(err)
	}
}

type fleet struct {
	unit, neighbour, neighbourOwner string
	count                           int
	size                            int64
	dir                             string
	renew                           bool

	client    *holdfast.Client
	committed []*holdfast.Committed // what came back
}

// names are a unit's: some that every unit has, and some that no other has.
func (f *fleet) names(unit string) []string {
	var names []string
	for i := range f.count {
		if i < f.count/2 {
			names = append(names, fmt.Sprintf("ram%d", i))
		} else {
			names = append(names, fmt.Sprintf("%s-%d", unit, i))
		}
	}
	return names
}

func (f *fleet) run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	os.Remove(filepath.Join(f.dir, "error"))
	os.Remove(filepath.Join(f.dir, "start"))
	var err error
	if f.client, err = holdfast.Dial(ctx); err != nil {
		return err
	}
	defer f.client.Close()
	var lines strings.Builder
	for _, name := range f.names(f.unit) {
		came, memory, took, err := f.begin(ctx, name)
		if err != nil {
			return err
		}
		content := make([]byte, f.size)
		if _, err := memory.ReadAt(content, 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&lines, "%s %s %x %d\n", name, came, sha256.Sum256(content), took.Microseconds())
	}
	if err := f.trespass(ctx); err != nil {
		return err
	}
	if f.renew {
		for _, c := range f.committed {
			if _, err := holdfast.Renew(ctx, f.client, c, holdfast.WithParking()); err != nil {
				return err
			}
		}
	}
	if err := f.write("start", lines.String()); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// begin reclaims a session, or makes one and parks it. It says how long that one call took.
func (f *fleet) begin(ctx context.Context, name string) (came string, memory *os.File, took time.Duration, err error) {
	begun := time.Now()
	committed, err := f.client.Reclaim(ctx, name)
	took = time.Since(begun)
	if err == nil {
		came = "crash"
		if committed.Incoming() {
			came = "update"
		}
		files, err := committed.Retrieve()
		if err != nil {
			return "", nil, 0, err
		}
		f.committed = append(f.committed, committed)
		return came, files[fileName], took, nil
	}
	if !errors.Is(err, holdfast.ErrNoSuchSession) {
		return "", nil, 0, err
	}
	if memory, err = newMemory(f.size); err != nil {
		return "", nil, 0, err
	}
	session, err := f.client.Acquire(ctx, name)
	if err != nil {
		return "", nil, 0, err
	}
	defer session.Close()
	if err := session.Preserve(fileName, memory); err != nil {
		return "", nil, 0, err
	}
	begun = time.Now()
	err = session.Park(ctx, f.client)
	return "fresh", memory, time.Since(begun), err
}

// newMemory has random contents.
func newMemory(size int64) (*os.File, error) {
	raw, err := unix.MemfdCreate(fileName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(raw), fileName)
	content := make([]byte, size)
	rand.Read(content)
	_, err = memory.Write(content)
	return memory, err
}

// fill parks sessions with many files that have the longest names: names are what there is room for.
func (f *fleet) fill() error {
	ctx := context.Background()
	var err error
	if f.client, err = holdfast.Dial(ctx); err != nil {
		return err
	}
	defer f.client.Close()
	for parked := 0; ; parked++ {
		session, err := f.client.Acquire(ctx, fmt.Sprintf("fill%d", parked))
		if err != nil {
			return err
		}
		defer session.Close()
		for i := range 20 {
			memory, err := newMemory(1)
			if err != nil {
				return err
			}
			if err := session.Preserve(fmt.Sprintf("%0128d", i), memory); err != nil {
				return err
			}
			memory.Close()
		}
		err = session.Park(ctx, f.client)
		if errors.Is(err, holdfast.ErrKeeperFull) {
			return f.write("full", fmt.Sprintf("%d %v\n", parked, err))
		}
		if err != nil {
			return err
		}
	}
}

// trespass asks for what is the neighbour's: by names that only the neighbour has, and in its name.
func (f *fleet) trespass(ctx context.Context) error {
	conn, err := varlink.Dial(ctx, holdfast.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i, name := range f.names(f.neighbour) {
		if i >= f.count/2 {
			if _, err := f.client.Reclaim(ctx, name); !errors.Is(err, holdfast.ErrNoSuchSession) {
				return fmt.Errorf("reclaiming the neighbour's %s: %v", name, err)
			}
			if err := f.client.Release(ctx, name); !errors.Is(err, holdfast.ErrNoSuchSession) {
				return fmt.Errorf("releasing the neighbour's %s: %v", name, err)
			}
		}
		in := map[string]any{"name": name, "subject": map[string]string{"owner": f.neighbourOwner}}
		for _, method := range []string{"Reclaim", "Release"} {
			fds, err := conn.Call(ctx, "io.holdfast.Sessions."+method, in, nil, nil)
			fd.CloseAll(fds)
			var refused *varlink.Error
			if !errors.As(err, &refused) || refused.Name != holdfast.ErrNotPermitted.Kind {
				return fmt.Errorf("%s of %s as the neighbour: %v", method, name, err)
			}
		}
	}
	return nil
}

// write leaves a file that is whole or not there.
func (f *fleet) write(file, text string) error {
	path := filepath.Join(f.dir, file)
	temporary := path + ".new"
	err := os.WriteFile(temporary, []byte(text), 0o644)
	return cmp.Or(err, os.Rename(temporary, path))
}
