#!/bin/sh
# SPDX-License-Identifier: MIT
# Many units and scopes that park all at once, while everything stops: each gets through, and gets back what is its own.
. /test/lib.sh
. /test/parking.sh

units=$(seq -f u%g "$UNITS")
scopes=$(seq -f s%g "$SCOPES")

# ready: all of them have started
ready() {
	for n in $units $scopes; do
		[ -e "/root/$n/start" ] || return 1
	done
}

begin() {
	for n in $units $scopes; do
		mkdir -p "/root/$n"
		rm -f "/root/$n/start"
	done
	systemctl start --no-block $(for n in $units; do echo "many@$n"; done)
	for n in $scopes; do
		systemd-run --quiet --scope --slice=machine.slice --unit="machine-$n-$HFVM_BOOT.scope" \
			parker -late -size 1048576 -dir "/root/$n" >"/root/$n/said" 2>&1 &
	done
	wait_for ready
}

case $HFVM_BOOT in
1)
	mkdir -p /etc/holdfast/policy.d
	cat >/etc/holdfast/policy.d/50-local.toml <<-'END'
		[[rule]]
		name   = "machines"
		cgroup = '/machine.slice/machine-{vm}-#.scope'
		uid    = 0
		owner  = "machine/{vm}"
	END
	cat >/etc/systemd/system/many@.service <<-'END'
		[Service]
		ExecStart=parker -late -size 1048576 -dir /root/%i
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	begin
	for n in $units $scopes; do
		expect_in "$n" fresh "$(cat "/root/$n/start")"
		cut -d ' ' -f 2 "/root/$n/start" >"/root/$n/sum"
	done
	update
	;;
2 | 3)
	slowest=0
	for n in $units $scopes; do
		expect_in "how $n parked" "parked $((HFVM_BOOT - 1)) " "$(cat "/root/$n/stop")"
		took=$(cut -d ' ' -f 3 "/root/$n/stop")
		[ "$took" -lt "$slowest" ] || slowest=$took
		rm "/root/$n/stop"
	done
	say "$UNITS units and $SCOPES scopes parked, the slowest within $slowest ms"
	begin
	for n in $units $scopes; do
		expect "$n" "update $(cat "/root/$n/sum")" "$(cat "/root/$n/start")"
	done
	say "all are back"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
