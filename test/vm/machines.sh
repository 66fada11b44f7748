#!/bin/sh
# SPDX-License-Identifier: MIT
# Two virtual machines of QEMU, by examples/vmm, over two updates by holdfast update. In each a guest counts on its console, and
# looks at its memory at each tick, which it has filled with what follows from a word that it drew. In the second update the
# QEMU of one is killed once both are prepared: the other crosses.
. /test/lib.sh

updated=/run/holdfast/io.holdfast.Update
ram=64 # MiB

# console VM: how many ticks there were, and the word; nothing if they aren't one after the other from the first on, with the
# same word, and the memory right. A line that is yet to be written to its end doesn't count.
console() {
	tr -d '\r' <"/var/log/vmm/$1.log" | awk '
		/^tick .*( ok|WRONG)$/ {
			if (n == 0) word = $4
			if ($2 != ++n || $4 != word || $0 !~ / ram [0-9]+ MiB ok$/) { print "not tick " n ": " $0 >"/dev/stderr"; wrong = 1; exit }
		}
		END { if (!wrong) print n + 0, word }'
}

# counted VM N: it has counted up to N at least, with nothing missing. It may take a machine in an emulated one a minute to come up.
counted() {
	end=$(($(cut -d . -f 1 /proc/uptime) + 240))
	while :; do
		now=$(console "$1")
		[ -n "$now" ] || fail "the console of $1 is wrong: $(tail -n 3 "/var/log/vmm/$1.log")"
		[ "${now% *}" -lt "$2" ] || break
		[ "$(cut -d . -f 1 /proc/uptime)" -lt $end ] || fail "$1 doesn't get to tick $2: $(tail -n 3 "/var/log/vmm/$1.log")"
		sleep 0.5 # as long as a tick
	done
}

# goes_on VM: it counts on from where it was when the kernel was left, and looks at its memory.
goes_on() {
	counted "$1" $(($(cut -d ' ' -f 1 "/root/left-$1") + 1))
	now=$(console "$1")
	counted "$1" $((${now% *} + 2)) # of which at least one began after the update
	expect "the word of $1" "$(cut -d ' ' -f 2 "/root/left-$1")" "$(console "$1" | cut -d ' ' -f 2)"
	say "$1 went on after tick $(cut -d ' ' -f 1 "/root/left-$1") or later, and is at $(console "$1" | cut -d ' ' -f 1)"
}

# scope VM: its scope, whatever number that has
scope() { basename /sys/fs/cgroup/machine.slice/*'\x2d'"$1.scope"; }

# process VM COMMAND: the PID of the one in its scope that is called so
process() { for pid in $(cat "/sys/fs/cgroup/machine.slice/$(scope "$1")/cgroup.procs"); do grep -qx "$2" "/proc/$pid/comm" && echo "$pid"; done; }

shared() { # CGROUP: the memory in memfds that it pays for, in MiB
	awk '$1 == "shmem" { print int($2 / 1048576) }' "/sys/fs/cgroup/$1/memory.stat"
}

# pays VM: it does, and nobody for it
pays() {
	in=machine.slice/$(scope "$1")
	[ "$(shared "$in")" -ge $ram ] || fail "the scope of $1 pays for $(shared "$in") MiB of memfds, and its RAM has $ram"
	[ "$(cat "/sys/fs/cgroup/$in/memory.current")" -ge $((ram * 1048576)) ] || fail "memory.current of $1 is less than its RAM"
	expect "what vmm pays for" 0 "$(shared system.slice/vmm.service)"
	expect "what holdfastd pays for" 0 "$(shared system.slice/holdfastd.service)"
}

# beside VM: the size of what goes into its session beside the RAM
beside() {
	for f in /proc/"$(process "$1" exe)"/fd/*; do
		case $(readlink "$f") in /memfd:state*) stat -L -c %s "$f" ;; esac
	done
}

status() { varlinkctl --json=short call $updated io.holdfast.Update.Status '{}'; }

# is PHASE NAME=STATE...: the update is in that phase, and of these participants this is so
is() {
	now=$(status)
	phase=$1
	shift
	case $now in *"\"phase\":\"$phase\""*) ;; *) return 1 ;; esac
	for who; do
		printf '%s\n' "$now" | grep -q "\"name\":\"${who%=*}\",[^}]*\"state\":\"${who#*=}\"" || return 1
	done
}

joined() { [ "$(status | grep -o "\"name\":\"vm[12]\"" | wc -l)" = "$1" ]; }

# back N: so many of the two have come back
back() { holdfast status | grep -q "of 2 sessions: $1 back"; }

# leave notes how far the machines are, and loads the next kernel.
leave() {
	for vm in vm1 vm2; do console $vm >/root/left-$vm; done
	say "left at: vm1 $(cat /root/left-vm1), vm2 $(cat /root/left-vm2)"
	sync # should the kernel not come back, what was there is seen
	hfvm-kexec-load
}

# took NAME: a span of the report, in milliseconds
took() {
	tr -d '\n ' </root/report | sed -n "s/.*{\"name\":\"$1\",\"beginUSec\":\\([0-9-]*\\),\"endUSec\":\\([0-9-]*\\)}.*/\\1 \\2\n/p" | {
		read -r begin end || exit 0
		echo "$1 $(((end - begin) / 1000)) ms"
	}
}

