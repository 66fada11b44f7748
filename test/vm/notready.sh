#!/bin/sh
# SPDX-License-Identifier: MIT
# A kernel that can't: everybody says so in one sentence, with the fix. $PROBLEM and $SENTENCE are what to expect.
set -eu

# says COMMAND...: it fails with exit status 1 and one line that has the sentence and the fix
says() {
	status=0
	"$@" >/tmp/out 2>/tmp/err || status=$?
	[ "$status" = 1 ] || hfvm-fail "$*: exit status $status"
	[ "$(wc -l </tmp/err)" = 1 ] || hfvm-fail "$*: not one line: $(cat /tmp/err)"
	for part in "$SENTENCE" "kho=on liveupdate=on"; do
		grep -qF "$part" /tmp/err || hfvm-fail "$*: no '$part' in: $(cat /tmp/err)"
	done
	cat /tmp/err
}

says holdfast status

mkdir -p /run/holdfast /sys/fs/cgroup/system.slice/vmm.service
/usr/libexec/holdfastd --listen /run/holdfast/io.holdfast &
until [ -S /run/holdfast/io.holdfast ]; do :; done
says holdfast status
holdfast status --json >/tmp/json || true
grep -q "\"problem\": *\"$PROBLEM\"" /tmp/json || hfvm-fail "status --json: no problem $PROBLEM in: $(cat /tmp/json)"
echo $$ >/sys/fs/cgroup/system.slice/vmm.service/cgroup.procs
says holdfast acquire ram -- true
hfvm-pass
