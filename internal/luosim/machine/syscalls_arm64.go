// SPDX-License-Identifier: MIT

package machine

import "golang.org/x/sys/unix"

const sysNewfstatat = unix.SYS_FSTATAT

var archHandlers []handler
