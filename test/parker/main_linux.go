// SPDX-License-Identifier: MIT

// Command parker is a program without an fd store of its own: it keeps its memory over updates by parking it with the
// orchestrator. It is for the tests, which compare the sum that it writes down.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
)

const fileName = "memory"

func main() {
	log.SetFlags(0)
	log.SetPrefix("parker: ")
	p := &parker{}
	flag.StringVar(&p.name, "name", "ram", "the session's `NAME`")
	flag.Int64Var(&p.size, "size", 8<<20, "of the memory, in `BYTES`")
	flag.StringVar(&p.dir, "dir", "", "the existing `DIRECTORY` for the files start (what came, with its sum) and stop (how parking went)")
	flag.BoolVar(&p.late, "late", false, "park at SIGTERM, not at the start")
	flag.Parse()
	err := p.run()
	if err != nil {
		p.write("error", err.Error())
		log.Fatal(err)
	}
}

type parker struct {
	name, dir string
	size      int64
	late      bool

	client *holdfast.Client
	memory *os.File
	// committed is what came back and isn't renewed yet.
	committed *holdfast.Committed
	session   *holdfast.Session
}

func (p *parker) run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	os.Remove(filepath.Join(p.dir, "error"))
	os.Remove(filepath.Join(p.dir, "start"))
	var err error
	if p.client, err = holdfast.Dial(ctx); err != nil {
		return err
	}
	defer p.client.Close()
	came, err := p.begin(ctx)
	if err != nil {
		return err
	}
	if !p.late {
		if err := p.park(ctx); err != nil {
			return err
		}
	}
	sum, err := p.sum()
	if err != nil {
		return err
	}
	if err := p.write("start", came+" "+sum); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	<-ctx.Done()

	begun := time.Now()
	stopping, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.park(stopping); err != nil {
		p.write("stop", err.Error())
		return err
	}
	return p.write("stop", fmt.Sprintf("parked %d %d", p.session.Generation(), time.Since(begun).Milliseconds()))
}

// begin has memory, and says where it came from.
func (p *parker) begin(ctx context.Context) (string, error) {
	committed, err := p.client.Reclaim(ctx, p.name)
	if errors.Is(err, holdfast.ErrNoSuchSession) {
		raw, err := unix.MemfdCreate(fileName, unix.MFD_CLOEXEC)
		if err != nil {
			return "", err
		}
		p.memory = os.NewFile(uintptr(raw), fileName)
		content := make([]byte, p.size)
		rand.Read(content)
		_, err = p.memory.Write(content)
		return "fresh", err
	}
	if err != nil {
		return "", err
	}
	came := "crash"
	if committed.Incoming() {
		came = "update"
	}
	files, err := committed.Retrieve()
	if err != nil {
		return "", err
	}
	p.memory, p.committed = files[fileName], committed
	return came, nil
}

func (p *parker) park(ctx context.Context) (err error) {
	switch {
	case p.session != nil:
	case p.committed != nil:
		p.session, err = holdfast.Renew(ctx, p.client, p.committed, holdfast.WithParking())
	default:
		if p.session, err = p.client.Acquire(ctx, p.name); err == nil {
			err = p.session.Preserve(fileName, p.memory)
		}
	}
	if err != nil {
		return err
	}
	return p.session.Park(ctx, p.client)
}

func (p *parker) sum() (string, error) {
	content := make([]byte, p.size)
	if _, err := p.memory.ReadAt(content, 0); err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:]), nil
}

// write leaves a file that is whole or not there.
func (p *parker) write(file, text string) error {
	path := filepath.Join(p.dir, file)
	temporary := path + ".new"
	err := os.WriteFile(temporary, []byte(text+"\n"), 0o644)
	return cmp.Or(err, os.Rename(temporary, path))
}
