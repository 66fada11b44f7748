#!/bin/sh
# SPDX-License-Identifier: MIT

# Runs the agent's part of this boot and goes on to the next; for hfvm, see main.go. $AGENT has its arguments.

mkdir -p /differential && mount -t tmpfs tmpfs /differential || hfvm-fail "mounting a tmpfs"
initrd=
[ -e /hfvm/initrd ] && initrd="-initrd /hfvm/initrd"
/agent -boot "$HFVM_BOOT" -boots 3 -tmpfs /differential -kernel /hfvm/kernel-next -cmdline /hfvm/cmdline-next $initrd $AGENT ||
	hfvm-fail "the agent in boot $HFVM_BOOT"
hfvm-pass
