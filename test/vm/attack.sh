#!/bin/sh
# SPDX-License-Identifier: MIT
# Attempts on others' sessions, by units, users and containers. test/attack has them; here are the places they are made
# from, the victims, and the rules.
. /test/lib.sh

echo 'u mallory 900 - / /usr/sbin/nologin
u qemu 64055 - / /usr/sbin/nologin
u alice 1000 - /home/alice /bin/sh' | systemd-sysusers -
mkdir -p /home/alice && chown alice: /home/alice

mkdir -p /etc/holdfast/policy.d
cat >/etc/holdfast/policy.d/50-local.toml <<-'END'
	[[rule]]
	name       = "mallory"
	cgroup     = '/system.slice/mallory.service'
	uid        = "mallory"
	names      = ["ram", "own*", "later", "h1-*"]
	delegate   = ["mallory/*"]
	max-parked = 8
	rate       = "60000/1m"

	[[rule]]
	name   = "alice"
	cgroup = '/user.slice/user-1000.slice/user@1000.service/app.slice/*.service'
	uid    = "alice"
	rate   = "100/1h"

	[[rule]]
	name   = "vms"
	cgroup = '/machine.slice/machine-qemu\x2d#\x2d{vm:unescaped}.scope'
	uid    = "any"
	owner  = "qemu/{vm}"
	rate   = "60000/1m"

	[[rule]]
	name   = "containers"
	cgroup = '/machine.slice/machine-lxc\x2d{c:unescaped}.scope'
	uid    = "any"
	owner  = "qemu/lxc/{c}"
	rate   = "60000/1m"
END
holdfast policy check

# A store that can be filled in a moment, and as many starts as there are changes to try.
mkdir -p /etc/systemd/system/holdfastd.service.d /etc/systemd/system/holdfastd.socket.d
printf '[Unit]\nStartLimitIntervalSec=0\n' >/etc/systemd/system/holdfastd.socket.d/many.conf
printf '[Service]\nFileDescriptorStoreMax=256\n' >/etc/systemd/system/holdfastd.service.d/small.conf
mv /usr/libexec/holdfastd /usr/libexec/holdfastd.product
ln -s holdfastd.product /usr/libexec/holdfastd
cat >/etc/systemd/user/victim.service <<-'END'
	[Service]
	ExecStart=attack agent manager
	[Install]
	WantedBy=default.target
END
systemctl daemon-reload
systemctl enable --now holdfastd.socket holdfastd.service
systemctl --quiet --global enable victim.service

attack drive /test/mutants ${ONLY:-} &
driver=$!
for n in victim bystander; do
	systemd-run --quiet --unit=$n attack agent $n
done
systemd-run --quiet --unit=mallory --uid=mallory -p Delegate=yes attack agent unit
for n in box box0; do
	mkdir -p /var/lib/$n/usr/bin
	cp /usr/bin/attack /var/lib/$n/usr/bin
done
in_container() { # UNIT ROLE OPTIONS...
	unit=$1 role=$2
	shift 2
	systemd-run --quiet --unit="$unit" -p Delegate=yes systemd-nspawn --quiet --keep-unit --register=no --as-pid2 \
		--console=pipe --resolv-conf=off --timezone=off --link-journal=no --directory="/var/lib/$unit" \
		--bind=/run/holdfast --bind=/run/attack "$@" /usr/bin/attack agent "$role"
}
in_container box container --private-users=pick
in_container box0 host-root --bind=/dev/fuse
systemd-run --quiet --scope --slice=machine.slice --unit='machine-qemu\x2d1\x2dvm\x2d1.scope' --uid=qemu attack agent vm &
systemd-run --quiet --scope --slice=machine.slice --unit='machine-lxc\x2dc1.scope' --uid=qemu attack agent lxc &
su - alice -c 'attack agent login' &
echo '@reboot /usr/bin/attack agent crontab' | crontab -u alice -
echo '@reboot /usr/bin/attack agent rootcron' | crontab -
systemctl stop cron
rm -f /run/crond.reboot # so that it is a boot once more
systemctl start cron
wait $driver || fail "attack drive: status $?"
hfvm-pass
