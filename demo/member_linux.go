// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

// memberSize is how much memory a member has: a counter, and random values.
const memberSize = 64 << 20

// member is a program that takes part in updates. Its counter goes on as long as it isn't paused.
type member struct {
	name    string
	client  *holdfast.Client
	memory  *os.File
	session *holdfast.Session
	mu      sync.Mutex // held while it is paused
	count   uint64
	paused  bool
}

func (m *member) say(format string, args ...any) {
	fmt.Printf("  %-8s %s\n", m.name, fmt.Sprintf(format, args...))
}

// runMember is one until SIGTERM. Where a file VETO-NAME is, it has something against updates: what is in the file.
func runMember(name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		return err
	}
	m := &member{name: name, client: client}
	if err := m.start(ctx); err != nil {
		return err
	}
	participant, err := holdfast.Join(ctx, holdfast.ParticipantConfig{Name: name, Prepare: m.prepare, Quiesce: m.quiesce, Abort: m.abort})
	if err != nil {
		return err
	}
	defer participant.Close()
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.mu.Lock()
			m.count++
			_, err := m.memory.WriteAt(binary.LittleEndian.AppendUint64(nil, m.count), 0)
			m.mu.Unlock()
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// start has the memory back, or fills it.
func (m *member) start(ctx context.Context) error {
	committed, err := m.client.Reclaim(ctx, m.name)
	if err == nil {
		defer committed.Close()
		files, err := committed.Retrieve()
		if err != nil {
			return err
		}
		m.memory = files["data"]
		var counter [8]byte
		if _, err := m.memory.ReadAt(counter[:], 0); err != nil {
			return err
		}
		m.count = binary.LittleEndian.Uint64(counter[:])
		sum, err := m.sum()
		if err != nil {
			return err
		}
		m.say("has its memory back: the counter is at %d, checksum %s", m.count, sum)
		return m.client.Release(ctx, m.name)
	}
	if !errors.Is(err, holdfast.ErrNoSuchSession) {
		return err
	}
	fd, err := unix.MemfdCreate(m.name, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	m.memory = os.NewFile(uintptr(fd), m.name)
	if _, err := m.memory.Write(random(memberSize)); err != nil {
		return err
	}
	sum, err := m.sum()
	if err != nil {
		return err
	}
	m.say("has filled %d MiB, checksum %s, and begins to count", memberSize>>20, sum)
	return nil
}

// sum is of all but the counter.
func (m *member) sum() (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(m.memory, 8, memberSize)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:6]), nil
}

func (m *member) prepare(ctx context.Context, r *holdfast.Round) error {
	if why, err := os.ReadFile("veto-" + m.name); err == nil {
		m.say("vetoes")
		return errors.New(string(why))
	}
	session, err := r.Acquire(ctx, m.client, m.name, holdfast.WithReplace())
	if err != nil {
		return err
	}
	if err := session.Preserve("data", m.memory); err != nil {
		return err
	}
	m.session = session
	m.say("is prepared: its memory is pinned, and it goes on counting")
	return nil
}

func (m *member) quiesce(context.Context, *holdfast.Round) error {
	m.mu.Lock()
	m.paused = true
	m.say("pauses at %d, and commits", m.count)
	return m.session.Commit() // luosim has no keeper: this process holds it up to the kexec
}

func (m *member) abort(reason string) {
	if m.paused {
		m.paused = false
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.say("goes on counting, at %d: %s", m.count, reason)
}

// asRoot has a command be root of a user namespace, at least: only root may update a host, an emulated one too.
func asRoot(cmd *exec.Cmd) {
	if os.Geteuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
}

// loadNothing has an emulated kernel loaded: luosim takes anything for one.
func loadNothing() error {
	image, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(image)
	return os.NewSyscallError("kexec_file_load", unix.KexecFileLoad(image, -1, "", unix.KEXEC_FILE_NO_INITRAMFS))
}
