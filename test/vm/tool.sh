#!/bin/sh
# SPDX-License-Identifier: MIT
# The command line tool: what it says of the host, sessions for services, refusals for the rest, and a service that
# has it in its ExecStart= over a restart and an update.
. /test/lib.sh

# run COMMAND...: its output and exit status in $out and $status
run() {
	status=0
	out=$("$@" 2>&1) || status=$?
}

# service COMMAND...: the same in a service of its own
service() {
	run systemd-run --quiet --wait --pipe --collect --expand-environment=no --unit=tool-test "$@"
}

# fails STATUS PART: the last command failed so, and said why in one line
fails() {
	expect "exit status after: $out" "$1" "$status"
	expect_in "its error" "$2" "$out"
	expect "number of lines in: $out" 1 "$(echo "$out" | wc -l)"
}

# seen N WORD: what descriptor N was at the service's last start
seen() { sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\).*/\1/p" "/root/seen/$1"; }

case $HFVM_BOOT in
1)
	say "without holdfastd"
	run holdfast status
	expect "exit status of holdfast status" 1 "$status"
	expect_in "holdfast status" "does not answer" "$out"
	expect_in "holdfast status" "systemctl enable --now holdfastd.socket holdfastd.service" "$out"
	service holdfast acquire x -- true
	fails 1 "is holdfastd.socket started?"

	say "with it"
	systemctl enable --now holdfastd.socket holdfastd.service
	run holdfast status
	say "$out"
	expect "exit status of holdfast status" 0 "$status"
	expect_in "holdfast status" "carries fd stores across an update" "$out"
	expect_in "holdfast status" "can be had" "$out"
	run holdfast status --json
	expect_in "holdfast status --json" '"ready": true' "$out"
	expect_in "holdfast status --json" '"kexecLoaded": false' "$out"
	expect_in "holdfast status --json" '"carriesStores": true' "$out"
	expect_in "holdfast status --json" '"nameMax": 43' "$out"

	say "a session for a command"
	service holdfast acquire ram -- sh -c '
		echo "pid $([ $$ = $LISTEN_PID ] && echo mine)" "fds $LISTEN_FDS" "names $LISTEN_FDNAMES"
		ls /proc/$$/fd | xargs echo open
		holdfast identify
		holdfast acquire ram -- true
		echo "again $?"
		sh -c "echo \$\$ >/sys/fs/cgroup/system.slice/hfvm.service/cgroup.procs; exec holdfast identify"
		echo "elsewhere $?"
		exit 7'
	say "$out"
	expect "the command's exit status" 7 "$status"
	boot=$(head -c 8 /proc/sys/kernel/random/boot_id)
	kernel_name=$(echo "$out" | sed -n 's/^kernel name *//p' | head -n 1)
	expect_in "kernel name" "h1-" "$kernel_name"
	expect_in "its environment" "pid mine fds 1 names b$boot-$kernel_name
" "$out"
	expect_in "its descriptors" "open 0 1 2 3
" "$out"
	expect_in "holdfast identify" "owner         /tool-test.service" "$out"
	expect_in "holdfast identify" "direction     outgoing" "$out"
	expect_in "a name that is taken" 'a session "ram" exists already' "$out"
	expect_in "a name that is taken" "again 1" "$out"
	expect_in "holdfast identify in another unit" "is not yours: it was handed out to another unit" "$out"
	expect_in "holdfast identify in another unit" "elsewhere 1" "$out"

	say "what can't be"
	service holdfast acquire x -- no-such-command
	fails 127 no-such-command
	service holdfast acquire ../x -- true
	fails 1 'the name "../x" can'
	service sh -c 'holdfast identify --fd 0 </dev/null'
	fails 1 "file descriptor 0 is not a live update session"
	run systemd-run --quiet --scope --unit=tool-test holdfast acquire x -- true
	fails 1 "tool-test.scope is a scope, which has no fd store"
	expect_in "the hint" "systemd-run --unit=UNIT -p FileDescriptorStoreMax=16" "$out"
	run sh -c 'echo $$ >/sys/fs/cgroup/cgroup.procs; exec holdfast acquire x -- true'
	fails 1 "names no unit"
	expect_in "the hint" "systemd-run --unit=UNIT -p FileDescriptorStoreMax=16" "$out"
	service --uid=nobody holdfast acquire x -- true
	fails 1 "only uid 0 may have sessions (rule: built-in)"
	# Without logind's PAM module nobody tells a user's manager its directory, and there is no bus for systemd-run.
	mkdir /etc/systemd/system/user@0.service.d
	printf '[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/0\n' >/etc/systemd/system/user@0.service.d/runtime.conf
	systemctl daemon-reload
	cat >/etc/systemd/user/tool-test.service <<-'END'
		[Service]
		Type=oneshot
		ExecStart=holdfast acquire x -- true
		StandardError=file:/run/tool-test
	END
	systemctl start user@0.service
	XDG_RUNTIME_DIR=/run/user/0 systemctl --user start tool-test.service || status=$?
	out=$(cat /run/tool-test)
	fails 1 "is below user.slice"
	systemctl stop user@0.service

	say "the device is busy"
	exec 9<>/dev/liveupdate
	service holdfast acquire x --timeout 2s -- true
	fails 1 "/dev/liveupdate is open elsewhere"
	exec 9>&-
	service holdfast acquire x -- true
	expect "afterwards" 0 "$status"

	say "a service"
	cat >/root/command <<-'END'
		#!/bin/sh
		set -eu
		rm -rf /root/seen
		mkdir /root/seen
		echo "$LISTEN_FDS" >/root/seen/fds
		echo "$LISTEN_FDNAMES" >/root/seen/names
		for fd in $(seq 3 $((LISTEN_FDS + 2))); do
			holdfast identify --fd "$fd" --json >"/root/seen/$fd"
		done
		systemd-notify --fd=3 --fdname="${LISTEN_FDNAMES%%:*}"
		systemd-notify --ready
		exec sleep infinity
	END
	chmod +x /root/command
	cat >/etc/systemd/system/tool.service <<-'END'
		[Unit]
		Wants=holdfastd.socket holdfastd.service
		After=holdfastd.socket
		[Service]
		Type=notify
		NotifyAccess=all
		ExecStart=holdfast acquire ram -- /root/command
		FileDescriptorStoreMax=16
		FileDescriptorStorePreserve=yes
	END
	systemctl daemon-reload
	for start in first second; do
		systemctl restart tool.service
		expect "descriptors at the $start start" 1 "$(cat /root/seen/fds)"
		expect "direction at the $start start" outgoing "$(seen 3 direction)"
		expect "name at the $start start" ram "$(seen 3 name)"
		expect "FDNAME at the $start start" "b$boot-$(seen 3 kernelName)" "$(cat /root/seen/names)"
	done
	cp /root/seen/names /root/names
	update
	;;
2)
	systemctl start tool.service
	expect "descriptors after the update" 2 "$(cat /root/seen/fds)"
	expect "direction of 3" outgoing "$(seen 3 direction)"
	expect "direction of 4" incoming "$(seen 4 direction)"
	expect "names of 3 and 4" "ram ram" "$(seen 3 name) $(seen 4 name)"
	expect "4 is its own" true "$(seen 4 yours)"
	boot=$(head -c 8 /proc/sys/kernel/random/boot_id)
	expect "FDNAMEs" "b$boot-$(seen 3 kernelName):$(cat /root/names)" "$(cat /root/seen/names)"
	exec hfvm-pass
	;;
esac
