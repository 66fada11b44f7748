// SPDX-License-Identifier: MIT

package liveupdate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-project/holdfast/liveupdate"
)

// In the old kernel: put memory into a session, and see to it that a descriptor of the session stays open until the
// kexec.
func ExampleDevice_Create() {
	raw, err := unix.MemfdCreate("cache", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		log.Fatal(err)
	}
	memfd := os.NewFile(uintptr(raw), "cache")
	defer memfd.Close()
	if _, err := memfd.WriteString("what shall survive"); err != nil {
		log.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := liveupdate.Device{}.Create(ctx, "cache")
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Preserve(1, memfd); err != nil {
		log.Fatal(err)
	}
	// Not closed: the process keeps s, or sends it on.
}

// In the new kernel: take the memory back, or start afresh.
func ExampleDevice_Retrieve() {
	s, err := liveupdate.Device{}.Retrieve(context.Background(), "cache")
	if errors.Is(err, liveupdate.ErrNoSuchSession) {
		log.Print("nothing came over, starting with an empty cache")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	memfd, err := s.Retrieve(1)
	if errors.Is(err, liveupdate.ErrFileLost) {
		log.Print("the cache is lost: ", err)
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Finish(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("got back", memfd.Name())
}

// A descriptor that came from elsewhere, over a socket or from systemd.
func ExampleFromFD() {
	raw := 3
	s, err := liveupdate.FromFD(raw)
	if errors.Is(err, liveupdate.ErrNotASession) {
		log.Fatalf("descriptor %d is no session, it stays open", raw)
	}
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	d, err := s.Direction()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Name(), "is", d)
}

// Before anything else, a program can tell its user what is missing.
func ExampleDevice_Available() {
	if err := (liveupdate.Device{}).Available(); err != nil {
		log.Print("running without live update: ", err)
	}
}
