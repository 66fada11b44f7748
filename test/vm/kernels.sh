#!/bin/sh
# SPDX-License-Identifier: MIT
# What holdfast check says of next kernels, good and bad; that holdfast load and update refuse the bad ones, with all running on; and what
# then comes of a session's memory over a kexec to them. There is no operating system: a process holds the session.
#
# /good has 7.3 packed in other ways. /bad has kernels that can't take over: noluo has neither KHO nor the Live Update Orchestrator, kho has
# KHO alone, nomemfd preserves no memfds, nextluo and nextmemfd are built with the next version of a format. $LAST is one that there is
# nothing to see after.
set -eu

say() { echo "[boot $HFVM_BOOT] $*"; }

NEXT=/hfvm/kernels/2
LINE=$(cat /hfvm/cmdline-next)

# check STATUS ID KERNEL [ARGUMENT...]: what it says of a kernel. ID is the only error, and "" is none
check() {
	want=$1 id=$2
	shift 2
	status=0
	holdfast check "$@" >/tmp/check 2>&1 || status=$?
	seen=$(sed -n 's/^error  *\([^ ]*\).*/\1/p' /tmp/check | tr '\n' ' ')
	[ "$status/$seen" = "$want/${id:+$id }" ] || {
		cat /tmp/check
		hfvm-fail "holdfast check $*: exit status $status, errors $seen; expected $want, $id"
	}
	say "check $1: $(grep '^error' /tmp/check || tail -n 1 /tmp/check)"
}

# not_updated ID KERNEL: an update to it is refused for that reason, nothing is loaded, and who has a session runs on
not_updated() {
	before=$(cat /tmp/count)
	status=0
	holdfast update --yes --json "$2" >/tmp/update 2>&1 || status=$?
	[ $status = 3 ] && grep -q '"outcome": *"blocked"' /tmp/update && grep -q "\"id\": *\"$1\"" /tmp/update ||
		hfvm-fail "holdfast update $2: exit status $status: $(cat /tmp/update)"
	loaded 0
	until [ "$(cat /tmp/count)" != "$before" ]; do sleep 0.1; done
}

# refused KERNEL [ARGUMENT...]: holdfast load takes it for bad, and the kernel too if it is forced on it
refused() {
	status=0
	holdfast load "$@" --cmdline "$LINE" 2>/tmp/load || status=$?
	[ $status = 3 ] || hfvm-fail "holdfast load $*: exit status $status: $(cat /tmp/load)"
	status=0
	holdfast load "$@" --cmdline "$LINE" --force 2>/tmp/load || status=$?
	say "load $1 --force: $(cat /tmp/load)"
	[ $status = 1 ] || hfvm-fail "holdfast load $* --force: exit status $status"
	loaded 0
}

loaded() { [ "$(cat /sys/kernel/kexec_loaded)" = "$1" ] || hfvm-fail "kexec_loaded: expected $1"; }

# The owner of sessions is whoever is in this cgroup.
as_owner() {
	[ ! -S /run/holdfast/io.holdfast ] || return 0
	mkdir -p /run/holdfast /sys/fs/cgroup/system.slice/vmm.service
	/usr/libexec/holdfastd --listen /run/holdfast/io.holdfast 2>/dev/null &
	until [ -S /run/holdfast/io.holdfast ]; do sleep 0.1; done
	echo $$ >/sys/fs/cgroup/system.slice/vmm.service/cgroup.procs
}

# hold: a process has a session, up to the kexec, and counts
hold() {
	as_owner
	holdfast acquire ram -- sh -c 'i=0; while i=$((i + 1)); do echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.2; done' &
	until [ -e /tmp/count ]; do sleep 0.1; done
	held
}

held() { holdfast list --all | grep -q 'ram .* outgoing' || hfvm-fail "the session isn't there"; }

# switch KERNEL [LINE]: to a kernel, whatever is said of it
switch() {
	holdfast load "$1" --initrd /hfvm/initrd --cmdline "${2-$LINE}" --force >/tmp/load || hfvm-fail "holdfast load $1: exit status $?"
	cat /tmp/load
	loaded 1
	hfvm-kexec
}

