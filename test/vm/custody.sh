#!/bin/sh
# SPDX-License-Identifier: MIT
# A service without a store of its own, parked with holdfastd: over crashes of it and of holdfastd, over upgrades of
# holdfastd, and two updates.
. /test/lib.sh
. /test/parking.sh

crash() { # WHAT
	rm -f /root/parked/start
	systemctl kill --signal=KILL parked
	wait_for [ -e /root/parked/start ]
	expect "after $1" "crash $(cat /root/sum)" "$(cat /root/parked/start)"
	wait_for stored 3
}

# put VERSION BINARY: that holdfastd is installed, as an upgrade of its package does, and not started yet
put() {
	install -m 755 "$2" /usr/libexec/holdfastd.new
	mv /usr/libexec/holdfastd.new /usr/libexec/holdfastd
	expect "what is installed" "holdfastd $1" "$(/usr/libexec/holdfastd -version)"
}

runs() { # VERSION
	expect "the version that runs" "\"version\":\"$1\"" \
		"$(varlinkctl call -j /run/holdfast/io.holdfast io.holdfast.Sessions.Describe '{}' | grep -o '"version":"[^"]*"')"
}

next=/test/holdfastd-next

case $HFVM_BOOT in
1)
	cp /usr/libexec/holdfastd /root/holdfastd-before
	/usr/libexec/holdfastd -version | cut -d ' ' -f 2 >/root/before
	mkdir /root/parked
	cat >/etc/systemd/system/parked.service <<-'END'
		[Unit]
		StartLimitIntervalSec=0
		[Service]
		Type=notify
		ExecStart=parker -dir /root/parked
		Restart=on-failure
		RestartSec=100ms
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	expect_in "status" "keeper: fdstore" "$(holdfast status)"
	systemctl start parked
	expect_in "first start" fresh "$(cat /root/parked/start)"
	cut -d ' ' -f 2 /root/parked/start >/root/sum
	wait_for stored 3

	crash "its crash"
	systemctl restart holdfastd
	crash "a restart of holdfastd"
	pid=$(systemctl show -P MainPID holdfastd)
	systemctl kill --signal=KILL holdfastd
	wait_for another "$pid"
	crash "a crash of holdfastd"
	systemctl reload holdfastd
	crash "a reload of holdfastd"
	put next $next
	systemctl reload holdfastd # which is no upgrade yet
	runs "$(cat /root/before)"
	crash "a reload of holdfastd before its upgrade"
	systemctl restart holdfastd
	runs next
	crash "an upgrade of holdfastd"
	put "$(cat /root/before)" /root/holdfastd-before
	pid=$(systemctl show -P MainPID holdfastd)
	systemctl kill --signal=KILL holdfastd
	wait_for another "$pid"
	runs "$(cat /root/before)"
	systemctl restart parked # which was connected to the one before
	expect_in "its stop after a downgrade of holdfastd" "parked 1 " "$(cat /root/parked/stop)"
	expect "after a downgrade of holdfastd" "crash $(cat /root/sum)" "$(cat /root/parked/start)"
	systemctl daemon-reexec
	crash "PID 1 executed itself anew"
	systemctl restart parked
	expect "after its own restart" "crash $(cat /root/sum)" "$(cat /root/parked/start)"
	expect_in "its stop" "parked 1 " "$(cat /root/parked/stop)"
	update
	;;
2 | 3)
	expect_in "its stop" "parked $((HFVM_BOOT - 1)) " "$(cat /root/parked/stop)"
	if [ "$HFVM_BOOT" = 2 ]; then # between the update and whoever asks for it
		put next $next
	else
		put "$(cat /root/before)" /root/holdfastd-before
	fi
	systemctl restart holdfastd
	systemctl start parked
	expect "after update $((HFVM_BOOT - 1))" "update $(cat /root/sum)" "$(cat /root/parked/start)"
	say "$(cat /root/parked/start), $(names | tr '\n' ' ')"
	wait_for stored 3 # what was released is closed some time after it
	pid=$(systemctl show -P MainPID holdfastd)
	systemctl kill --signal=KILL holdfastd
	wait_for another "$pid"
	crash "a crash of holdfastd and of it"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
