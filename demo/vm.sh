#!/bin/sh
# SPDX-License-Identifier: MIT
# A virtual machine of QEMU over two updates of its host's kernel, as it happens on the host. Lines that begin with "demo:" are
# for demo/vm.go: "demo: KEY VALUE".
set -eu

tell() { echo "demo: $*"; }

# What the guest has said since it was booted; the guest's kernel is quiet, so that is all by its program.
show() { tail -n +1 -F /var/log/vmm/vm1.log 2>/dev/null | sed -u 's/^/demo: console /; s/\r$//'; }

# until_tick N
until_tick() { until grep -q "^tick $1 .*ok" /var/log/vmm/vm1.log 2>/dev/null; do sleep 0.5; done; }

# until_more N: as many more ticks
until_more() { until_tick $(($(grep -c '^tick ' /var/log/vmm/vm1.log) + $1)); }

case $HFVM_BOOT in
1)
	echo 'u qemu 64055 - / /bin/sh' | systemd-sysusers -
	mkdir -p /etc/systemd/system/vmm.service.d
	printf '[Service]\nStandardError=append:/root/vmm.stderr\n' >/etc/systemd/system/vmm.service.d/demo.conf
	printf 'MACHINES=vm1\nMEMORY=64\nAPPEND="console=ttyS0 panic=-1 quiet no_timer_check FILL_MIB=16"\n' >/etc/default/vmm
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service vmm.service >/dev/null 2>&1
	;;
esac
tell kernel "$(uname -r)"
show &
if [ "$HFVM_BOOT" = 1 ]; then
	until_tick 5
else
	until systemctl is-active --quiet vmm; do sleep 0.2; done
	until_more 4
	holdfast wait --settled -t 1m >/dev/null
	tell report "$(holdfast report --json | tr -d '\n')"
	tell vmm "$(sed -n 's/^vmm: vm1: \(stopped .*\)/\1/p' /root/vmm.stderr | tail -n 1)"
	tell vmm "$(sed -n 's/^vmm: vm1: \(retrieved .*\)/\1/p' /root/vmm.stderr | tail -n 1)"
	tell chapter
fi
[ "$HFVM_BOOT" -lt 3 ] || exec hfvm-pass
hfvm-kexec-load
tell switching
holdfast update --yes >/dev/null
