#!/bin/sh
# SPDX-License-Identifier: MIT
# An update with three participants, on luosim: called off for a veto, with everybody running on, and then carried out.
set -eu

title() { printf '\n%s%s%s\n' "${BOLD-}" "$*" "${BOLD:+$(printf '\033[0m')}"; }
shown() {
	printf '\n$ %s\n' "$*"
	"$@"
}

mkdir -p policy.d
cat >policy.d/demo.toml <<'END'
[[rule]]
name     = "demo"
cgroup   = "any"
uid      = "any"
owner    = "demo"
rate     = "any"
list-all = true
required = true
END
demo ready holdfastd --listen "$HOLDFAST_ADDRESS" --policy policy.d 2>>log
demo ready holdfast-updated --listen "$HOLDFAST_UPDATE_ADDRESS" --policy policy.d 2>>log

if [ "$LUOSIM_BOOT" = 1 ]; then
	title "Kernel $(uname -r), and three programs that take part in updates"
	for m in cache database vm1; do demo ready demo member $m 2>>log; done

	title "vm1 has something against an update"
	printf 'a migration of its disk is under way' >veto-vm1
	demo load
	status=0
	shown holdfast update --yes 2>&1 || status=$?
	echo "(exit status $status)"
	[ $status = 4 ] || exit 1
	rm veto-vm1

	title "Nothing has anything against it"
	demo load
	shown holdfast update --yes
	exit 1 # not reached: the kernel is another one
fi

title "Kernel $(uname -r): every process was ended, and what is in sessions is all that is left"
for m in cache database vm1; do demo ready demo member $m 2>>log; done
# Nobody could list beforehand what these programs held themselves: it is known once holdfast-updated has asked who has it.
for _ in $(seq 100); do
	! holdfast status 2>/dev/null | grep -q 'all of it is back: 3 sessions' || break
	sleep 0.1
done
shown holdfast wait --settled -t 1m
shown holdfast status
printf '\nOn real hosts there is a holdfast report besides; the clocks of this kernel are emulated, and would tell lies.\n'
