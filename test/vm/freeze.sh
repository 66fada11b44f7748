#!/bin/sh
# SPDX-License-Identifier: MIT
# An update on a host without systemd whose switch fails, since the kernel can't freeze a session, and a good one right after. What
# is done and looked at is in test/update, in freeze_linux_test.go.
set -eu

mkdir -p /binaries
ln -s /usr/bin/holdfast /usr/libexec/holdfastd /usr/libexec/holdfast-updated /binaries/
UPDATE_TEST_BINARIES=/binaries /test/update.test -test.v -test.timeout 300s -test.run '^TestFrozenGuest$' || hfvm-fail "boot $HFVM_BOOT: it failed"
[ "$HFVM_BOOT" = 1 ] || hfvm-pass
