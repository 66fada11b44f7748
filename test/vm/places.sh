#!/bin/sh
# SPDX-License-Identifier: MIT
# Where no fd store is that crosses an update: a user's own service, and containers with and without a user namespace of
# their own. Each parks while everything stops, and gets its memory back by a rule of the policy.
. /test/lib.sh
. /test/parking.sh

base=524288 # root in the container c2, as the host sees it

# The root of a container: the program, and what it writes down.
root() { # NAME UID
	mkdir -p "/var/lib/machines/$1/usr/bin" "/root/$1"
	cp /usr/bin/parker "/var/lib/machines/$1/usr/bin/parker"
	chown "$2" "/root/$1"
}

container() { # NAME PROPERTY: a machine in a scope of its own, whose root isn't root here
	systemd-run --quiet --collect --unit="run-$1" systemd-nspawn --quiet --register=yes --machine="$1" ${2:+--property="$2"} \
		--private-users="$(stat -c %u "/root/$1"):65536" --kill-signal=SIGTERM --bind=/run/holdfast --bind="/root/$1:/data" \
		/usr/bin/parker -late -size 33554432 -dir /data
}

# gone NAME: that machine has ended
gone() { ! systemctl --quiet is-active "run-$1.service" "$1.scope"; }

# back NAME DIRECTORY: it has the memory that it had at the first boot
back() {
	expect_in "how $1 parked" "parked $((HFVM_BOOT - 1)) " "$(cat "$2/stop")"
	say "$1 parked within $(cut -d ' ' -f 3 "$2/stop") ms"
	wait_for [ -e "$2/start" ]
	expect "$1 after update $((HFVM_BOOT - 1))" "update $(cat "$2/sum")" "$(cat "$2/start")"
	rm "$2/start"
}

# refused WHAT DIRECTORY: it got no session, and says so
refused() {
	wait_for [ -e "$2/error" ]
	expect_in "$1" "not permitted" "$(cat "$2/error")"
	[ ! -e "$2/start" ] || fail "$1: it started"
	say "$1: $(cut -d : -f 4- "$2/error")"
	rm "$2/error"
}

# intruder CGROUP UID: a process that somebody moved there
intruder() {
	rm -rf /root/intruder
	mkdir /root/intruder
	chown "$2" /root/intruder
	sh -c 'echo 0 >"/sys/fs/cgroup/$1/cgroup.procs"; exec setpriv --reuid "$2" --regid "$2" --clear-groups parker -dir /root/intruder' \
		sh "$1" "$2" 2>/dev/null && fail "uid $2 got a session in $1"
	refused "uid $2 in $1" /root/intruder
}

case $HFVM_BOOT in
1)
	chmod 711 /root
	mkdir -p /etc/holdfast/policy.d /etc/systemd/nspawn /etc/systemd/user
	cat >/etc/holdfast/policy.d/50-local.toml <<-END
		[[rule]]
		name   = "caches"
		cgroup = '/user.slice/user-1000.slice/user@1000.service/app.slice/cache.service'
		uid    = 1000

		[[rule]]
		name   = "container-c1"
		cgroup = '/machine.slice/systemd-nspawn@c1.service'
		uid    = 0
		owner  = "containers/c1"

		[[rule]]
		name   = "containers"
		cgroup = '/machine.slice/{name:unescaped}.scope'
		uid    = $base
		owner  = "containers/{name}"
	END
	holdfast policy check
	systemctl enable --now holdfastd.socket holdfastd.service

	# Two users who linger, with the same services.
	printf 'u alice 1000 - /home/alice /bin/sh\nu bob 1001 - /home/bob /bin/sh\n' | systemd-sysusers -
	for user in alice bob; do
		mkdir -p /home/$user/cache /home/$user/other
		chown -R $user: /home/$user
	done
	for service in cache other; do
		cat >/etc/systemd/user/$service.service <<-END
			[Service]
			Type=notify
			ExecStart=parker -late -dir %h/$service
			[Install]
			WantedBy=default.target
		END
	done
	systemctl --quiet --global enable cache.service other.service
	loginctl enable-linger alice bob

	# One container as systemd-nspawn@.service has it, with this system's users; one in a scope, with users of its own.
	root c1 0
	cat >/etc/systemd/nspawn/c1.nspawn <<-'END'
		[Exec]
		Boot=no
		Parameters=/usr/bin/parker -late -dir /data
		PrivateUsers=no
		KillSignal=SIGTERM
		[Network]
		VirtualEthernet=no
		[Files]
		Bind=/run/holdfast
		Bind=/root/c1:/data
	END
	mkdir /etc/systemd/system/systemd-nspawn@c1.service.d
	printf '[Unit]\nWants=holdfastd.socket\nAfter=holdfastd.socket\n' >/etc/systemd/system/systemd-nspawn@c1.service.d/holdfast.conf
	systemctl daemon-reload
	systemctl enable --now systemd-nspawn@c1.service
	root c2 $base
	container c2
	root c3 $((base + 65536))
	container c3

	for dir in /home/alice/cache /root/c1 /root/c2; do
		wait_for [ -e $dir/start ]
		expect_in "$dir" fresh "$(cat $dir/start)"
		cut -d ' ' -f 2 $dir/start >$dir/sum
		rm $dir/start
	done
	stored 0 || fail "something was parked before the stop"

	say "neighbours"
	refused "another service of hers" /home/alice/other
	refused "another user's service" /home/bob/cache
	refused "another container" /root/c3
	intruder /user.slice/user-1000.slice/user@1000.service/app.slice/cache.service 1001
	for cgroup in /sys/fs/cgroup/machine.slice/c2.scope/ /sys/fs/cgroup/machine.slice/systemd-nspawn@c1.service/; do
		inside=$(find $cgroup -name cgroup.procs -exec grep -lq . {} \; -print | head -n 1)
		inside=${inside#/sys/fs/cgroup}
		intruder "${inside%/cgroup.procs}" $((base + 1))
	done
	loginctl disable-linger bob
	systemctl --quiet --global disable other.service
	update
	;;
2 | 3)
	if [ "$HFVM_BOOT" = 2 ]; then
		# A limit that can't be seen from inside. Too little memory would end the program and lose the file.
		container c2 MemoryMax=20M
		wait_for [ -e /root/c2/error ]
		expect_in "c2 with too little memory" "retrieving would lose the memory" "$(cat /root/c2/error)"
		wait_for gone c2
	fi
	container c2
	back c1 /root/c1
	back c2 /root/c2
	back "alice's service" /home/alice/cache
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
