#!/bin/sh
# SPDX-License-Identifier: MIT

# The tests of the real holdfastd, in a machine without an operating system:
#
#	CGO_ENABLED=0 go build ./cmd/holdfastd
#	CGO_ENABLED=0 go test -c -o guest.test ./test/guest
#	hfvm run --os none --kernel 7.3 --add holdfastd:/usr/libexec/holdfastd --add guest.test:/test/guest.test test/vm/daemon.sh

HOLDFAST_VM=1 /test/guest.test -test.v -test.timeout 500s || hfvm-fail "the tests of holdfastd failed"
hfvm-pass
