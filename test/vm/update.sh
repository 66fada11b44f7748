#!/bin/sh
# SPDX-License-Identifier: MIT
# holdfast update with twenty participants: called off in each way, with everybody running on, and then carried out. What is
# done and looked at is in test/update, in guest_linux_test.go.
. /test/lib.sh

cat >/run/systemd/system/member@.service <<-'END'
	[Unit]
	StartLimitIntervalSec=0
	[Service]
	ExecStart=/test/update.test
	Environment=UPDATE_TEST_SOCKET=/run/members/%i UPDATE_TEST_BINARIES=/usr/bin
	Environment="UPDATE_TEST_PARTICIPANT=%i /root/members false"
	Restart=always
	RestartSec=100ms
END
mkdir -p /run/systemd/system/member@mute.service.d /run/members /root/members /etc/holdfast/policy.d
cat >/run/systemd/system/member@mute.service.d/optional.conf <<-'END'
	[Service]
	Environment="UPDATE_TEST_PARTICIPANT=%i /root/members true"
END
cat >/etc/holdfast/policy.d/50-members.toml <<-'END'
	[[rule]]
	name     = "members"
	cgroup   = '/system.slice/system-member.slice/member@*.service'
	uid      = 0
	required = true

	[[rule]]
	name     = "test"
	cgroup   = '/system.slice/hfvm.service'
	uid      = 0
	required = true
END
systemctl daemon-reload
systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service
systemctl start --no-block member@mute $(seq -f member@m%g 0 18)

export UPDATE_TEST_BINARIES=/usr/bin
case $HFVM_BOOT in
1)
	/test/update.test -test.v -test.timeout 600s -test.run '^TestInGuest$'
	;;
2)
	/test/update.test -test.v -test.timeout 120s -test.run '^TestInNextGuest$'
	exec hfvm-pass
	;;
esac
