// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-project/holdfast"
)

// record is what the clients of a name were told, one after the other, and so what has to be there.
type record struct {
	Begun     []string // nonces of memory that may have been parked
	Acked     string   // nonce of that which is: its client knows
	Releasing bool     // its client has asked for that
	Released  bool     // and knows that it is
	Finished  bool     // a session of the previous kernel, by the last client
	Unsafe    bool     // it wasn't, so that it can't have crossed the update that has come since
	Wrote     uint64   // epoch
	Last      string   // what was told last
	Found     string   // by the last client, of what was there
}

// was says what the client knew that told the last.
func (r *record) was() string {
	switch {
	case r.Released:
		return "released"
	case r.Releasing:
		return "release not acknowledged"
	case r.Unsafe:
		return "not renewed"
	case r.Acked != "":
		return "acknowledged"
	}
	return "not acknowledged"
}

// hear takes in what a client tells. It fails where that can't be after what was told before. epoch is the present one.
func (r *record) hear(line string, epoch uint64) (err error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "none":
		if r.Acked != "" && !r.Releasing && !r.Unsafe {
			err = fmt.Errorf("LOST: %q was acknowledged, and there is nothing", r.Acked)
		}
		r.Acked, r.Releasing, r.Released, r.Unsafe, r.Wrote, r.Found = "", false, false, false, 0, "started afresh"
	case "same":
		nonce, number, _ := strings.Cut(rest, " ")
		wrote, _ := strconv.ParseUint(number, 10, 64)
		switch {
		case r.Released:
			err = fmt.Errorf("released, and %q is still there", nonce)
		case r.Acked != "" && nonce != r.Acked || !slices.Contains(r.Begun, nonce):
			err = fmt.Errorf("%q was acknowledged, and %q is there", r.Acked, nonce)
		case wrote < r.Wrote || wrote > epoch:
			err = fmt.Errorf("LOST: %d was written to the memory, and %d is there", r.Wrote, wrote)
		}
		r.Acked, r.Releasing, r.Unsafe, r.Found = nonce, false, false, "back"
	case renewing + string(holdfast.Finished):
		r.Finished = true
	case "parked":
		r.Acked = rest
	case "wrote":
		r.Wrote, _ = strconv.ParseUint(rest, 10, 64)
	case "releasing":
		r.Releasing = true
	case "released":
		r.Acked, r.Released = "", true
	}
	r.Last = line
	return err
}
