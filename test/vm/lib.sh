# SPDX-License-Identifier: MIT
# Read by the scripts that run in the guest.

set -eu

# The journal says why.
trap 'status=$?; [ $status = 0 ] || journalctl -b -n 40 --no-pager -o short-monotonic; exit $status' EXIT

say() { echo "[boot $HFVM_BOOT] $*"; }

fail() {
	journalctl -b -n 40 --no-pager -o short-monotonic
	hfvm-fail "$*"
}

# expect WHAT WANTED SEEN
expect() {
	[ "$2" = "$3" ] || fail "$1: expected '$2', saw '$3'"
}

# expect_in WHAT PART TEXT
expect_in() {
	case "$3" in
	*"$2"*) ;;
	*) fail "$1: expected '$2' in: $3" ;;
	esac
}

# word NAME: the word NAME=… of the notebook's status
word() { notebook status | tr ' ' '\n' | sed -n "s/^$1=//p"; }

# update: to the next kernel, by way of the init system
update() {
	hfvm-kexec-load
	say "switching"
	systemctl kexec || : "the bus may go down before it has answered"
	exit 0
}

# wait_for COMMAND...: until it succeeds; a minute is the most
wait_for() {
	end=$(($(cut -d. -f1 /proc/uptime) + 60))
	until "$@" >/dev/null 2>&1; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || fail "after a minute there is still no success of: $*"
		sleep 0.1 # between looks, so that what is waited for has the processor
	done
}
