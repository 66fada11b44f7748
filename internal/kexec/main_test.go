// SPDX-License-Identifier: MIT

package kexec

import (
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
	"github.com/holdfast-project/holdfast/luosim"
)

func TestMain(m *testing.M) {
	luosim.Enter(luosim.Machine{})
	fdtest.Main(m)
}
