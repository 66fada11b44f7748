#!/bin/sh
# SPDX-License-Identifier: MIT
# Clients without a store of their own, and holdfastd, die at each numbered step: on the way to the first update, in the
# renewal after it, and with another update before they start again. What the clients were told is held against what
# they find.
. /test/lib.sh

fail() {
	tail -n 4 /root/kill/*.told
	journalctl -b -n 40 --no-pager -o short-monotonic
	hfvm-fail "$*"
}

# The steps of a client in its first boot, and in the one after an update.
first="dialed none acquired preserved committed sent parked wrote came same releasing released"
later="dialed came same renewal-retrieved renewal-acquired renewal-files-stored renewal-finished renewal-preserved renewal-manifest-written renewal-stored renewal-released parked"
# Those at which a client dies that isn't started again before the next update. Memory of the previous kernel that isn't
# finished can't cross again.
left="committed sent parked released"
late="renewal-finished renewal-preserved renewal-manifest-written renewal-stored"

# plan GROUP WHAT HOW STEPS: what the members of a group do, and at which step each of them dies, and how
plan() {
	n=0
	for step in $4; do
		n=$((n + 1))
		cat >"/root/kill/$1-$n.env" <<-END
			EPOCH=$HFVM_BOOT
			HOW=${3:+-die-at $step $3 -once /root/kill/$1-$n.died-$HFVM_BOOT}
			WHAT=$2
		END
	done
}

# members GROUP: their names
members() { ls /root/kill | sed -n "s/^\($1-.*\)\.env$/\1/p"; }

# units GROUP: theirs
units() { members "$1" | sed "s/^/kill@/"; }

# live GROUP: they get to the end
live() {
	systemctl start --no-block $(units "$1")
	for unit in $(units "$1"); do
		wait_for systemctl is-active "$unit"
	done
}

# killing LEFT: has the groups die: those that die by themselves all at once, and those that kill holdfastd one after the
# other, so that each one's death is its own. The group that is named is dead then.
killing() {
	for unit in $(units "$1"); do
		mkdir -p "/run/systemd/system/$unit.service.d"
		printf '[Service]\nRestart=no\n' >"/run/systemd/system/$unit.service.d/left.conf"
	done
	systemctl daemon-reload
	systemctl start --no-block $(units "$1")
	for unit in $(units "$1"); do
		wait_for systemctl is-failed "$unit"
	done
	live self
	for unit in $(units daemon); do
		systemctl start "$unit" || wait_for systemctl is-active "$unit"
	done
	said=$(journalctl -b -o cat -u holdfastd | grep 'Main process exited' | sort | uniq -c)
	say "holdfastd: $said"
}

case $HFVM_BOOT in
1)
	mkdir /root/kill
	cat >/etc/systemd/system/kill@.service <<-'END'
		[Unit]
		StartLimitIntervalSec=0
		[Service]
		Type=notify
		EnvironmentFile=/root/kill/%i.env
		ExecStart=/test/kill -service -epoch $EPOCH $HOW $WHAT
		StandardOutput=append:/root/kill/%i.told
		Restart=on-failure
		RestartSec=100ms
	END
	systemctl enable --now holdfastd.socket holdfastd.service
	plan self "park back release park" "-victim self" "$first"
	plan daemon "park back release park" "-victim daemon" "$first"
	plan left "park back release" "-victim self -then update" "$left"
	plan late park "" "$late"
	live late
	killing left
	update
	;;
2)
	plan self park "-victim self" "$later"
	plan daemon park "-victim daemon" "$later"
	plan left park "" "$left"
	plan late park "-victim self -then update" "$late"
	live left
	killing late
	update
	;;
3)
	for group in self daemon left late; do
		plan $group park "" "$(members $group)"
		live $group
	done
	/test/kill -judge $(ls /root/kill/*.told | sort -V) || fail "see above"
	exec hfvm-pass
	;;
esac
