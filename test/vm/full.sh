#!/bin/sh
# SPDX-License-Identifier: MIT
# holdfastd's store is full: who parks something new is told so. All that is parked already stays and comes back, and
# there is room for what follows it.
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
	printf '[Service]\nFileDescriptorStoreMax=12\n' >/etc/systemd/system/holdfastd.service.d/small.conf
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service
	for n in one two; do # three descriptors each, and three more for the renewal
		begin $n
		expect_in "$n" fresh "$(cat /root/$n/start)"
		cut -d ' ' -f 2 /root/$n/start >/root/sum-$n
	done
	begin three
	say "$(cat /root/three/error)"
	expect_in "the third" "is full: 12 descriptors" "$(cat /root/three/error)"
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
	begin two
	expect "two after an update" "update $(cat /root/sum-two)" "$(cat /root/two/start)"
	begin three
	expect_in "the third, after an update" "full" "$(cat /root/three/error)"
	printf '[Service]\nFileDescriptorStoreMax=64\n' >/etc/systemd/system/holdfastd.service.d/small.conf
	systemctl daemon-reload
	begin three
	expect_in "the third, with more room" fresh "$(cat /root/three/start)"
	exec hfvm-pass
	;;
esac
