#!/bin/sh
# SPDX-License-Identifier: MIT
# Many units with many parked sessions each: after an update each has its own back, and nobody has another's. How long it
# takes is printed, and not judged. Then others leave no room: what is there can be renewed all the same, holdfastd starts
# with all of it, and what the others left is released by root.
. /test/lib.sh
. /test/parking.sh

units=$(seq "$UNITS")
sessions=$((UNITS * EACH))

# ready: each has started, or said why not
ready() {
	for n in $units; do
		[ -e "/root/fleet/$n/start" ] || [ -e "/root/fleet/$n/error" ] || return 1
	done
}

now() { cut -d ' ' -f 1 /proc/uptime; } # on CLOCK_BOOTTIME (proc_uptime_show(), fs/proc/uptime.c, Linux 7.2)

since() { echo "$1 $(now)" | awk '{ printf "%.1f s", $2 - $1 }'; }

# begin starts them, and collects what they say in /root/said: unit, name, where it came from, sum, microseconds
begin() {
	rm -f /root/fleet/*/start /root/fleet/*/error
	systemctl restart --no-block $(for n in $units; do echo "fleet@$n"; done)
	until ready; do sleep 0.5; done # the run's own time limit is this one's too
	for n in $units; do
		[ ! -e "/root/fleet/$n/error" ] || fail "unit $n: $(cat "/root/fleet/$n/error")"
		sed "s/^/$n /" "/root/fleet/$n/start"
	done >/root/said
	expect "sessions in all" "$sessions" "$(wc -l </root/said)"
}

# spread: of the last column, in milliseconds
spread() { sort -n -k 5 /root/said | awk '{ t[NR] = $5 / 1000 } END { printf "%.1f ms at least, %.1f ms by the median, %.1f ms at most", t[1], t[int((NR + 1) / 2)], t[NR] }'; }

came() { cut -d ' ' -f 3 /root/said | sort -u; }

same() {
	cut -d ' ' -f 1,2,4 /root/said | sort | cmp - /root/sums || fail "somebody has other memory than before"
}

# fill WORD: a unit parks until it is told that there is no room, for it or for anybody
fill() { systemd-run --quiet --wait --collect --unit="filler-$1" fleet -fill -dir /root/fleet; }

# fill_up WORD: as many units as it takes
fill_up() {
	n=0
	while fill "$1-$((n += 1))" && [ "$(cut -d ' ' -f 1 /root/fleet/full)" -gt 0 ]; do :; done
	expect_in "a full store" "the orchestrator's keeper is full" "$(cat /root/fleet/full)"
}

used() { echo "$(names | wc -l) descriptors with $(names | wc -c) bytes of names"; }

# kernel_names: of all sessions
kernel_names() {
	varlinkctl call -j /run/holdfast/io.holdfast io.holdfast.Sessions.List '{"all":true}' | grep -o '"kernelName":"[^"]*"' | cut -d '"' -f 4
}

listed() { [ "$(kernel_names | wc -l)" = "$sessions" ]; }

case $HFVM_BOOT in
1)
	for n in $units; do
		mkdir -p "/root/fleet/$n"
		# Its neighbour is the next one, and the last one's is the first.
		echo "NEIGHBOUR=$((n % UNITS + 1))" >"/root/fleet/$n/environment"
	done
	cat >/etc/systemd/system/fleet@.service <<-END
		[Service]
		Type=notify
		EnvironmentFile=/root/fleet/%i/environment
		ExecStart=fleet -unit unit%i -neighbour unit\${NEIGHBOUR} -neighbour-owner /fleet@\${NEIGHBOUR}.service -count $EACH -dir /root/fleet/%i \$FLAGS
		TimeoutStartSec=infinity
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	start=$(now)
	begin
	say "$sessions sessions of $UNITS units parked within $(since "$start"), each within $(spread)"
	expect "where they came from" fresh "$(came)"
	wait_for stored $((3 * sessions))
	cut -d ' ' -f 1,2,4 /root/said | sort >/root/sums
	expect "different contents" "$sessions" "$(cut -d ' ' -f 3 /root/sums | sort -u | wc -l)"
	update
	;;
2)
	wait_for listed
	say "PID 1 ran $(systemctl show -P UserspaceTimestampMonotonic | awk '{ printf "%.1f", $1 / 1000000 }') s after the kernel, holdfastd was ready after $(systemctl show -P ActiveEnterTimestampMonotonic holdfastd | awk '{ printf "%.1f", $1 / 1000000 }') s, and $sessions sessions were seen listed after $(now) s"
	start=$(now)
	begin
	say "$sessions sessions of $UNITS units are back within $(since "$start"), each reclaimed within $(spread)"
	expect "where they came from" update "$(came)"
	same
	say "each has its own, and nobody got its neighbour's"

	fill_up before
	say "others have left no room for anything new: $(used)"
	sed -i 's/$/\nFLAGS=-renew/' /root/fleet/*/environment
	start=$(now)
	begin
	say "$sessions sessions are renewed all the same within $(since "$start"): $(used)"
	expect "where they came from" update "$(came)"
	same
	fill_up after # what is renewed takes less than what was kept free for it
	start=$(now)
	systemctl restart holdfastd
	say "holdfastd was restarted with all of that within $(since "$start")"
	fill last
	expect_in "a full store, after a restart" "0 " "$(cat /root/fleet/full)"
	expect_in "a full store, after a restart" full "$(cat /root/fleet/full)"
	begin
	expect "where they came from" crash "$(came)"
	same
	for s in $(kernel_names | grep '[.]fill'); do
		holdfast release --kernel-name "$s"
	done
	fill again
	expect "units that get room when those that are gone were released" "" "$(grep '^0 ' /root/fleet/full)"
	exec hfvm-pass
	;;
esac