# pause VM: how its pause is made up, in the order of time. Printed, and not judged.
pause() {
	say "the pause of $1: $(sed -n "s/^vmm: $1: \(stopped .*\)/\1/p" /root/vmm.stderr | tail -n 1)"
	holdfast report --json >/root/report
	say "  then $(for span in stop kexec kernel userspace reclaim; do took $span; done | paste -sd ,)"
	say "  then $(sed -n "s/^vmm: $1: \(retrieved .*\)/\1/p" /root/vmm.stderr | tail -n 1)"
}

case $HFVM_BOOT in
1)
	echo 'u qemu 64055 - / /bin/sh' | systemd-sysusers -
	mkdir -p /etc/holdfast/policy.d /etc/systemd/system/vmm.service.d
	cp /test/vmm/50-vmm.toml /etc/holdfast/policy.d
	cp /test/vmm/vmm.service /etc/systemd/system
	cat >/etc/systemd/system/vmm.service.d/test.conf <<-END
		[Service]
		StandardError=append:/root/vmm.stderr
	END
	cat >/etc/default/vmm <<-END
		MACHINES=vm1
		MEMORY=$ram
		APPEND="console=ttyS0 panic=-1 quiet no_timer_check FILL_MIB=$FILL_MIB"
	END
	holdfast policy check
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service vmm.service
	expect_in "vm2" " fresh" "$(vmm start vm2)"
	expect_in "vm1 a second time" "vm1 runs already" "$(vmm start vm1 2>&1)"
	wait_for joined 2
	say "two machines come up"
	counted vm1 2
	counted vm2 2
	
	for vm in vm1 vm2; do
		[ "$(beside $vm)" -le 1048576 ] || fail "the state of $vm takes '$(beside $vm)' bytes; $(scope $vm): $(process $vm '.*')"
	done
	leave
	[ "$(cut -d ' ' -f 2 /root/left-vm1)" != "$(cut -d ' ' -f 2 /root/left-vm2)" ] || fail "both have drawn the same word"
	holdfast update --yes
	exit 0
	;;
2)
	wait_for systemctl is-active vmm
	expect_in "vm2" " update" "$(vmm start vm2)"
	for vm in vm1 vm2; do
		goes_on $vm
		pays $vm
	done
	holdfast wait --settled -t 1m || fail "not settled: $(holdfast status)"
	pause vm1
	pause vm2

	say "a machine whose scope is stopped goes on when it is started"
	console vm2 >/root/left-vm2
	systemctl stop "$(scope vm2)"
	expect_in "vm2" " parked" "$(vmm start vm2)"
	goes_on vm2

	# The gate takes part too, so that preparing isn't over before both machines are ready for it and one of them is dead.
	wait_for joined 2
	stdbuf -oL varlinkctl --json=short call --more $updated io.holdfast.Update.Join '{"name":"gate"}' >/root/gate &
	wait_for grep -q '"id"' /root/gate
	id=$(sed -n 's/.*"id":"\([^"]*\)".*/\1/p' /root/gate | head -n 1)
	leave
	holdfast update --yes &
	wait_for is preparing vm1=ready vm2=ready gate=waiting
	kill -KILL "$(process vm2 qemu-system-x86)"
	wait_for is preparing vm1=ready vm2=gone gate=waiting
	say "vm2 is dead, and the update goes on"
	vote() { varlinkctl call $updated io.holdfast.Update.Vote "{\"id\":\"$id\",\"round\":$(status | sed 's/.*"round":\([0-9]*\).*/\1/'),\"phase\":\"$1\",\"ready\":true}" >/dev/null; }
	vote preparing
	wait_for is quiescing gate=waiting
	vote quiescing
	wait
	exit 0
	;;
3)
	wait_for systemctl is-active vmm
	goes_on vm1
	pays vm1
	expect_in "vm2, which had died" " fresh" "$(vmm start vm2)"
	wait_for back 1
	expect_in "what is said of vm2" "the kernel was switched without its participant vm2, which was gone" "$(holdfast status)"
	pause vm1
	exec hfvm-pass
	;;
esac
