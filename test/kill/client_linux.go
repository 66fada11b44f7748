// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast"
	"github.com/holdfast-project/holdfast/liveupdate"
)

// client is the life of a client. What it tells, a word and perhaps what belongs to it, is:
//
//	begin EPOCH NONCE HOW it is there, with the nonce for new memory and how it, or holdfastd, is to die
//	dialed
//	none                  there was nothing under its name
//	came GENERATION       there was
//	same NONCE EPOCH      and it is whole
//	taken                 the name is, as yet
//	acquired, preserved, committed
//	renewal-STEP          as holdfast.RenewStep has it
//	parked NONCE          what was parked is acknowledged
//	wrote EPOCH           that is in the memory since
//	releasing, released
//	dying                 what comes next may be lost
//	done, error TEXT      the end
type client struct {
	name, seed, nonce string
	epoch             uint64
	told              func(step string)
	parking           func() // unless nil, is called before the first Park

	holdfast *holdfast.Client
	session  *holdfast.Session
}

const renewing = "renewal-"

// files are what a session holds. Two, so that half of it can be lost.
var files = []struct {
	name string
	size int
}{{"memory", 8 << 10}, {"state", 4 << 10}}

// A file begins with the nonce. In the first one comes the epoch, which is written while the session is parked; all the
// rest is what the nonce makes it.
const (
	nonceSize = 16
	epochSize = 8
	headSize  = nonceSize + epochSize
)

func (c *client) live(ctx context.Context, actions []string) (err error) {
	if c.holdfast, err = holdfast.Dial(ctx); err != nil {
		return err
	}
	defer c.holdfast.Close()
	c.told("dialed")
	defer c.close()
	for _, action := range actions {
		switch action {
		case "park":
			err = c.park(ctx)
		case "back":
			err = c.back(ctx)
		case "release":
			err = c.release(ctx)
		default:
			err = fmt.Errorf("there is no action %q", action)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", action, err)
		}
	}
	return nil
}

func (c *client) close() {
	if c.session != nil {
		c.session.Close()
		c.session = nil
	}
}

// park has the memory parked, wherever it comes from.
func (c *client) park(ctx context.Context) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := c.tryPark(ctx)
		if !errors.Is(err, holdfast.ErrNameTaken) || pause > time.Second {
			return err
		}
		// Of whoever died: holdfastd may be parking it right now, or have its descriptor in its socket still.
		c.told("taken")
		time.Sleep(pause)
	}
}

func (c *client) tryPark(ctx context.Context) error {
	committed, err := c.holdfast.Reclaim(ctx, c.name)
	switch {
	case errors.Is(err, holdfast.ErrNoSuchSession):
		c.told("none")
		return c.begin(ctx)
	case err != nil:
		return err
	}
	defer committed.Close()
	nonce, err := c.look(committed)
	if err != nil {
		return err
	}
	c.session, err = holdfast.Renew(ctx, c.holdfast, committed, holdfast.WithParking(),
		holdfast.WithProgress(func(s holdfast.RenewStep) { c.told(renewing + string(s)) }))
	if err != nil {
		return err
	}
	return c.parked(ctx, nonce)
}

// begin parks new memory.
func (c *client) begin(ctx context.Context) (err error) {
	nonce := c.nonce
	if nonce == "" {
		nonce = newNonce()
	}
	if c.session, err = c.holdfast.Acquire(ctx, c.name); err != nil {
		return err
	}
	c.told("acquired")
	for _, file := range files {
		raw, err := unix.MemfdCreate(file.name, unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(raw), file.name)
		defer f.Close()
		if _, err := f.Write(content(c.seed, c.name, nonce, file.name, file.size)); err != nil {
			return err
		}
		if err := c.session.Preserve(file.name, f); err != nil {
			return err
		}
	}
	c.told("preserved")
	if err := c.session.Commit(); err != nil {
		return err
	}
	c.told("committed")
	return c.parked(ctx, nonce)
}

