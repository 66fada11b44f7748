#!/bin/sh
# SPDX-License-Identifier: MIT
# What an update is refused for, by a holdfast-updated with the privileges that its unit gives it: it sees what root sees.
. /test/lib.sh

# unsaved UNIT USER: a service with a session that is in no store
unsaved() {
	cat >"/etc/systemd/system/$1.service" <<-END
		[Service]
		Type=notify
		NotifyAccess=all
		User=$2
		ExecStart=holdfast acquire ram -- sh -c 'systemd-notify --ready; exec sleep infinity'
	END
}

# verdicts: the findings on standard input, but for their texts, in which some numbers change
verdicts() { tr -d '\n\t' | sed 's/": "/":"/g; s/, *"/,"/g' | grep -o '"id":"[^"]*","severity":"[^"]*"' | sort; }

mkdir -p /etc/holdfast/policy.d
cat >/etc/holdfast/policy.d/50-test.toml <<-'END'
	[[rule]]
	name = "theirs"
	cgroup = "/system.slice/theirs.service"
	uid = "any"
END
systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service
unsaved ours root
unsaved theirs nobody
systemctl start ours theirs

say "a loaded kernel, and what would be lost"
holdfast load /hfvm/kernel-next --cmdline "$(cat /hfvm/cmdline-next)"
status=0
holdfast update --yes >/root/refused 2>&1 || status=$?
cat /root/refused
expect "holdfast update" 3 "$status"
for unit in ours theirs; do
	expect_in "why" "not committed: only $unit.service (PID $(systemctl show -P MainPID $unit))" "$(cat /root/refused)"
done
expect "the services" "active active" "$(systemctl is-active ours theirs | xargs)"

say "whoever looks, sees the same"
holdfast check --json >/root/check 2>/dev/null || :
verdicts </root/check >/root/check.ids
varlinkctl call -j --timeout=infinity /run/holdfast/io.holdfast.Update io.holdfast.Update.Check '{}' | verdicts >/root/daemon.ids
expect "uncommitted" 2 "$(grep -c 'uncommitted.*error' /root/daemon.ids)"
diff /root/check.ids /root/daemon.ids || fail "holdfast check and holdfast-updated don't agree"

say "and with nothing to lose"
systemctl stop ours theirs
holdfast update --dry-run
hfvm-pass
