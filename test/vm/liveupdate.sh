#!/bin/sh
# SPDX-License-Identifier: MIT

# The tests of the package liveupdate on real kernels, all of them on both sides of a kexec:
#
#	CGO_ENABLED=0 go test -c -o liveupdate.test ./liveupdate
#	hfvm run --os none --kernel 7.2 --next-kernel 7.3 --add liveupdate.test:/liveupdate.test test/vm/liveupdate.sh
#
# With `--cmdline liveupdate=off --env HOLDFAST_VM=not-enabled`, or with a kernel without CONFIG_LIVEUPDATE and
# `--env HOLDFAST_VM=no-device`, it checks in one boot that the errors say so.

export HOLDFAST_VM="${HOLDFAST_VM:-1}"

run() {
	/liveupdate.test -test.v "$@" || hfvm-fail "boot $HFVM_BOOT: liveupdate.test $*"
}

if [ "$HOLDFAST_VM" != 1 ]; then
	run -test.run '^TestKernelWithout$'
	hfvm-pass
	exit
fi

case $HFVM_BOOT in
1)
	run -test.skip '^TestAcrossKexec$'
	hfvm-kexec-load || hfvm-fail "loading the next kernel"
	# Does not come back: it calls reboot(KEXEC) with the sessions open.
	run -test.run '^TestAcrossKexec$'
	hfvm-fail "TestAcrossKexec came back"
	;;
2)
	run -test.run '^TestAcrossKexec$'
	run -test.skip '^TestAcrossKexec$'
	hfvm-pass
	;;
esac
