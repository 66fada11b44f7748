#!/bin/sh
# SPDX-License-Identifier: MIT
# What holdfast list --all sees over an update: sessions in units' own fd stores, parked ones, a foreign one, one in the
# stores of two units; and afterwards who has claimed what, what became of the rest, and what the policy has released.
. /test/lib.sh

# list: what there is now, in /root/list
list() { holdfast list --all >/root/list || fail "holdfast list --all: exit status $?"; }

# row KERNEL-NAME DIRECTION PATTERN: its line in the table, with single spaces, is of that pattern
row() {
	seen=$(grep "^[! ] [^ ].* $1  *$2 " /root/list | tr -s ' ')
	# shellcheck disable=SC2254 # it is a pattern
	case $seen in
	$3) ;;
	*)
		cat /root/list
		fail "the $2 session $1: expected '$3', saw '$seen'"
		;;
	esac
}

# gone KERNEL-NAME DIRECTION: nobody has it any more
gone() { list && ! grep -q " $1  *$2 " /root/list; }

# marked N: so many sessions stand out, each with a sentence
marked() {
	expect "marked lines in $(cat /root/list)" $(($1 * 2)) "$(grep -c '^! ' /root/list)"
	expect_in "the end of the list" "Not seen:
  sessions that nobody has retrieved from the kernel since the update" "$(cat /root/list)"
}

# Run in a unit: the session that holdfast acquire has got is noted, and kept.
cat >/root/keep <<-'END'
	#!/bin/sh -e
	# keep UNIT WAY...
	echo "${LISTEN_FDNAMES%%:*}" | cut -d - -f 2- >"/root/name-$1"
	for way in "$@"; do
		case $way in
		stored) systemd-notify --fd=3 --fdname="${LISTEN_FDNAMES%%:*}" ;;
		parked) exec holdfast park ram ;;
		# To PID 1 this is of the second unit, in whose cgroup it is.
		twice) sh -ec 'echo 0 >/sys/fs/cgroup/system.slice/two.service/cgroup.procs; systemd-notify --fd=3 --fdname=x' ;;
		esac
	done
	systemd-notify --ready
	exec sleep infinity
END
chmod +x /root/keep
kernel_name() { cat "/root/name-$1"; }

# policy: what is said of sessions that nobody claims
policy() { # LINES OF-THE-RULE
	mkdir -p /etc/holdfast/policy.d
	cat >/etc/holdfast/policy.d/50-test.toml <<-END
		$1
		[[rule]]
		name = "forgotten"
		cgroup = '/system.slice/forgotten.service'
		uid = 0
		$2
	END
	holdfast policy check >/dev/null || fail "the policy is broken: $(holdfast policy check)"
}

# says TEXT: holdfast status has it
says() { case "$(holdfast status || :)" in *"$1"*) ;; *) return 1 ;; esac; }

# no_report_waits: holdfast-updated has taken up its own session
no_report_waits() { list && ! grep -q '^[! ] report .* incoming ' /root/list; }

case $HFVM_BOOT in
1)
	policy "" 'release-unclaimed-after = "300d"'
	systemctl enable --now holdfastd.socket holdfastd.service holdfast-updated.socket holdfast-updated.service holdfast-quiesce.service
	service() { # UNIT LINES
		cat >"/etc/systemd/system/$1.service" <<-END
			[Service]
			NotifyAccess=all
			FileDescriptorStoreMax=8
			FileDescriptorStorePreserve=yes
			$2
		END
	}
	service stored "Type=notify
ExecStart=holdfast acquire ram -- /root/keep one stored"
	service one "Type=notify
ExecStart=holdfast acquire both -- /root/keep both stored twice"
	service two "ExecStart=sleep infinity"
	service foreign "LUOSession=vm