// parked has it parked, and goes on to work with it.
func (c *client) parked(ctx context.Context, nonce string) error {
	if c.parking != nil {
		c.parking()
		c.parking = nil
	}
	if err := c.session.Park(ctx, c.holdfast); err != nil {
		return err
	}
	c.told("parked " + nonce)
	held, err := c.session.Files()
	if err != nil {
		return err
	}
	defer closeAll(held)
	var epoch [epochSize]byte
	binary.BigEndian.PutUint64(epoch[:], c.epoch)
	if _, err := held[files[0].name].WriteAt(epoch[:], nonceSize); err != nil {
		return err
	}
	c.told(fmt.Sprintf("wrote %d", c.epoch))
	return nil
}

// back is what a crash and a new start in the same kernel would do.
func (c *client) back(ctx context.Context) error {
	committed, err := c.holdfast.Reclaim(ctx, c.name)
	if err != nil {
		return err
	}
	defer committed.Close()
	_, err = c.look(committed)
	return err
}

// look makes sure that what came back is whole.
func (c *client) look(committed *holdfast.Committed) (nonce string, err error) {
	c.told(fmt.Sprintf("came %d", committed.Manifest().Generation))
	held, err := committed.Retrieve()
	if err != nil {
		return "", err
	}
	defer closeAll(held)
	nonce, epoch, err := check(c.seed, c.name, held)
	if err != nil {
		return "", err
	}
	c.told(fmt.Sprintf("same %s %d", nonce, epoch))
	return nonce, nil
}

func (c *client) release(ctx context.Context) error {
	c.told("releasing")
	err := c.holdfast.Release(ctx, c.name)
	if errors.Is(err, holdfast.ErrAmbiguous) {
		// An update came between a death in a renewal and a new start.
		for _, d := range []liveupdate.Direction{liveupdate.Incoming, liveupdate.Outgoing} {
			if err = c.holdfast.Release(ctx, c.name, holdfast.OnlyDirection(d)); err != nil {
				break
			}
		}
	}
	if err != nil {
		return err
	}
	c.close() // as long as it is open here, the name is taken
	c.told("released")
	return nil
}

func closeAll(held map[string]*os.File) {
	for _, f := range held {
		f.Close()
	}
}

func newNonce() string {
	var b [nonceSize / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// content is what a file of that name has, by a nonce.
func content(seed, name, nonce, file string, size int) []byte {
	b := make([]byte, size)
	mathrand.NewChaCha8(sha256.Sum256([]byte(seed + "\x00" + name + "\x00" + nonce + "\x00" + file))).Read(b)
	copy(b, nonce)
	clear(b[nonceSize:headSize])
	return b
}

// errCorrupt says that memory is there which nobody has committed like that.
var errCorrupt = errors.New("corrupt")

// check compares all bytes.
func check(seed, name string, held map[string]*os.File) (nonce string, epoch uint64, err error) {
	if len(held) != len(files) {
		return "", 0, fmt.Errorf("%w: %d files came back of %d", errCorrupt, len(held), len(files))
	}
	for i, file := range files {
		f := held[file.name]
		if f == nil {
			return "", 0, fmt.Errorf("%w: %q did not come back", errCorrupt, file.name)
		}
		got := make([]byte, file.size+1)
		n, err := f.ReadAt(got, 0)
		if n != file.size {
			return "", 0, fmt.Errorf("%w: %q has %d bytes of %d: %v", errCorrupt, file.name, n, file.size, err)
		}
		got = got[:n]
		if i == 0 {
			nonce, epoch = string(got[:nonceSize]), binary.BigEndian.Uint64(got[nonceSize:headSize])
			clear(got[nonceSize:headSize])
		}
		if string(got) != string(content(seed, name, nonce, file.name, file.size)) {
			return "", 0, fmt.Errorf("%w: %q is not what it was made of %q", errCorrupt, file.name, nonce)
		}
	}
	return nonce, epoch, nil
}
