#!/bin/sh
# SPDX-License-Identifier: MIT
# The demonstration, as it happens on the host that is updated: in a virtual machine, or on luosim with the stand-ins in
# demo/luosim. Lines that begin with "demo:" tell the story; of the form "demo: KEY VALUE" they are what is checked
# outside.
set -eu

tell() { echo "demo: $*"; }

fields() { notebook status | tr ' ' '\n' | grep '^[a-z-]*='; }

boot=${LUOSIM_BOOT:-$HFVM_BOOT}
case $boot in
1)
	systemctl enable --now holdfastd.socket holdfastd.service >/dev/null 2>&1
	systemctl enable --now notebook.service >/dev/null 2>&1
	notebook put word "$HOLDFAST_DEMO_WORD" >/dev/null
	notebook fill
	;;
*)
	systemctl start notebook.service # returns when it is ready
	;;
esac
tell kernel "$(uname -r)"
fields | while IFS='=' read -r key value; do tell "$key" "$value"; done
tell "$(notebook sum)"
tell word "$(notebook get word | sed 's/^value //')"
[ "$boot" -lt 3 ] || exec hfvm-pass
hfvm-kexec-load
tell switching
systemctl kexec || : "the bus may go down before it has answered"
