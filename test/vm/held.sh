#!/bin/sh
# SPDX-License-Identifier: MIT
# The device is open elsewhere when a shutdown ends, so systemd carries nothing over that is in a store. The kernel has it
# all the same, and who asks by name gets it.
. /test/lib.sh
. /test/parking.sh

if [ "$HFVM_BOOT" = 1 ]; then
	mkdir /root/parked
	cat >/etc/systemd/system/parked.service <<-'END'
		[Service]
		Type=notify
		ExecStart=parker -dir /root/parked
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	systemctl start parked
	expect_in "first start" fresh "$(cat /root/parked/start)"
	cut -d ' ' -f 2 /root/parked/start >/root/sum
else
	expect_in "its stop" "parked $((HFVM_BOOT - 1)) " "$(cat /root/parked/stop)"
	expect "the device at the last shutdown" held "$(cat /root/holder)"
	expect "what waits in holdfastd's store" "" "$(names)"
	systemctl start parked
	expect "after update $((HFVM_BOOT - 1))" "update $(cat /root/sum)" "$(cat /root/parked/start)"
	say "from the kernel: $(cat /root/parked/start)"
	pid=$(systemctl show -P MainPID holdfastd)
	systemctl kill --signal=KILL holdfastd
	wait_for another "$pid"
	systemctl restart parked
	expect "after a crash of holdfastd" "crash $(cat /root/sum)" "$(cat /root/parked/start)"
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
