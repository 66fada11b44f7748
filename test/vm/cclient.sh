#!/bin/sh
# SPDX-License-Identifier: MIT
# The client in C: built here from its sources in /test/c, then over a crash, a restart and an update.
. /test/lib.sh

# expect_memo STARTS CAME: what the service says of its memory
expect_memo() {
	expect "what memo says" "start $1, memory $2" "$(systemctl show -P StatusText memo.service)"
}

case $HFVM_BOOT in
1)
	make -C /test/c CFLAGS="-O2 -Wall -Wextra -Werror" install || fail "make"
	systemctl enable --now holdfastd.socket holdfastd.service memo.service
	expect_memo 1 new
	systemctl restart memo.service
	expect_memo 2 "from the fd store"
	systemctl kill --signal=KILL --wait memo.service || : # its status is the unit's
	systemctl start memo.service
	expect_memo 3 "from the fd store"
	update
	;;
2)
	systemctl start memo.service # waits until it is ready
	expect_memo 4 "from the previous kernel"
	systemctl restart memo.service
	expect_memo 5 "from the fd store"
	update
	;;
3)
	systemctl start memo.service
	expect_memo 6 "from the previous kernel"
	exec hfvm-pass
	;;
esac
