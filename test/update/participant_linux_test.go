// SPDX-License-Identifier: MIT

package update

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

// size is that of a participant's memory.
const size = 64 << 10

// program is a participant: memory with a counter in it that goes on as long as the program isn't paused. It does what
// it is told, a line each, answers with a line that begins with "= ", and tells what happens to it on others: on standard
// input and output, or on a socket, one connection after the other.
type program struct {
	name string
	dir  string
	mem  *os.File

	say sync.Mutex
	out io.Writer

	mu     sync.Mutex
	paused bool
	count  uint64
	manner string        // how it behaves in the next round
	freed  chan struct{} // closed by "go"
}

func participate(name, dir string, optional bool, socket string) error {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	p := &program{name: name, dir: dir, mem: os.NewFile(uintptr(raw), name), out: os.Stdout, freed: make(chan struct{})}
	content := make([]byte, size)
	rand.Read(content)
	if _, err := p.mem.WriteAt(content, 0); err != nil {
		return err
	}
	var in io.Reader = os.Stdin
	var sockets *net.UnixListener
	if socket != "" {
		os.Remove(socket)
		if sockets, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
			return err
		}
		if in, err = p.accept(sockets); err != nil {
			return err
		}
	}
	ctx := context.Background()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	p.tell("came back: %v", p.comeBack(ctx, client))
	joined, err := holdfast.Join(ctx, holdfast.ParticipantConfig{
		Name: name, Optional: optional,
		Prepare: func(ctx context.Context, r *holdfast.Round) error { return p.prepare(ctx, r, client) },
		Quiesce: func(ctx context.Context, _ *holdfast.Round) error { return p.quiesce(ctx, client) },
		Abort: func(reason string) {
			p.pause(false)
			p.tell("aborted %s", reason)
		},
		Resumed: func() { p.tell("resumed") },
	})
	if err != nil {
		return err
	}
	defer joined.Close()
	go p.work()
	p.tell("joined")
	for {
		p.obey(in)
		if sockets == nil {
			return nil
		}
		if in, err = p.accept(sockets); err != nil {
			return err
		}
	}
}

// accept has the next one be who is told things.
func (p *program) accept(sockets *net.UnixListener) (io.Reader, error) {
	conn, err := sockets.AcceptUnix()
	if err != nil {
		return nil, err
	}
	p.say.Lock()
	defer p.say.Unlock()
	p.out = conn
	return conn, nil
}

func (p *program) obey(in io.Reader) {
	commands := bufio.NewScanner(in)
	for commands.Scan() {
		word, rest, _ := strings.Cut(commands.Text(), " ")
		switch word {
		case "manner":
			p.mu.Lock()
			p.manner, p.freed = rest, make(chan struct{})
			p.mu.Unlock()
			p.tell("= ok")
		case "go":
			p.mu.Lock()
			close(p.freed)
			p.mu.Unlock()
			p.tell("= ok")
		case "count":
			p.mu.Lock()
			n := p.count
			p.mu.Unlock()
			p.tell("= %d", n)
		case "resize":
			err := p.mem.Truncate(2 * size)
			if err == nil {
				err = p.mem.Truncate(size)
			}
			p.tell("= %v", err)
		}
	}
}

// file is what the memory was when the program paused.
func (p *program) file() string { return filepath.Join(p.dir, p.name) }

// comeBack gets the memory back that an update has carried, and compares it with what it was.
func (p *program) comeBack(ctx context.Context, client *holdfast.Client) error {
	committed, err := client.Reclaim(ctx, p.name)
	if err != nil {
		return err
	}
	defer committed.Close()
	files, err := committed.Retrieve()
	if err != nil {
		return err
	}
	defer files["data"].Close()
	got, err := io.ReadAll(io.NewSectionReader(files["data"], 0, 2*size))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(got[:max(0, len(got)-sha256.Size)]); len(got) != size || !bytes.Equal(sum[:], got[size-sha256.Size:]) {
		return fmt.Errorf("%d bytes, and not those that it had", len(got))
	}
	want, err := os.ReadFile(p.file())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("it isn't the memory that it had")
	}
	return err
}

func (p *program) tell(format string, args ...any) {
	p.say.Lock()
	defer p.say.Unlock()
	fmt.Fprintf(p.out, strings.ReplaceAll(format, "\n", " ")+"\n", args...)
}

// work counts. Twenty of them must leave some time to others, on a slow machine too.
func (p *program) work() {
	for range time.Tick(10 * time.Millisecond) {
		p.mu.Lock()
		if !p.paused {
			p.count++
			p.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, p.count), 0)
		}
		p.mu.Unlock()
	}
}

func (p *program) pause(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = yes
}

// until waits to be freed.
func (p *program) until(ctx context.Context) error {
	p.mu.Lock()
	freed := p.freed
	p.mu.Unlock()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *program) is(manner string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.manner == manner
}

func (p *program) prepare(ctx context.Context, r *holdfast.Round, client *holdfast.Client) error {
	session, err := r.Acquire(ctx, client, p.name)
	if err != nil {
		return err
	}
	if err := session.Preserve("data", p.mem); err != nil {
		return err
	}
	if err := p.mem.Truncate(2 * size); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("a preserved file was resized: %v", err)
	}
	p.tell("preserved")
	switch {
	case p.is("veto"):
		return errors.New("not today")
	case p.is("extend"):
		// Longer than all have.
		before := time.Until(r.Deadline())
		if err := r.Extend(ctx, 4*before, "much to write"); err != nil {
			return err
		}
		p.tell("extended")
		timer := time.NewTimer(before + before/5)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	case p.is("hang"):
		if err := p.until(ctx); err != nil {
			return err
		}
	}
	p.session(session)
	return nil
}

// session is kept for Quiesce.
func (p *program) session(s *holdfast.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	current = s
}

var current *holdfast.Session

func (p *program) quiesce(ctx context.Context, client *holdfast.Client) error {
	p.pause(true)
	if p.is("veto-quiesce") {
		return errors.New("not now")
	}
	if p.is("hang-quiesce") {
		p.tell("quiescing")
		if err := p.until(ctx); err != nil {
			return err
		}
	}
	// Where nothing outlasts the update on disk, it is the memory itself that tells whether it is whole.
	content := make([]byte, size)
	if _, err := p.mem.ReadAt(content, 0); err != nil {
		return err
	}
	sum := sha256.Sum256(content[:size-sha256.Size])
	copy(content[size-sha256.Size:], sum[:])
	if _, err := p.mem.WriteAt(content, 0); err != nil {
		return err
	}
	position := int64(0)
	if p.is("unfrozen") {
		position = int64(unix.EIO) << 32 // test/vm/freeze_vm_test.go
	}
	if _, err := p.mem.Seek(position, io.SeekStart); err != nil {
		return err
	}
	if err := os.WriteFile(p.file(), content, 0o600); err != nil {
		return err
	}
	d, err := client.Describe(ctx)
	if err != nil {
		return err
	}
	if d.Keeper == "none" { // this process holds it until the kexec
		return current.Commit()
	}
	return current.Park(ctx, client)
}
