#!/bin/sh
# SPDX-License-Identifier: MIT
# memcached by Debian's unit, filled and asked from outside of the machine: its own restart, an update by Holdfast, a systemctl kexec
# without it, and one with the memory in a plain fd store. "memcached: WAY" says that it can be filled; whoever does that tells
# it in memcached when it may be stopped, and when all was asked for.
. /test/lib.sh

dropins=/etc/systemd/system/memcached.service.d

told() { # WHAT: it is in memcached, under the key that is for that
	bash -c 'exec 3<>/dev/tcp/127.0.0.1/11211 && printf "get told\r\nquit\r\n" >&3 && grep -q "^$1" <&3' told "$1" 2>/dev/null
}

# turn WAY: memcached runs in that way; until it may be stopped
turn() {
	wait_for told '\(VALUE\|END\)'
	echo "memcached: $1"
	hear "leave-$1"
}

# hear WHAT: until it is told; the values have to come in, or out, before
hear() {
	end=$(($(cut -d. -f1 /proc/uptime) + 120))
	until told "$1"; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || fail "nobody has told of $1"
		sleep 0.3 # between looks, so that memcached has the processor
	done
}

case $HFVM_BOOT in
1)
	mkdir -p $dropins /etc/holdfast/policy.d
	cat >$dropins/restart.conf <<-END
		[Service]
		User=memcache
		RuntimeDirectory=memcached
		RuntimeDirectoryPreserve=restart
		KillSignal=SIGUSR1
		ExecStart=
		ExecStart=memcached -m 192 -e /run/memcached/mem -l 0.0.0.0
		# It refuses what it left in the same second.
		ExecStopPost=sleep 1
	END
	systemctl daemon-reload
	systemctl restart memcached
	turn restart
	systemctl restart memcached
	hear done-restart

	systemctl stop memcached
	rm $dropins/restart.conf
	cp /usr/share/doc/holdfast/memcached/holdfast.conf $dropins
	cp /usr/share/doc/holdfast/memcached/50-memcached.toml /etc/holdfast/policy.d
	cat >$dropins/settings.conf <<-END
		[Service]
		Environment=MEMORY=192
		Environment="OPTIONS=-l 0.0.0.0"
	END
	holdfast policy check
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service holdfast-quiesce.service
	systemctl start memcached
	turn holdfast
	uname -r >/root/kernel
	hfvm-kexec-load
	holdfast update --yes
	exit 0
	;;
2)
	hear done-holdfast
	[ "$(uname -r)" != "$(cat /root/kernel)" ] || fail "the kernel is $(uname -r), as before"
	holdfast wait --settled -t 1m || fail "not settled: $(holdfast status)"
	holdfast report
	systemctl stop memcached
	systemctl disable --now holdfast-quiesce.service holdfastd.socket holdfast-updated.socket holdfastd.service holdfast-updated.service
	rm $dropins/holdfast.conf $dropins/settings.conf
	sed -i 's/^-m .*/-m 192/; s/^-l 127.*/-l 0.0.0.0/; /^-l ::1/d' /etc/memcached.conf
	systemctl daemon-reload
	systemctl start memcached
	turn cold
	update
	;;
3)
	hear done-cold
	cat >$dropins/store.conf <<-END
		[Service]
		Type=notify
		User=memcache
		KillMode=mixed
		RuntimeDirectory=memcached
		FileDescriptorStoreMax=2
		FileDescriptorStorePreserve=yes
		ExecStart=
		ExecStart=/usr/bin/keep 192 /run/memcached -l 0.0.0.0
	END
	systemctl daemon-reload
	systemctl restart memcached
	turn store
	update
	;;
4)
	hear done-store
	exec hfvm-pass
	;;
esac
