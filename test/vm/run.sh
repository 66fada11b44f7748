#!/bin/sh
# SPDX-License-Identifier: MIT
# A command that knows nothing of updates, in a unit with an fd store and in one whose memory is parked: SIGKILL of the command,
# of holdfast run and of holdfastd, before and after an update; a stop; too little memory, another size, and a command that
# resizes its memory while it is preserved. The command is in test/update, in run_linux_test.go.
. /test/lib.sh

units="own parked"

# have UNIT NAME: the value that the command of the unit has told
have() { sed -n "s/.*\"$2\":\"\{0,1\}\([^\",}]*\).*/\1/p" "/run/$1/state"; }

# begins UNIT VERB START GENERATION: the command runs anew on memory that it was given so
begins() {
	rm -f "/run/$1/state"
	[ "$2" = none ] || systemctl "$2" "run-$1"
	wait_for test -s "/run/$1/state"
	expect "$1, start" "$3" "$(have "$1" Start)"
	expect "$1, generation" "$4" "$(have "$1" Generation)"
	case $3 in
	fresh) have "$1" Word >"/root/$1.word" ;;
	*)
		expect "$1, word" "$(cat "/root/$1.word")" "$(have "$1" Word)"
		expect "$1, the file beside it" "$(cat "/root/$1.word")" "$(have "$1" Meta)"
		;;
	esac
}

# deaths UNIT: of what wasn't committed nothing comes back
deaths() {
	old=$(cat "/root/$1.word")
	rm -f "/run/$1/state"
	kill -9 "$(cat "/run/$1.pid")"
	begins "$1" none fresh 0
	rm -f "/run/$1/state"
	systemctl kill --kill-whom=main --signal=KILL "run-$1"
	begins "$1" none fresh 0
	[ "$old" != "$(cat "/root/$1.word")" ] || fail "$1: the memory of a command that was killed came back"
	# What is committed comes back, whoever died since.
	systemctl stop "run-$1"
	stored=$(systemctl show --value -p NFileDescriptorStore "run-$1")
	case $1 in
	own) [ "$stored" -gt 0 ] || fail "nothing is in the unit's own store" ;;
	*) expect "$1, what is in its own store" 0 "$stored" ;;
	esac
	systemctl kill --signal=KILL holdfastd
	begins "$1" start restart 1
	keep_pid "$1"
}

keep_pid() { have "$1" PID >"/run/$1.pid"; }

if [ "$HFVM_BOOT" = 1 ]; then
	mkdir -p /etc/holdfast/policy.d
	cat >/etc/holdfast/policy.d/run.toml <<-END
		[[rule]]
		name = "parked"
		cgroup = "/system.slice/run-parked.service"
		uid = "daemon"
		names = ["parked"]
	END
	for unit in $units; do
		# Whoever isn't root may store, and not look what is there: that is parked.
		user=
		[ "$unit" = own ] || user=User=daemon
		cat >"/etc/systemd/system/run-$unit.service" <<-END
			[Unit]
			StartLimitIntervalSec=0
			[Service]
			Type=notify
			KillMode=mixed
			Restart=on-failure
			RestartSec=100ms
			RuntimeDirectory=$unit
			RuntimeDirectoryPreserve=yes
			FileDescriptorStoreMax=16
			FileDescriptorStorePreserve=yes
			$user
			Environment=UPDATE_TEST_COMMAND=/run/$unit
			ExecStart=holdfast run --session $unit --mem data=64M:/run/$unit/link --file meta:/run/$unit/meta --stop-signal USR1 -- /test/update.test
		END
	done
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service
	for unit in $units; do
		begins $unit start fresh 0
		keep_pid $unit
		begins $unit restart restart 1
		keep_pid $unit
		deaths $unit
	done

	say "what doesn't fit"
	! systemd-run -q --wait --pipe -p MemoryMax=48M -p MemorySwapMax=0 holdfast run --park --session third --mem data=64M -- true 2>/root/error ||
		fail "it started under a memory limit of less than its memory"
	expect_in "a clean start" "too little memory: when an update is prepared" "$(cat /root/error)"
	systemctl stop run-own
	mkdir -p /run/systemd/system/run-own.service.d
	cat >/run/systemd/system/run-own.service.d/no.conf <<-END
		[Service]
		Restart=no
		ExecStart=
		ExecStart=sh -c 'exec holdfast run --session own --mem data=\$SIZE:/run/own/link --file meta:/run/own/meta --stop-signal USR1 -- /test/update.test 2>/run/own/error'
	END
	systemctl daemon-reload
	systemctl set-environment SIZE=65M
	! systemctl start run-own || fail "it started with another size"
	expect_in "another size" "67108864 bytes in what is kept, and 68157440 by --mem" "$(cat /run/own/error)"
	rm -r /run/systemd/system/run-own.service.d
	systemctl daemon-reload
	begins own start restart 2
	keep_pid own

	# In both, so that each kind of keeping is in the update.
	for unit in $units; do
		wait_for sh -c "holdfast wait --help >/dev/null; varlinkctl call /run/holdfast/io.holdfast.Update io.holdfast.Update.Status {} | grep -q '\"$unit\"'"
	done
	hfvm-kexec-load
	say switching
	holdfast update --yes || : "the bus may go down before it has answered"
	exit 0
fi

for unit in $units; do
	say "$unit: less memory than what is kept"
	mkdir -p "/run/systemd/system/run-$unit.service.d"
	# Nothing is retrieved: what fails for want of memory has failed for good.
	cat >"/run/systemd/system/run-$unit.service.d/no.conf" <<-END
		[Service]
		Restart=no
		MemoryMax=48M
		MemorySwapMax=0
		StandardError=file:/run/$unit.error
	END
	systemctl daemon-reload
	! systemctl start run-$unit || fail "$unit: it started under a memory limit of less than its memory"
	expect_in "$unit: its memory limit" "run-$unit.service" "$(cat /run/$unit.error)"
	expect_in "$unit: its memory limit" "(48 MiB) has room for" "$(cat /run/$unit.error)"
	rm -r "/run/systemd/system/run-$unit.service.d"
	systemctl daemon-reload
	generation=2
	[ $unit = parked ] || generation=3
	begins $unit start update $generation
	keep_pid $unit
	begins $unit restart restart $((generation + 1))
	keep_pid $unit
	deaths $unit
done
exec hfvm-pass
