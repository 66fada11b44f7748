#!/bin/sh
# SPDX-License-Identifier: MIT
# A virtual machine of QEMU by the packaged unit, under holdfast run: an update that its state can't be written for, a stop, an update
# of the host's kernel, SIGKILL. Its guest is that
# of examples/vmm: it has drawn a word, and looks at each tick at 16 MiB that follow from it.
. /test/lib.sh

console=/root/console
: >>$console

# ticks MORE: until the guest has told of as many more, all in order, with one word and whole memory
ticks() {
	wanted=$(($(grep -c '^tick ' $console || :) + $1))
	end=$(($(cut -d. -f1 /proc/uptime) + 180))
	until [ "$(grep -c '^tick ' $console || :)" -ge $wanted ]; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || fail "the guest doesn't tick: $(tail -n 5 $console)"
		sleep 0.5 # between looks, so that the guest has the processor
	done
	expect "ticks out of order, or memory that isn't as it was" "" \
		"$(tr -d '\r' <$console | sed -n 's/^tick //p' | awk 'NR == 1 { word = $3 } $1 != NR || $3 != word || $0 !~ /ok$/' | head -n 3)"
}

case $HFVM_BOOT in
1)
	mkdir -p /etc/holdfast/qemu
	cat >/etc/holdfast/qemu/vm1 <<-END
		MEMORY=64M
		OPTIONS=-nodefaults -display none -cpu qemu64,+rdrand -chardev file,id=console,path=$console,append=on -serial chardev:console \
		-kernel /var/lib/vmm/kernel -initrd /var/lib/vmm/initrd -append 'console=ttyS0 panic=-1 quiet no_timer_check FILL_MIB=16'
	END
	systemctl enable holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service holdfast-qemu@vm1
	systemctl start holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service holdfast-qemu@vm1
	ticks 2
	wait_for sh -c "varlinkctl call /run/holdfast/io.holdfast.Update io.holdfast.Update.Status {} | grep -q '\"run\"'"

	say "its state can't be written"
	qemu=$(pgrep -x qemu-system-x86)
	mkdir /run/qemu-vm1/state
	hfvm-kexec-load
	status=0
	holdfast update --yes || status=$?
	expect "exit status" 4 $status
	rmdir /run/qemu-vm1/state
	ticks 2
	expect "the machine that goes on" "$qemu" "$(pgrep -x qemu-system-x86)"

	say "stopped and started"
	systemctl restart holdfast-qemu@vm1
	ticks 2
	uname -r >/root/kernel
	hfvm-kexec-load
	say switching
	holdfast update --yes
	exit 0
	;;
2)
	[ "$(uname -r)" != "$(cat /root/kernel)" ] || fail "the kernel is $(uname -r), as before"
	ticks 2
	holdfast wait --settled -t 1m || fail "not settled: $(holdfast status)"

	say "SIGKILL of QEMU: the next one is switched on, and takes up nothing"
	old=$(pgrep -x qemu-system-x86)
	expect_in "the one that took the machine over" -incoming "$(tr '\0' ' ' <"/proc/$old/cmdline")"
	kill -9 "$old"
	wait_for sh -c "pid=\$(pgrep -x qemu-system-x86) && [ \$pid != $old ]"
	case $(tr '\0' ' ' <"/proc/$(pgrep -x qemu-system-x86)/cmdline") in
	*-incoming*) fail "a machine that was killed has come back" ;;
	esac
	exec hfvm-pass
	;;
esac
