#!/bin/sh
# SPDX-License-Identifier: MIT
# A machine's scope, whose name has another number at each boot: it parks while everything stops, and a rule of the policy
# gives it back its memory.
. /test/lib.sh
. /test/parking.sh

machine() { # NUMBER VM USER: a process in a scope as libvirt's are
	mkdir -p "/root/$2"
	chown "$3:" "/root/$2"
	rm -f "/root/$2/start"
	systemd-run --quiet --scope --slice=machine.slice --unit="machine-qemu\\x2d$1\\x2d$2.scope" --uid="$3" \
		parker -late -dir "/root/$2" >"/root/$2/said" 2>&1 &
	wait_for [ -e "/root/$2/start" ]
}

case $HFVM_BOOT in
1)
	echo 'u qemu 64055 - / /bin/sh' | systemd-sysusers -
	chmod 711 /root
	mkdir -p /etc/holdfast/policy.d
	cat >/etc/holdfast/policy.d/50-local.toml <<-'END'
		[[rule]]
		name       = "vms"
		cgroup     = '/machine.slice/machine-qemu\x2d#\x2d{vm:unescaped}.scope'
		uid        = "qemu"
		owner      = "qemu/{vm}"
		names      = ["ram"]
		max-parked = 1
	END
	holdfast policy check
	systemctl enable --now holdfastd.socket holdfastd.service
	machine 1 vm1 qemu
	machine 2 vm2 qemu
	for vm in vm1 vm2; do
		expect_in "$vm" fresh "$(cat /root/$vm/start)"
		cut -d ' ' -f 2 /root/$vm/start >/root/sum-$vm
	done
	stored 0 || fail "something was parked before the stop"
	# Another user's process in such a scope is not the machine.
	mkdir /root/other
	systemd-run --quiet --scope --slice=machine.slice --unit='machine-qemu\x2d9\x2dvm1.scope' \
		parker -dir /root/other >/root/other/said 2>&1 && fail "root got a session as qemu/vm1"
	expect_in "root in such a scope" "not permitted" "$(cat /root/other/error)"
	update
	;;
2 | 3)
	for vm in vm1 vm2; do
		expect_in "how $vm parked" "parked $((HFVM_BOOT - 1)) " "$(cat /root/$vm/stop)"
		say "$vm parked within $(cut -d ' ' -f 3 /root/$vm/stop) ms"
	done
	machine "${HFVM_BOOT}2" vm2 qemu
	machine "${HFVM_BOOT}1" vm1 qemu
	for vm in vm1 vm2; do
		expect "$vm after update $((HFVM_BOOT - 1))" "update $(cat /root/sum-$vm)" "$(cat /root/$vm/start)"
	done
	say "both are back"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
