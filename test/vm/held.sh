#!/bin/sh
# SPDX-License-Identifier: MIT
# The device is open elsewhere when a shutdown ends, so systemd carries nothing over that is in a store. The kernel has it
# all the same, and who asks by name gets it: each of several units all of its sessions, with what is in them, and nobody
# another's.
. /test/lib.sh
. /test/parking.sh

fleet="1 2 3"

# begin FROM: the units of the fleet have sessions that all come FROM there, with the memory that they had
begin() {
	systemctl restart $(for n in $fleet; do echo "fleet@$n"; done)
	for n in $fleet; do
		sed "s/^/$n /" "/root/fleet/$n/start"
	done >/root/said
	expect "sessions in all" 12 "$(wc -l </root/said)"
	expect "where they came from" "$1" "$(cut -d ' ' -f 3 /root/said | sort -u)"
	[ -e /root/sums ] || cut -d ' ' -f 1,2,4 /root/said >/root/sums
	cut -d ' ' -f 1,2,4 /root/said | cmp - /root/sums || fail "somebody has other memory than before"
}

if [ "$HFVM_BOOT" = 1 ]; then
	mkdir /root/parked
	cat >/etc/systemd/system/parked.service <<-'END'
		[Service]
		Type=notify
		ExecStart=parker -dir /root/parked
	END
	for n in $fleet; do
		mkdir -p "/root/fleet/$n"
		echo "NEIGHBOUR=$((n % 3 + 1))" >"/root/fleet/$n/environment"
	done
	cat >/etc/systemd/system/fleet@.service <<-'END'
		[Service]
		Type=notify
		EnvironmentFile=/root/fleet/%i/environment
		ExecStart=fleet -unit unit%i -neighbour unit${NEIGHBOUR} -neighbour-owner /fleet@${NEIGHBOUR}.service -count 4 -renew -dir /root/fleet/%i
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	begin fresh
	systemctl start parked
	expect_in "first start" fresh "$(cat /root/parked/start)"
	cut -d ' ' -f 2 /root/parked/start >/root/sum
else
	expect_in "its stop" "parked $((HFVM_BOOT - 1)) " "$(cat /root/parked/stop)"
	expect "the device at the last shutdown" held "$(cat /root/holder)"
	expect "what waits in holdfastd's store" "" "$(names)"
	systemctl start parked
	expect "after update $((HFVM_BOOT - 1))" "update $(cat /root/sum)" "$(cat /root/parked/start)"
	begin update
	say "from the kernel: $(cat /root/parked/start), and $(wc -l </root/said) sessions of others"
	pid=$(systemctl show -P MainPID holdfastd)
	systemctl kill --signal=KILL holdfastd
	wait_for another "$pid"
	systemctl restart parked
	expect "after a crash of holdfastd" "crash $(cat /root/sum)" "$(cat /root/parked/start)"
	begin crash
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
fi

# It survives systemd's last signals. From when the session was parked it has the device.
cat >/root/hold <<-'END'
	#!/bin/sh
	until [ -e /root/parked/stop ]; do sleep 0.1; done
	exec 9<>/dev/liveupdate || exit 1
	echo held >/root/holder
	exec bash -c "exec -a @hold sleep infinity"
END
chmod +x /root/hold
cat >/etc/systemd/system/holder.service <<-'END'
	[Unit]
	DefaultDependencies=no
	IgnoreOnIsolate=yes
	[Service]
	ExecStart=/root/hold
	SurviveFinalKillSignal=yes
	KillMode=none
END
systemctl daemon-reload
rm -f /root/parked/stop /root/holder
systemctl start holder
update