# carry KERNEL [LINE]: to a kernel, with sessions that have memfds in them
carry() {
	holdfast load "$1" --initrd /hfvm/initrd --cmdline "${2-$LINE}" --force >/tmp/load || hfvm-fail "holdfast load $1: exit status $?"
	over
}

over() {
	HOLDFAST_VM=1 HFVM_BOOT=1 /liveupdate.test -test.run '^TestAcrossKexec$'
	hfvm-fail "TestAcrossKexec came back"
}

# came_over: every byte of them
came_over() {
	HOLDFAST_VM=1 HFVM_BOOT=2 /liveupdate.test -test.v -test.run '^TestAcrossKexec$/^session_and_files$' >/tmp/came 2>&1 &&
		grep -q '^    --- PASS: TestAcrossKexec/session_and_files' /tmp/came || hfvm-fail "$(cat /tmp/came)"
	say "$1: it came over"
}

# lost_all: sessions with memfds, and all others with them
lost_all() {
	as_owner
	holdfast acquire x -- true 2>/tmp/acquire && hfvm-fail "sessions can be had"
	cat /tmp/acquire
	head -c 1 /dev/liveupdate 2>/tmp/head && hfvm-fail "the device can be opened"
	grep "Input/output error" /tmp/head || hfvm-fail "$(cat /tmp/head)"
}

no_device() { [ ! -e /dev/liveupdate ] || hfvm-fail "it has a device"; }

# running FILE: that is this kernel's image, where distributions have it. In which version it has memfds only the image tells.
running() { mkdir -p /boot && ln -s "$1" "/boot/vmlinuz-$(uname -r)"; }

