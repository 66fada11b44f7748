#!/bin/sh
# SPDX-License-Identifier: MIT
# Who gets a session and who doesn't, with the real varlinkctl, cron and logind; then, after an update, deaths at each
# step of a renewal, and memory that doesn't fit.
. /test/lib.sh

address=/run/holdfast/io.holdfast
sessions=io.holdfast.Sessions

# in_unit UNIT COMMAND...: its output
in_unit() {
	unit=$1
	shift
	systemd-run --quiet --wait --pipe --collect --unit="$unit" "$@" 2>&1
}

# instance NAME LINES: a notebook of that name
instance() {
	cat >"/etc/systemd/system/$1.service" <<-END
		[Unit]
		StartLimitIntervalSec=0
		[Service]
		Type=notify
		ExecStart=notebook -socket /run/$1/socket
		RuntimeDirectory=$1
		FileDescriptorStoreMax=16
		FileDescriptorStorePreserve=yes
		$2
	END
}

case $HFVM_BOOT in
1)
	systemctl enable --now holdfastd.socket holdfastd.service

	say "varlinkctl"
	varlinkctl introspect $address $sessions >/root/idl
	varlinkctl validate-idl /root/idl
	varlinkctl validate-idl /usr/share/varlink/$sessions.varlink
	grep -q 'method Acquire(' /root/idl || fail "introspect doesn't show Acquire"
	expect_in "info" "holdfastd" "$(varlinkctl info $address)"
	expect_in "registry" "$sessions" "$(varlinkctl list-registry)"
	expect_in "Describe" '"nameMax":43' "$(varlinkctl call $address $sessions.Describe '{}')"
	out=$(in_unit first varlinkctl call --exec $address $sessions.Acquire '{"name":"ram"}' -- sh -c '
		cat; echo "fds=$LISTEN_FDS"; holdfast identify --fd 3 --json
		varlinkctl call --push-fd=3 '"$address $sessions"'.Identify "{\"sessionFileDescriptor\":0}"')
	expect_in "call --exec Acquire" 'fds=1' "$out"
	expect_in "its GET_NAME" '"yours": true' "$out"
	expect_in "call --push-fd Identify" '"yours":true' "$out"
	expect_in "call --push-fd Identify" '"owner":"/first.service"' "$out"

	say "two units, one name"
	systemd-run --quiet --unit=holder -p NotifyAccess=all -p FileDescriptorStoreMax=8 -p Type=notify \
		holdfast acquire ram -- sh -c 'systemd-notify --fd=3 --fdname=kept; systemd-notify --ready; exec sleep infinity'
	holder=$(systemctl show -P MainPID holder)
	out=$(in_unit second holdfast acquire ram -- holdfast identify --json)
	expect_in "the second unit's own" '"owner": "/second.service"' "$out"
	mine=$(echo "$out" | sed -n 's/.*"kernelName": "\([^"]*\)".*/\1/p')
	theirs=$(readlink "/proc/$holder/fd/3" | cut -d ' ' -f 2)
	[ "$mine" != "$theirs" ] || fail "two units got one kernel name, $mine"
	# The descriptor goes to the second unit through the first one's process moving there.
	out=$(in_unit holder2 holdfast acquire ram -- sh -c '
		echo 0 >/sys/fs/cgroup/system.slice/hfvm.service/cgroup.procs
		varlinkctl call --push-fd=3 '"$address $sessions"'.Identify "{\"sessionFileDescriptor\":0}"')
	expect_in "another's session" '"yours":false' "$out"
	expect_in "another's session" '"name":"ram"' "$out"
	case $out in *owner*) fail "the owner of another's session was told: $out" ;; esac
	systemctl stop holder

	say "a store with another's session, none, and one that is too small"
	cat >/etc/systemd/system/thief.service <<-'END'
		[Service]
		Type=notify
		NotifyAccess=all
		ExecStart=sh /root/thief
		FileDescriptorStoreMax=8
		FileDescriptorStorePreserve=yes
	END
	echo 'systemd-notify --ready; exec sleep infinity' >/root/thief
	systemctl start thief
	in_unit victim holdfast acquire notes -- sh -c '
		echo 0 >/sys/fs/cgroup/system.slice/thief.service/cgroup.procs
		NOTIFY_SOCKET=/run/systemd/notify systemd-notify --fd=3 --fdname=x'
	expect "descriptors in the thief's store" 1 "$(systemctl show -P NFileDescriptorStore thief)"
	echo 'exec notebook -socket /run/refused 2>/root/thief-says' >/root/thief
	systemctl restart thief && fail "the notebook took another unit's session"
	expect_in "another's session" "belongs to somebody else" "$(cat /root/thief-says)"
	systemctl reset-failed thief
	systemctl clean --what=fdstore thief
	as_notebook() { # UNIT PROPERTY...
		unit=$1
		shift
		in_unit "$unit" -p Type=notify -p FileDescriptorStorePreserve=yes "$@" notebook -socket /run/refused
	}
	out=$(as_notebook none -p FileDescriptorStoreMax=0) && fail "the notebook started without a store"
	expect_in "no store" "none.service has no fd store that a session could be kept in: it has FileDescriptorStoreMax=0" "$out"
	out=$(as_notebook tight -p FileDescriptorStoreMax=2) && fail "the notebook started with a store that is too small"
	expect_in "a small store" "takes 2 descriptors and would need 3; raise FileDescriptorStoreMax= to 3 or more" "$out"

	say "users"
	echo 'u alice 1000 - /home/alice /bin/sh' | systemd-sysusers -
	mkdir -p /home/alice && chown alice: /home/alice
	call="varlinkctl call $address $sessions.Acquire '{\"name\":\"x\"}'"
	cat >/usr/local/bin/ask <<-END
		#!/bin/sh
		cat /proc/self/cgroup >"\$1"
		$call >>"\$1" 2>&1
		echo "status=\$?" >>"\$1"
		mv "\$1" "\$1.done"
	END
	chmod 755 /usr/local/bin/ask
	refused() { # WHAT FILE CGROUP REASON
		out=$(cat "$2.done")
		expect_in "$1" "$3" "$out"
		expect_in "$1" "io.holdfast.Sessions.NotPermitted" "$out"
		expect_in "$1" "$4" "$out"
		expect_in "$1" "status=1" "$out"
		say "$1: $4"
	}
	cat >/etc/systemd/user/own.service <<-'END'
		[Service]
		Type=oneshot
		ExecStart=ask /tmp/own
		[Install]
		WantedBy=default.target
	END
	systemctl --quiet --global enable own.service # her manager starts it when she logs in
	su - alice -c 'ask /tmp/login'
	refused "login session" /tmp/login "/user.slice/user-1000.slice/session-" "is a scope, which has no fd store"
	wait_for [ -e /tmp/own.done ]
	refused "user's own unit" /tmp/own "user@1000.service/app.slice/own.service" "is below user.slice"
	echo '@reboot /usr/local/bin/ask /tmp/cron' | crontab -u alice -
	systemctl stop cron
	rm -f /run/crond.reboot # so that it is a boot once more
	systemctl start cron
	wait_for [ -e /tmp/cron.done ]
	refused "user's crontab" /tmp/cron "/system.slice/cron.service" "only uid 0 may have sessions"
	(
		echo 0 >/sys/fs/cgroup/cgroup.procs
		exec sh -c "$call"
	) >/tmp/none 2>&1 && fail "a process outside any unit got a session"
	expect_in "outside any unit" "io.holdfast.Sessions.NoOwner" "$(cat /tmp/none)"
	systemctl stop cron

	say "beside units that PID 1 makes sessions for"
	cat >/etc/systemd/system/loop@.service <<-END
		[Service]
		Type=oneshot
		LUOSession=loop
		ExecStart=true
	END
	systemctl daemon-reload
	cat >/root/hand-outs <<-END
		#!/bin/sh
		n=0
		while [ ! -e /run/enough ]; do
			holdfast acquire name -- true || exit 1
			n=\$((n + 1))
		done
		echo \$n >/run/hand-outs
	END
	chmod +x /root/hand-outs
	systemd-run --quiet --unit=hand-outs -p RemainAfterExit=yes /root/hand-outs
	failed=0
	for i in $(seq 40); do
		systemctl start "loop@$i" || failed=$((failed + 1))
	done
	: >/run/enough
	wait_for [ -e /run/hand-outs ]
	expect "hand-outs beside LUOSession=" active "$(systemctl is-active hand-outs)"
	say "$(cat /run/hand-outs) hand-outs, none failed; 40 starts of units with LUOSession=, $failed failed"

	say "for the update"
	printf '%s\n' retrieved files-stored finished acquired preserved manifest-written stored released >/root/die
	instance renewed "Restart=always
RestartSec=100ms
Environment=NOTEBOOK_DIE=/root/die"
	instance small ""
	echo finished >/root/die-late
	instance late "Environment=NOTEBOOK_DIE=/root/die-late"
	systemctl daemon-reload
	systemctl start renewed small late
	for n in renewed small late; do
		notebook -socket /run/$n/socket put word "$n $WORD" >/dev/null
		notebook -socket /run/$n/socket sum >/root/sum-$n
	done
	expect "steps left" 8 "$(wc -l </root/die)"
	update
	;;
2 | 3)
	if [ "$HFVM_BOOT" = 2 ]; then
		say "more memory than the limit"
		mkdir -p /etc/systemd/system/small.service.d
		printf '[Service]\nMemoryMax=24M\n' >/etc/systemd/system/small.service.d/limit.conf
		systemctl daemon-reload
		systemctl start small && fail "64 MiB were retrieved below MemoryMax=24M"
		expect "why it failed" exit-code "$(systemctl show -P Result small)"
		expect "descriptors in its store" 1 "$(systemctl show -P NFileDescriptorStore small)"
		rm /etc/systemd/system/small.service.d/limit.conf
		systemctl daemon-reload

		say "starting afresh beside memory that waits"
		# The shell in between gets systemd's descriptors, and the notebook doesn't know of them.
		mkdir -p /run/systemd/system/small.service.d
		printf '[Service]\nExecStart=\nExecStart=sh -c "unset LISTEN_PID LISTEN_FDS; notebook -socket /run/small/socket 2>/run/small-says; exit 1"\nNotifyAccess=all\n' >/run/systemd/system/small.service.d/shell.conf
		systemctl daemon-reload
		systemctl start small && fail "a fresh start over committed memory"
		expect_in "why" "holds memory that was committed as" "$(cat /run/small-says)"
		rm /run/systemd/system/small.service.d/shell.conf
		systemctl daemon-reload

		say "a death in the gap of the renewal, and then the next update"
		systemctl start late && fail "it did not die"
		expect "steps left" 0 "$(wc -l </root/die-late)"
	else
		systemctl start late
		expect "the memory that was in no session" "$(cat /root/sum-late)" "$(notebook -socket /run/late/socket sum)"
		systemctl restart late
		expect "after a restart" "$(cat /root/sum-late)" "$(notebook -socket /run/late/socket sum)"
	fi
	systemctl start small
	expect "the memory under a limit that is enough" "$(cat /root/sum-small)" "$(notebook -socket /run/small/socket sum)"

	say "deaths at each step of the renewal"
	systemctl start renewed || true # it dies eight times and is started again by systemd
	wait_for notebook -socket /run/renewed/socket status
	expect "steps left" 0 "$(wc -l </root/die)"
	expect "the memory after it" "$(cat /root/sum-renewed)" "$(notebook -socket /run/renewed/socket sum)"
	expect "the word" "value renewed $WORD" "$(notebook -socket /run/renewed/socket get word)"
	expect "generation" "$HFVM_BOOT" "$(notebook -socket /run/renewed/socket status | tr ' ' '\n' | sed -n 's/^generation=//p')"
	expect "descriptors in its store" 3 "$(systemctl show -P NFileDescriptorStore renewed)"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
