#!/bin/sh
# SPDX-License-Identifier: MIT
# The reports of three updates, for comparison with what witnesses see: one by a plain systemctl kexec, which a service, a scope and
# a participant that takes long hold up by way of logind; one by holdfast update, while a plain systemctl kexec is refused; and one by
# a job for kexec.target, of which logind knows nothing, so that the quiesce unit is all that holds it up.
. /test/lib.sh

updated=/run/holdfast/io.holdfast.Update

# field NAME TEXT: a member of an object in JSON
field() { printf '%s\n' "$2" | sed -n "s/.*\"$1\":\"\\{0,1\\}\\([^,\"}]*\\).*/\\1/p"; }

# took NAME: a span of the report, in milliseconds; nothing if it isn't there
took() {
	{ tr -d '\n ' </root/report; echo; } | sed -n "s/.*{\"name\":\"$1\",\"beginUSec\":\\([0-9-]*\\),\"endUSec\":\\([0-9-]*\\)}.*/\\1 \\2/p" | {
		read -r begin end || exit 0
		echo $(((end - begin) / 1000))
	}
}

# between NAME LEAST MOST: milliseconds
between() {
	it=$(took "$1")
	[ -n "$it" ] || fail "the report has no $1"
	[ "$it" -ge "$2" ] && [ "$it" -le "$3" ] || fail "$1 took $it ms, not $2 to $3"
}

# unit NAME SECONDS [OPTION]: a witness in a service, which takes so long to prepare in each boot from now on
unit() {
	cat >/etc/systemd/system/"$1".service <<-END
		[Unit]
		After=holdfastd.service holdfast-updated.service
		[Service]
		Type=notify
		ExecStart=/usr/bin/witness -name $1 -record /root/$1 -prepare $2s $3
		FileDescriptorStoreMax=16
		FileDescriptorStorePreserve=yes
		[Install]
		WantedBy=multi-user.target
	END
}

# scope starts the witness in the scope.
scope() {
	systemd-run --quiet --scope --unit=loose /usr/bin/witness -name loose -record /root/loose -prepare 1s >/root/loose.log 2>&1 &
}

# joined N: so many are asked in the next update
joined() { [ "$(varlinkctl --json=short call $updated io.holdfast.Update.Status '{}' | grep -o '"name":"\(calm\|slow\|loose\)"' | wc -l)" = "$1" ]; }

# inhibited MODE: does Holdfast hold such an inhibitor?
inhibited() { systemd-inhibit --list --no-legend --no-pager | grep -q "^Holdfast .* $1\$"; }

# asked NAME: it was asked in the last update, and got its SIGTERM only after it had answered: so it wrote itself.
asked() {
	expect "what happened to $1" "preparing prepared quiescing quiesced stopped" \
		"$(sed -n '/preparing/h; /preparing/!H; ${x; p}' "/root/$1" | sed -n 's/^witness: [a-z]* \(preparing\|prepared\|quiescing\|quiesced\|stopped\) .*/\1/p' | paste -sd ' ')"
}

reported() { holdfast report --json >/root/report; }

# after NAME...: they were asked in the update before this boot
after() {
	witness -name "boot$HFVM_BOOT" -clock 20
	for who; do asked "$who"; done
	wait_for systemctl is-active calm slow
	wait_for reported
	scope
	holdfast wait --settled -t 1m || fail "not settled"
	holdfast report --json >/root/report
	holdfast report
	expect "the clock" counter "$(field source "$(tr -d '\n ' </root/report)")"
	expect "sessions that are back" 3 "$(grep -c '"state": "reclaimed"' /root/report)"
	expect "whose report" "$(cat /proc/sys/kernel/random/boot_id)" "$(tr -d '\n ' </root/report | sed 's/.*"to"://' | sed -n 's/^[^}]*"bootID":"\([^"]*\)".*/\1/p')"
	echo "report $HFVM_BOOT $(tr -d '\n' </root/report)"
	for what in PreviousShutdownStart PreviousShutdownLateFinish; do
		echo "said $HFVM_BOOT $what $(systemctl show -P ${what}TimestampMonotonic)"
	done
	# When the kernel made the process: in ticks of 10 ms (proc(5), starttime).
	ticks=$(sed 's/.*) //' /proc/"$(systemctl show -P MainPID holdfastd)"/stat | cut -d ' ' -f 20)
	echo "said $HFVM_BOOT holdfastd ${ticks}0000"
}

# leave has the world outside compare this kernel's clock with its own, and a witness wait for the beginning of the update; all
# units are ready for the next kernel.
leave() {
	systemctl daemon-reload
	wait_for systemctl is-active holdfast-quiesce
	hfvm-kexec-load
	witness -name "boot$HFVM_BOOT" -clock 20
	witness -poll &
}

case $HFVM_BOOT in
1)
	mkdir -p /etc/holdfast/policy.d
	cat >/etc/holdfast/policy.d/50-test.toml <<-END
		[[rule]]
		name = "loose"
		cgroup = '/system.slice/loose.scope'
		uid = 0
		owner = "loose"
		required = true
	END
	unit calm 1 -store
	unit slow "${WAIT:-12}" ""
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service holdfast-quiesce.service calm slow
	holdfast report && fail "there was no update, and a report" || :
	scope
	wait_for joined 3
	wait_for inhibited delay
	unit slow 2 "" # in the next boot
	leave
	systemctl kexec || :
	exit 0
	;;
2)
	after calm slow loose
	between prepare "${WAIT:-12}000" 40000
	inhibited block && fail "there is a block inhibitor that nobody has asked for" || :
	mkdir -p /etc/systemd/system/holdfast-updated.service.d
	cat >/etc/systemd/system/holdfast-updated.service.d/block.conf <<-END
		[Service]
		ExecStart=
		ExecStart=/usr/libexec/holdfast-updated --block-shutdown
	END
	systemctl daemon-reload
	systemctl restart holdfast-updated
	wait_for joined 3
	wait_for inhibited block
	leave
	if said=$(systemctl kexec 2>&1); then fail "a plain systemctl kexec was not refused: $said"; fi
	expect_in "why it was refused" inhibitor "$said"
	expect "jobs" "" "$(systemctl list-jobs --no-legend kexec.target)"
	holdfast update --yes --force || fail "holdfast update is held up by its own inhibitor"
	exit 0
	;;
3)
	after calm slow loose
	between prepare 2000 20000
	wait_for joined 3
	systemctl stop loose.scope # it would not be waited for
	wait_for joined 2
	leave
	systemctl start --no-block --job-mode=replace-irreversibly kexec.target
	exit 0
	;;
4)
	after calm slow
	between prepare 2000 20000
	exec hfvm-pass
	;;
esac
