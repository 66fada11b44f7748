#!/bin/sh
# SPDX-License-Identifier: MIT
# The notebook over a crash, a restart and two updates.
. /test/lib.sh

came() { [ "$(word came)" = "$1" ]; }

case $HFVM_BOOT in
1)
	systemctl enable --now holdfastd.socket holdfastd.service
	systemctl enable --now notebook.service
	expect "first start" fresh "$(word came)"
	notebook put word "$WORD" >/dev/null
	notebook fill
	notebook sum >/root/sum
	systemctl kill --signal=KILL notebook
	wait_for came store
	expect "after a crash" "$(cat /root/sum)" "$(notebook sum)"
	systemctl restart notebook
	expect "after a restart" "$(cat /root/sum)" "$(notebook sum)"
	expect "after a restart" store "$(word came)"
	say "$(cat /root/sum)"
	update
	;;
2 | 3)
	systemctl start notebook # waits until it is ready
	expect "memory after update $((HFVM_BOOT - 1))" "$(cat /root/sum)" "$(notebook sum)"
	expect "the word" "value $WORD" "$(notebook get word)"
	expect "came" update "$(word came)"
	expect "generation" "$HFVM_BOOT" "$(word generation)"
	say "$(notebook status)"
	[ "$HFVM_BOOT" = 3 ] && exec hfvm-pass
	update
	;;
esac