case $HFVM_BOOT in
1)
	head -c 3000000 $NEXT >/tmp/cut
	cp $NEXT /tmp/corrupt
	head -c 4096 /dev/urandom | dd of=/tmp/corrupt bs=4096 seek=500 conv=notrunc 2>/dev/null
	[ -z "${LAST-}" ] || {
		hold
		switch "$LAST"
	}
	running /hfvm/kernels/1
	hold
	/usr/libexec/holdfast-updated --listen /run/holdfast/io.holdfast.Update 2>/dev/null &
	until [ -S /run/holdfast/io.holdfast.Update ]; do sleep 0.1; done

	say "bad images"
	cp $NEXT /tmp/fixed
	printf '\001' | dd of=/tmp/fixed bs=1 seek=566 conv=notrunc 2>/dev/null # xloadflags: no XLF_CAN_BE_LOADED_ABOVE_4G
	echo "this is no kernel" >/tmp/text
	check 3 next-kernel /tmp/cut --initrd /hfvm/initrd --cmdline "$LINE"
	grep -q '^warning  *signature .*securityfs is not mounted' /tmp/check || hfvm-fail "$(cat /tmp/check)"
	mount -t securityfs securityfs /sys/kernel/security
	check 3 next-kernel /tmp/corrupt --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 next-loadable /tmp/fixed --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 next-kernel /tmp/text --initrd /hfvm/initrd --cmdline "$LINE"
	not_updated next-kernel /tmp/cut
	not_updated next-kernel /tmp/corrupt
	not_updated next-loadable /tmp/fixed
	not_updated next-kernel /tmp/text
	refused /tmp/fixed
	refused /tmp/text

	say "an initrd that doesn't fit"
	truncate -s 200M /tmp/initrd # of zeros, which is no initrd either
	check 3 "next-initrd kho-scratch" $NEXT --initrd /tmp/initrd --cmdline "$LINE"
	refused $NEXT --initrd /tmp/initrd
	rm /tmp/initrd

	say "kernels that don't take over"
	check 3 "next-kho next-luo next-memfd" /bad/noluo --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 "next-luo next-memfd" /bad/kho --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 next-memfd /bad/nomemfd --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 next-luo /bad/nextluo --initrd /hfvm/initrd --cmdline "$LINE"
	check 3 next-memfd /bad/nextmemfd --initrd /hfvm/initrd --cmdline "$LINE"
	not_updated next-kho /bad/noluo
	not_updated next-luo /bad/kho
	not_updated next-memfd /bad/nomemfd
	not_updated next-luo /bad/nextluo
	not_updated next-memfd /bad/nextmemfd
	check 3 next-cmdline $NEXT --initrd /hfvm/initrd --cmdline "kho=on"
	check 3 next-cmdline $NEXT --initrd /hfvm/initrd --cmdline "kho=on -- liveupdate=on"
	held

	say "good ones"
	for kernel in $NEXT /hfvm/kernels/1 /good/*; do
		check 0 "" "$kernel" --initrd /hfvm/initrd --cmdline "$LINE"
	done
	check 0 "" $NEXT --initrd /hfvm/initrd # with this kernel's command line
	holdfast load $NEXT --initrd /hfvm/initrd --cmdline "x" >/tmp/load || hfvm-fail "holdfast load: exit status $?"
	grep -q '^added: kho=on liveupdate=on$' /tmp/load || hfvm-fail "$(cat /tmp/load)"
	loaded 1
	holdfast unload
	loaded 0
	holdfast load $NEXT --initrd /hfvm/initrd --cmdline "$LINE"
	holdfast update --yes
	;;
2)
	running /hfvm/kernels/2
	say "it came over, and nobody has renewed it"
	as_owner
	holdfast reclaim ram --direction incoming -- sh -c '
		status=0
		holdfast check >/tmp/check 2>&1 || status=$?
		[ $status = 3 ] && grep "^error  *incoming .*not been renewed" /tmp/check' ||
		hfvm-fail "$(cat /tmp/check)"
	holdfast release ram --direction incoming
	check 0 "" /hfvm/kernels/1 --initrd /hfvm/initrd --cmdline "$LINE"
	carry /hfvm/kernels/1
	;;
3)
	came_over "7.3 to 7.2"
	carry /good/xz
	;;
4)
	came_over "7.2 to 7.3 packed with xz"
	carry /bad/nextmemfd
	;;
5)
	say "one type of file in another version: no session comes over"
	lost_all
	switch /good/lz4
	;;
6)
	hold
	switch /bad/noluo
	;;
7)
	say "a kernel without KHO"
	no_device
	check 3 this-kernel $NEXT --initrd /hfvm/initrd --cmdline "$LINE"
	switch /hfvm/kernels/1 "$LINE liveupdate=off"
	;;
8)
	say "a command line with live update switched off: load has switched it on again"
	[ -e /dev/liveupdate ] || hfvm-fail "there is no device"
	carry /good/7.3.efi
	;;
9)
	came_over "7.2 to 7.3 in a UKI"
	carry /bad/nomemfd
	;;
10)
	say "a kernel that preserves no memfds: no session comes over"
	lost_all
	switch /good/gzip
	;;
11)
	hold
	switch /bad/kho
	;;
12)
	say "a kernel with KHO alone"
	no_device
	check 3 this-kernel $NEXT --initrd /hfvm/initrd --cmdline "$LINE"
	switch /hfvm/kernels/1
	;;
13)
	carry /good/lz4
	;;
14)
	came_over "7.2 to 7.3 packed with lz4"
	echo "$LINE liveupdate=off" >/hfvm/cmdline-next
	hfvm-kexec-load
	over
	;;
15)
	say "with it off, as check said, there is none"
	no_device
	check 3 "this-kernel next-cmdline" $NEXT --initrd /hfvm/initrd --cmdline "$LINE liveupdate=off"
	switch /hfvm/kernels/1
	;;
16)
	say "locked down, and the image isn't signed"
	running /hfvm/kernels/1
	ln -s /config-7.2 "/boot/config-$(uname -r)" # which says whether the kernel looks for signatures
	hold
	/usr/libexec/holdfast-updated --listen /run/holdfast/io.holdfast.Update 2>/dev/null &
	until [ -S /run/holdfast/io.holdfast.Update ]; do sleep 0.1; done
	mount -t securityfs securityfs /sys/kernel/security
	check 0 "" $NEXT --initrd /hfvm/initrd --cmdline "$LINE"
	echo integrity >/sys/kernel/security/lockdown
	check 3 signature $NEXT --initrd /hfvm/initrd --cmdline "$LINE"
	not_updated signature $NEXT
	refused $NEXT --initrd /hfvm/initrd
	grep 'operation not permitted.*lockdown' /tmp/load || hfvm-fail "$(cat /tmp/load)"
	held
	hfvm-pass
	;;
esac
