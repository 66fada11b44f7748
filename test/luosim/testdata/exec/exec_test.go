// SPDX-License-Identifier: MIT

// Package exec is tested by "go test -exec".
package exec

import (
	"context"
	"os"
	"testing"

	"github.com/holdfast-project/holdfast/liveupdate"
)

func TestSession(t *testing.T) {
	s, err := liveupdate.Device{}.Create(context.Background(), "exec")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if name := s.Name(); name != "exec" {
		t.Errorf("the session's name is %q", name)
	}
}

func TestFails(t *testing.T) {
	if os.Getenv("FAIL") != "" {
		t.Error("as asked for")
	}
}