ExecStart=sleep infinity"
	mkdir /root/parker
	printf '[Service]\nType=notify\nExecStart=parker -dir /root/parker\n' >/etc/systemd/system/parker.service
	systemctl start two
	systemctl start stored one foreign parker
	for unit in lost claimed forgotten; do
		systemd-run --quiet --wait --collect --unit=$unit holdfast acquire ram -- /root/keep $unit parked
	done
	list
	cat /root/list
	parker=$(sed -n 's/.* \(h1-[^ ]*\) .* parker.service: .*/\1/p' /root/list)
	foreign=$(sed -n 's/.* \(foreign.servi-[^ ]*\) .*/\1/p' /root/list)
	echo "$parker" >/root/name-parker
	echo "$foreign" >/root/name-foreign
	row "$(kernel_name one)" outgoing " ram /stored.service * no - store of stored.service, stored.service: $(systemctl show -P MainPID stored)"
	row "$parker" outgoing " ram /parker.service * yes - store of holdfastd.service, holdfastd.service: $(systemctl show -P MainPID holdfastd), parker.service: *"
	row "$foreign" outgoing " - foreign * no - store of foreign.service, foreign.service: *"
	row "$(kernel_name lost)" outgoing " ram /lost.service * yes - store of holdfastd.service, holdfastd.service: *"
	row "$(kernel_name both)" outgoing "! both /one.service * no - store of one.service, store of two.service, one.service: *"
	marked 1
	expect_in "what is wrong" "in the fd stores of one.service and of two.service, and the next kernel's systemd gives it to one of them at random" "$(cat /root/list)"
	json=$(holdfast list --all --json | tr -d ' \n')
	expect_in "what is wrong, for scripts" '"kernelName":"'"$(kernel_name both)"'","direction":"outgoing","parked":false,"foreign":false,"holders":[{"pid":1,"unit":"one.service","fdstore":true},{"pid":1,"unit":"two.service","fdstore":true},' "$json"
	expect_in "what is wrong, for scripts" '"problems":["inTwoStores"]' "$json"

	say "as somebody else, and what holdfastd itself sees"
	setpriv --reuid=65534 --clear-groups holdfast list --all >/root/list 2>&1 && fail "anybody may list all sessions"
	expect_in "what a user sees" "only root may look at" "$(cat /root/list)"
	expect_in "what a user sees" "others' sessions are for root with CAP_SYS_ADMIN" "$(cat /root/list)"
	expect "sessions that a user sees" "" "$(grep outgoing /root/list || :)"
	expect_in "holdfastd's answer" '{"kernelName":"'"$foreign"'","direction":"outgoing","parked":false,"foreign":true,"holders":[{"pid":1,"unit":"foreign.service"}]}' \
		"$(varlinkctl call --json=short /run/holdfast/io.holdfast io.holdfast.Sessions.List '{"all":true}')"
	update
	;;
2)
	wait_for systemctl is-active holdfast-updated
	wait_for no_report_waits
	list
	cat /root/list
	row "$(kernel_name one)" incoming "! ram /stored.service * no no store of stored.service"
	row "$(kernel_name both)" incoming "! both /one.service * no no store of *.service" # of one of the two
	row "$(kernel_name foreign)" incoming "! - foreign * no no store of foreign.service"
	row "$(kernel_name parker)" incoming "! ram /parker.service * yes no store of holdfastd.service, holdfastd.service: *"
	row "$(kernel_name lost)" incoming "! ram /lost.service * yes no store of holdfastd.service, holdfastd.service: *"
	row "$(kernel_name claimed)" incoming "! ram /claimed.service * yes no store of holdfastd.service, holdfastd.service: *"
	row "$(kernel_name forgotten)" incoming "! ram /forgotten.service * yes no store of holdfastd.service, holdfastd.service: *"
	marked 7
	expect_in "what the policy will do" "$(kernel_name forgotten) --direction incoming; the policy has it released in 299d23h." "$(cat /root/list)"
	wait_for says "6 waited for"
	holdfast status || :

	say "some come for theirs"
	systemctl start stored parker
	systemd-run --quiet --unit=claimed -p Type=notify -p NotifyAccess=all holdfast reclaim ram -- sh -c 'systemd-notify --ready; exec sleep infinity'
	wait_for gone "$(kernel_name parker)" incoming # renewed
	row "$(kernel_name parker)" outgoing " ram /parker.service * yes - store of holdfastd.service, holdfastd.service: *, parker.service: *"
	row "$(kernel_name claimed)" incoming " ram /claimed.service * yes yes store of holdfastd.service, claimed.service: *, holdfastd.service: *"
	row "$(kernel_name one)" incoming " ram /stored.service * no yes store of stored.service, stored.service: *"
	row "$(kernel_name one)" outgoing " ram /stored.service * no - store of stored.service, stored.service: *"
	row "$(kernel_name lost)" incoming "! ram /lost.service * yes no *"
	marked 4
	wait_for says "3 back, 3 waited for"
	expect_in "what to do" "free the memory by holdfast release --kernel-name $(kernel_name lost) --direction incoming" "$(cat /root/list)"

	say "nobody comes for the last ones"
	holdfast release --kernel-name "$(kernel_name lost)"
	wait_for gone "$(kernel_name lost)" incoming
	# What happens to units' own stores nobody but PID 1 knows.
	clean=$(systemctl show -P NFileDescriptorStore one) && [ "$clean" -gt 0 ] && clean=one || clean=two
	systemctl stop $clean
	systemctl clean --what=fdstore $clean
	wait_for gone "$(kernel_name both)" incoming
	# Restarted, holdfastd doesn't count anew; and the time of all others is over.
	policy 'reclaim-within = "1s"' 'release-unclaimed-after = "1s"'
	systemctl restart holdfastd
	systemctl reload holdfast-updated
	wait_for gone "$(kernel_name forgotten)" incoming
	marked 1
	cat /root/list
	holdfast wait --settled -t 1m && fail "what is lost is nothing to wait about" || expect "holdfast wait" 1 $?
	holdfast status || :
	wait_for says "ram of /forgotten.service is released: nobody claimed it in the time that the policy gives (forgotten)"
	wait_for says "both of /one.service is lost: it was committed (in the fd store of one.service and of two.service), and is in no store now"
	wait_for says "of 6 sessions: 3 back, 1 lost, 2 released"
	hfvm-pass
	;;
esac
