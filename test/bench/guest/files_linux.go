// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// filesOf are the sizes of the files that are preserved and restored, and how many of each way cross the update. The smallest
// shows what doesn't depend on the size.
var filesOf = []struct {
	size  int64
	label string
	n     int
}{
	{4 << 10, "4 KiB", 5},
	{64 << 20, "64 MiB", 5},
	{256 << 20, "256 MiB", 3},
	{512 << 20, "512 MiB", 3},
}

const (
	token  = 1 // of the file, in a session made by the bare ioctls
	file   = "memory"
	stride = 1 << 20 // in which a file is written and read
)

// preserveRounds is how often each way preserves a file of each size, in turn.
const preserveRounds = 7

// files preserves files of some sizes at the first boot, by the bare ioctls and by the library, in turn; then goes to the next
// kernel at once, with no shutdown, so that both ways' sessions come from processes that still run; and has them restored there.
func files() error {
	ctx := context.Background()
	if err := startDaemon(); err != nil {
		return err
	}
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if os.Getenv("HFVM_BOOT") == "1" {
		return preserve(ctx, client)
	}
	return restore(ctx, client)
}

func bareName(size int64, i int) string { return fmt.Sprintf("bench-%d-%d", size, i) }
func ownName(size int64, i int) string  { return fmt.Sprintf("files-%d-%d", size, i) }

func preserve(ctx context.Context, client *holdfast.Client) error {
	var kept []*liveupdate.Session // open up to the kexec
	tables := table{head: "preserve", columns: []string{"bare", "Holdfast", "Park"}}
	for _, of := range filesOf {
		bare, own, park := &way{}, &way{}, &way{}
		memory, err := filled(of.size)
		if err != nil {
			return err
		}
		// After Acquire the daemon's copy of the session is closed a moment later, and a file in it can't be preserved before that.
		// A large file takes longer than that moment, and a small one is cheap to make.
		again := func(session io.Closer) error {
			if err := session.Close(); err != nil || of.size >= stride {
				return err
			}
			memory.Close()
			memory, err = filled(of.size)
			return err
		}
		for round := range preserveRounds {
			if err := inTurn(round,
				func() error {
					session, err := barePreserve(ctx, bareName(of.size, 1000+round), memory, bare)
					if err != nil {
						return err
					}
					return again(session)
				},
				func() error {
					session, err := ownPreserve(ctx, client, ownName(of.size, 1000+round), memory, own)
					if err != nil {
						return err
					}
					return again(session)
				}); err != nil {
				return err
			}
		}
		memory.Close()
		for i := range of.n {
			for way := range 2 {
				memory, err := filled(of.size)
				if err != nil {
					return err
				}
				if way == 0 {
					session, err := barePreserve(ctx, bareName(of.size, i), memory, &discard)
					if err != nil {
						return err
					}
					kept = append(kept, session)
				} else {
					session, err := ownPreserve(ctx, client, ownName(of.size, i), memory, &discard)
					if err != nil {
						return err
					}
					if err := park.measure(func() error { return session.Park(ctx, client) }); err != nil {
						return err
					}
					session.Close()
				}
				memory.Close()
			}
		}
		tables.add(of.label, of.size, bare, own, park)
	}
	fmt.Print("\nA file in memory, all of its pages there, put into a new session; in turn. Bare: CREATE_SESSION, PRESERVE_FD.\n" +
		"Holdfast: Acquire, Preserve, Commit. Park, after that, gives it to PID 1 to keep.\n\n")
	tables.print()
	for _, command := range []string{"hfvm-kexec-load", "hfvm-kexec"} {
		if out, err := exec.Command(command).CombinedOutput(); err != nil {
			return fmt.Errorf("%s with %d sessions open: %w: %s", command, len(kept), err, out)
		}
	}
	return nil
}

