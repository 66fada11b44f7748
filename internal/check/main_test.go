// SPDX-License-Identifier: MIT

package check

import (
	"testing"

	"github.com/holdfast-project/holdfast/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }
