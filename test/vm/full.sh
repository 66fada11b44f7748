#!/bin/sh
# SPDX-License-Identifier: MIT
# holdfastd's store is full: who parks is told so, and all that is parked already stays, and comes back.
. /test/lib.sh
. /test/parking.sh

begin() { # NAME: a parker, in the background
	mkdir -p "/root/$1"
	rm -f "/root/$1/start" "/root/$1/error"
	systemd-run --quiet --collect --unit="$1" parker -size 65536 -dir "/root/$1"
	wait_for settled "$1"
}

settled() { [ -e "/root/$1/start" ] || [ -e "/root/$1/error" ]; }

case $HFVM_BOOT in
1)
	mkdir -p /etc/systemd/system/holdfastd.service.d
	printf '[Service]\nFileDescriptorStoreMax=8\n' >/etc/systemd/system/holdfastd.service.d/small.conf
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service
	for n in one two; do # three descriptors each
		begin $n
		expect_in "$n" fresh "$(cat /root/$n/start)"
		cut -d ' ' -f 2 /root/$n/start >/root/sum-$n
	done
	begin three
	say "$(cat /root/three/error)"
	expect_in "the third" "holds at most 8 descriptors, and is full" "$(cat /root/three/error)"
	wait_for stored 6
	begin three
	expect_in "the third, again" "full" "$(cat /root/three/error)"
	wait_for stored 6
	systemctl restart holdfastd
	wait_for stored 6
	begin three
	expect_in "the third, after a restart" "full" "$(cat /root/three/error)"
	systemctl stop one
	expect_in "one" "parked 1 " "$(cat /root/one/stop)"
	begin one
	expect "one, after its crash" "crash $(cat /root/sum-one)" "$(cat /root/one/start)"
	update
	;;
2)
	begin one
	expect "one after an update" "update $(cat /root/sum-one)" "$(cat /root/one/start)"
	# A renewal needs the old one and the new one for a while. Without room for both it ends before or after the old one
	# was finished, as PID 1 was with closing what "one" released.
	begin two
	expect_in "two after an update, in a full store" "full" "$(cat /root/two/error)"
	printf '[Service]\nFileDescriptorStoreMax=64\n' >/etc/systemd/system/holdfastd.service.d/small.conf
	systemctl daemon-reload
	begin two
	expect "two after an update" "$(cat /root/sum-two)" "$(cut -d ' ' -f 2 /root/two/start)"
	exec hfvm-pass
	;;
esac
