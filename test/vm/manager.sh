#!/bin/sh
# SPDX-License-Identifier: MIT
# Machines in scopes, whose names have other numbers at each boot: two that ask for themselves, and two for which a manager
# does. They park while everything stops, and a rule of the policy gives them back their memory.
. /test/lib.sh
. /test/parking.sh

own() { # NUMBER VM USER: a process in a scope as libvirt's are
	mkdir -p "/root/$2"
	chown "$3:" "/root/$2"
	rm -f "/root/$2/start"
	systemd-run --quiet --scope --slice=machine.slice --unit="machine-qemu\\x2d$1\\x2d$2.scope" --uid="$3" \
		parker -late -dir "/root/$2" >"/root/$2/said" 2>&1 &
	wait_for [ -e "/root/$2/start" ]
}

managed() { # VM CAME: has the manager start it; sets $scope and $sum
	said=$(vm-manager start "$1") || fail "$1 wasn't started"
	scope=${said%% *}
	sum=${said##* }
	expect "where the memory of $1 came from" "$2" "$(echo "$said" | cut -d ' ' -f 2)"
	expect "its scope" active "$(systemctl is-active "$scope")"
}

shared() { # CGROUP: the memory in memfds that it pays for, in MiB
	awk '$1 == "shmem" { print int($2 / 1048576) }' "/sys/fs/cgroup/$1/memory.stat"
}

case $HFVM_BOOT in
1)
	echo 'u qemu 64055 - / /bin/sh' | systemd-sysusers -
	chmod 711 /root
	mkdir -p /etc/holdfast/policy.d
	cp /test/vm-manager/50-vm-manager.toml /etc/holdfast/policy.d
	cp /test/vm-manager/vm-manager.service /etc/systemd/system
	holdfast policy check
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service vm-manager.service
	own 1 vm1 qemu
	own 2 vm2 qemu
	for vm in vm1 vm2; do
		expect_in "$vm" fresh "$(cat /root/$vm/start)"
		cut -d ' ' -f 2 /root/$vm/start >/root/sum-$vm
	done
	managed web-1 fresh
	expect "the scope of web-1" 'machine-qemu\x2d1\x2dweb\x2d1.scope' "$scope"
	echo "$sum" >/root/sum-web-1
	managed db fresh
	echo "$sum" >/root/sum-db
	stored 0 || fail "something was parked before the stop"

	say "a machine that is stopped and started again"
	expect_in "db a second time" "db runs already" "$(vm-manager start db 2>&1)"
	systemctl stop "$scope"
	managed db parked
	expect "the scope of db" 'machine-qemu\x2d3\x2ddb.scope' "$scope"
	expect "the memory of db" "$(cat /root/sum-db)" "$sum"

	say "neighbours"
	# Another user's process in such a scope is not the machine.
	mkdir /root/other
	systemd-run --quiet --scope --slice=machine.slice --unit='machine-qemu\x2d9\x2dvm1.scope' \
		parker -dir /root/other >/root/other/said 2>&1 && fail "root got a session as qemu/vm1"
	expect_in "root in such a scope" "not permitted" "$(cat /root/other/error)"
	# Another service of root's is not the manager.
	for method in Acquire Reclaim Release; do
		systemd-run --quiet --wait --pipe --collect varlinkctl call /run/holdfast/io.holdfast "io.holdfast.Sessions.$method" \
			'{"name":"ram","subject":{"owner":"qemu/db"}}' >/root/said 2>&1 && fail "another service may $method as qemu/db"
		expect_in "another service's $method as qemu/db" NotPermitted "$(cat /root/said)"
	done
	update
	;;
2 | 3)
	for vm in vm1 vm2; do
		expect_in "how $vm parked" "parked $((HFVM_BOOT - 1)) " "$(cat /root/$vm/stop)"
		say "$vm parked within $(cut -d ' ' -f 3 /root/$vm/stop) ms"
	done
	own "${HFVM_BOOT}2" vm2 qemu
	own "${HFVM_BOOT}1" vm1 qemu
	for vm in vm1 vm2; do
		expect "$vm after update $((HFVM_BOOT - 1))" "update $(cat /root/sum-$vm)" "$(cat /root/$vm/start)"
	done
	wait_for systemctl is-active vm-manager
	for vm in db web-1; do # in another order
		managed $vm update
		expect "$vm after update $((HFVM_BOOT - 1))" "$(cat /root/sum-$vm)" "$sum"
		expect "what $scope pays for, in MiB" 8 "$(shared "machine.slice/$scope")"
	done
	expect "the scope of web-1" 'machine-qemu\x2d2\x2dweb\x2d1.scope' "$scope"
	expect "what the manager pays for" 0 "$(shared system.slice/vm-manager.service)"
	expect "what holdfastd pays for" 0 "$(shared system.slice/holdfastd.service)"
	say "all four are back"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
