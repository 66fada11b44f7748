#!/bin/sh
# SPDX-License-Identifier: MIT
# Debian's memcached over an update by Holdfast, and then over a systemctl kexec without it. It is filled and asked from outside. Lines
# that begin with "demo: " are for demo/memcached.go: "demo: KEY VALUE".
set -eu

tell() { echo "demo: $*"; }

# until_told WHAT: it is what memcached has under that key
until_told() {
	until bash -c 'exec 3<>/dev/tcp/127.0.0.1/11211 && printf "get told\r\nquit\r\n" >&3 && grep -q "^$1" <&3' told "$1" 2>/dev/null; do sleep 0.3; done
}

dropins=/etc/systemd/system/memcached.service.d
tell kernel "$(uname -r)"
case $HFVM_BOOT in
1)
	install -D -m 0644 /usr/share/doc/holdfast/memcached/holdfast.conf $dropins/holdfast.conf
	install -D -m 0644 /usr/share/doc/holdfast/memcached/50-memcached.toml /etc/holdfast/policy.d/50-memcached.toml
	printf '[Service]\nEnvironment=MEMORY=192\nEnvironment="OPTIONS=-l 0.0.0.0"\n' >$dropins/settings.conf
	systemctl daemon-reload
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service >/dev/null 2>&1
	systemctl restart memcached
	tell runs "$(tr '\0' ' ' </proc/"$(pidof memcached)"/cmdline)"
	tell ready holdfast
	until_told leave-holdfast
	hfvm-kexec-load
	tell update "holdfast update"
	holdfast update --yes >/dev/null
	;;
2)
	until_told done-holdfast
	systemctl stop memcached
	systemctl disable --now holdfastd.socket holdfast-updated.socket holdfastd.service holdfast-updated.service >/dev/null 2>&1
	rm $dropins/holdfast.conf $dropins/settings.conf
	sed -i 's/^-m .*/-m 192/; s/^-l 127.*/-l 0.0.0.0/; /^-l ::1/d' /etc/memcached.conf
	systemctl daemon-reload
	systemctl start memcached
	until_told '\(VALUE\|END\)'
	tell runs "$(tr '\0' ' ' </proc/"$(pidof memcached)"/cmdline)"
	tell ready cold
	until_told leave-cold
	hfvm-kexec-load
	tell update "systemctl kexec, with Holdfast taken away"
	systemctl kexec 2>/dev/null || : "the bus may go down before it has answered"
	;;
3)
	until_told done-cold
	exec hfvm-pass
	;;
esac
