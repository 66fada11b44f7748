#!/bin/sh
# SPDX-License-Identifier: MIT
# What holdfast check says of sessions and of the units that have them, and what an update then makes of them.
. /test/lib.sh

# finding SEVERITY ID PART: the check has found that
finding() {
	grep -q "^$1  *$2  *.*$3" /root/check || {
		cat /root/check
		fail "no $1 $2 with '$3'"
	}
}

# check STATUS [ARGUMENT...]: in /root/check
check() {
	want=$1
	shift
	status=0
	holdfast check "$@" >/root/check 2>&1 || status=$?
	[ "$status" = "$want" ] || {
		cat /root/check
		fail "holdfast check: exit status $status"
	}
}

# not_updated ID...: an update to the next kernel is refused, for these reasons and no others, and no kernel is left loaded
not_updated() {
	status=0
	holdfast update --yes --json /hfvm/kernel-next >/root/update 2>&1 || status=$?
	seen=$(sed -n 's/^ *"id": "\(.*\)",$/\1/p' /root/update | sort | tr '\n' ' ')
	[ "3 $* " = "$status $seen" ] || {
		cat /root/update
		varlinkctl call /run/holdfast/io.holdfast.Update io.holdfast.Update.Check '{}'
		fail "holdfast update: exit status $status, errors $seen; expected $*"
	}
	expect "loaded" 0 "$(cat /sys/kernel/kexec_loaded)"
}

next() { check "$1" /hfvm/kernel-next --cmdline "$(cat /hfvm/cmdline-next)"; }

# incoming UNIT: is there a session of the previous kernel in its store?
incoming() { holdfast list --all | grep -c "incoming.*store of $1.service" || :; }

# Run in a unit with a session as descriptor 3: store it, in this unit's store or in another's too.
cat >/root/keep <<-'END'
	#!/bin/sh -e
	for way in "$@"; do
		case $way in
		stored) systemd-notify --fd=3 --fdname="${LISTEN_FDNAMES%%:*}" ;;
		null) systemd-notify --fd=0 --fdname=null ;;
		# To PID 1 this is of the second unit, in whose cgroup it is.
		twice) sh -ec 'echo 0 >/sys/fs/cgroup/system.slice/two.service/cgroup.procs; systemd-notify --fd=3 --fdname=x' ;;
		esac
	done
	systemd-notify --ready
	exec sleep infinity
END
chmod +x /root/keep

service() { # UNIT STORE PRESERVE LINES
	cat >"/etc/systemd/system/$1.service" <<-END
		[Service]
		NotifyAccess=all
		FileDescriptorStoreMax=$2
		FileDescriptorStorePreserve=$3
		$4
	END
}

keeps() { # WAY...
	printf 'Type=notify\nExecStart=holdfast acquire ram -- /root/keep %s' "$*"
}

case $HFVM_BOOT in
1)
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service
	say "nothing to lose"
	ln -s /hfvm/kernels/1 "/boot/vmlinuz-$(uname -r)" # where distributions have it
	next 0
	grep '^warning' /root/check && fail "there is something to look at"
	finding ok this-kernel "does live updates"
	finding ok next-kernel "a whole bzImage"
	finding ok systemd "carries fd stores"
	finding ok loaded "no kernel is loaded"
	finding ok next-kho kho-v
	finding ok next-luo luo-v
	finding ok next-memfd memfd-v
	check 0
	finding warning next-kernel "no kernel was named"

	service good 8 yes "$(keeps stored)"
	service lucky 8 on-success "$(keeps stored)"
	service forgetful 8 restart "$(keeps stored)"
	service one 8 yes "$(keeps stored twice)"
	service two 8 yes "ExecStart=sleep infinity"
	service odd 8 yes "$(keeps stored null)"
	service full 1 yes "$(keeps stored)"
	service bare 0 no "$(keeps)"
	systemctl start two
	systemctl start good lucky full odd
	next 0
	finding ok uncommitted "committed: 5 sessions" # with the one that the timeline is in
	finding warning not-preservable "store of odd.service .*\"null\" (/dev/null)"
	finding warning store-room "store of full.service is full"

	say "and something to lose"
	systemctl start forgetful one bare
	next 3
	grep '^error' /root/check
	finding error uncommitted "not committed: only bare.service (PID $(systemctl show -P MainPID bare))"
	finding error store-preserved "forgetful.service has 1 session,.*FileDescriptorStorePreserve=restart"
	finding error two-stores "in the fd stores of one.service and of two.service"
	expect "errors" 3 "$(grep -c '^error' /root/check)"
	not_updated store-preserved two-stores uncommitted
	varlinkctl call /run/holdfast/io.holdfast.Update io.holdfast.Update.Check '{}' >/root/update
	if grep unseen /root/update; then fail "holdfast-updated doesn't see what root does"; fi
	expect "bare.service" active "$(systemctl is-active bare)"
	mkdir -p /run/initramfs
	touch /run/initramfs/.need_shutdown
	next 3
	finding error exitrd need_shutdown
	rm /run/initramfs/.need_shutdown

	say "as somebody else"
	setpriv --reuid=65534 --clear-groups holdfast check >/root/check 2>&1 || fail "holdfast check: exit status $?"
	finding warning this-kernel "for root to see"
	finding warning unseen "processes whose files"

	holdfast load /hfvm/kernel-next --cmdline "$(cat /hfvm/cmdline-next)"
	check 3
	finding warning next-kernel "a kernel is loaded, but not even the kernel can tell which"
	say "switching"
	systemctl kexec || : "the bus may go down before it has answered"
	exit 0
	;;
2)
	say "what it said is what has come of it"
	holdfast list --all | grep -v '^  '
	expect "good.service" 1 "$(incoming good)"
	expect "lucky.service" 1 "$(incoming lucky)"
	expect "full.service" 1 "$(incoming full)"
	expect "odd.service" 1 "$(incoming odd)"
	expect "forgetful.service" 0 "$(incoming forgetful)"
	expect "bare.service" 0 "$(incoming bare)"
	expect "one.service and two.service" 1 "$(($(incoming one) + $(incoming two)))"
	expect "what odd.service had besides" 1 "$(systemctl show -P NFileDescriptorStore odd)"

	say "a second update couldn't carry these"
	next 3
	finding error incoming "in the fd store of good.service, came from the previous kernel and has not been renewed"
	finding warning unretrieved "started by a live update"

	say "an initrd with systemd 257"
	check 3 /bad/257.efi --cmdline "$(cat /hfvm/cmdline-next)"
	finding error next-initrd "the initrd has systemd 257"
	status=0
	holdfast update --yes /bad/257.efi >/root/update 2>&1 || status=$?
	expect "holdfast update" 3 $status
	expect_in "why" "systemd 257" "$(cat /root/update)"
	expect "loaded" 0 "$(cat /sys/kernel/kexec_loaded)"
	service again 8 yes "$(keeps stored)"
	systemctl start again
	holdfast load /bad/257.efi --cmdline "$(cat /hfvm/cmdline-next)" --force
	say "switching"
	systemctl kexec || : "the bus may go down before it has answered"
	exit 0
	;;
3)
	say "as it said, nothing came back to where it was stored; but the kernel has it"
	expect "again.service" 0 "$(systemctl show -P NFileDescriptorStore again)"
	service again 8 yes "$(printf 'Type=oneshot\nExecStart=holdfast reclaim ram --direction incoming -- true')"
	systemctl daemon-reload
	systemctl start again || fail "holdfast reclaim has no success"
	hfvm-pass
	;;
esac