func restore(ctx context.Context, client *holdfast.Client) error {
	tables := table{head: "restore", columns: []string{"bare", "Holdfast", "reading all of it"}}
	for _, of := range filesOf {
		bare, own, reading := &way{}, &way{}, &way{}
		for i := range of.n {
			read := func(f *os.File) error {
				defer f.Close()
				return reading.measure(func() error { return checked(f, of.size) })
			}
			err := inTurn(i,
				func() error {
					var session *liveupdate.Session
					var f *os.File
					if err := bare.measure(func() (err error) {
						if session, err = (liveupdate.Device{}).Retrieve(ctx, bareName(of.size, i)); err != nil {
							return err
						}
						f, err = session.Retrieve(token)
						return err
					}); err != nil {
						return err
					}
					defer session.Close()
					return read(f)
				},
				func() error {
					var committed *holdfast.Committed
					var files map[string]*os.File
					if err := own.measure(func() (err error) {
						if committed, err = client.Reclaim(ctx, ownName(of.size, i)); err != nil {
							return err
						}
						files, err = committed.Retrieve()
						return err
					}); err != nil {
						return err
					}
					defer committed.Close()
					return read(files[file])
				})
			if err != nil {
				return err
			}
		}
		tables.add(of.label, of.size, bare, own, reading)
	}
	fmt.Print("\nThe same files after the update, up to a descriptor that can be read; in turn. Bare: RETRIEVE_SESSION, RETRIEVE_FD.\n" +
		"Holdfast: Reclaim, Retrieve. The kernel puts all pages into the file by then; reading them is apart.\n\n")
	tables.print()
	return nil
}

func barePreserve(ctx context.Context, name string, memory *os.File, w *way) (session *liveupdate.Session, err error) {
	err = w.measure(func() (err error) {
		if session, err = (liveupdate.Device{}).Create(ctx, name); err != nil {
			return err
		}
		return session.Preserve(token, memory)
	})
	return session, err
}

func ownPreserve(ctx context.Context, client *holdfast.Client, name string, memory *os.File, w *way) (session *holdfast.Session, err error) {
	err = w.measure(func() (err error) {
		if session, err = client.Acquire(ctx, name); err != nil {
			return err
		}
		if err := session.Preserve(file, memory); err != nil {
			return err
		}
		return session.Commit()
	})
	return session, err
}

// discard takes times that nobody looks at.
var discard way

// measure adds the time that it takes.
func (w *way) measure(what func() error) error {
	start := time.Now()
	err := what()
	w.times = append(w.times, time.Since(start))
	return err
}

// inTurn does all of them. Nobody always comes first.
func inTurn(round int, all ...func() error) error {
	for i := range all {
		if err := all[(i+round)%len(all)](); err != nil {
			return err
		}
	}
	return nil
}

// filled makes a file in memory of which each page is there.
func filled(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "bench")
	buf := make([]byte, min(size, stride))
	for off := int64(0); off < size; off += int64(len(buf)) {
		binary.LittleEndian.PutUint64(buf, stamp(off))
		if _, err := f.WriteAt(buf, off); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// checked reads all of a file that filled made.
func checked(f *os.File, size int64) error {
	buf := make([]byte, min(size, stride))
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
			return err
		}
		if got := binary.LittleEndian.Uint64(buf); got != stamp(off) {
			return fmt.Errorf("at %d of the restored file there is %#x, not %#x", off, got, stamp(off))
		}
	}
	return nil
}

func stamp(off int64) uint64 { return uint64(off) ^ 0x686f6c6466617374 }

// table has one line for each size, with a way for each column.
type table struct {
	head    string
	columns []string
	rows    []row
}

type row struct {
	label string
	size  int64
	ways  []*way
}

func (t *table) add(label string, size int64, ways ...*way) {
	for _, w := range ways {
		slices.Sort(w.times)
	}
	t.rows = append(t.rows, row{label, size, ways})
}

// print compares the first two columns: the ratio of their medians, the difference, and what that is of the second.
func (t *table) print() {
	fmt.Printf("%-8s %3s", t.head, "n")
	for _, c := range t.columns {
		fmt.Printf(" %20s", c+", ms")
	}
	fmt.Printf(" %8s %10s %9s %14s\n", "ratio", "added, ms", "of it", "bare, ms/GiB")
	for _, r := range t.rows {
		bare, own := r.ways[0].at(0.5)/1e3, r.ways[1].at(0.5)/1e3
		fmt.Printf("%-8s %3d", r.label, len(r.ways[0].times))
		for _, w := range r.ways {
			fmt.Printf(" %20.2f", w.at(0.5)/1e3)
		}
		perGiB := "-"
		if r.size >= stride {
			perGiB = fmt.Sprintf("%.0f", bare/float64(r.size)*(1<<30))
		}
		fmt.Printf(" %8.2f %10.2f %7.1f %% %14s\n", own/bare, own-bare, (own-bare)/own*100, perGiB)
	}
}
