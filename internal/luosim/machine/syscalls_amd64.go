// SPDX-License-Identifier: MIT

package machine

import "golang.org/x/sys/unix"

const sysNewfstatat = unix.SYS_NEWFSTATAT

// Of i386 (arch/x86/entry/syscalls/syscall_32.tbl).
const (
	compatOpen      = 5
	compatIoctl     = 54
	compatReboot    = 88
	compatKexecLoad = 283
	compatOpenat    = 295
)

// Calls that newer architectures don't have.
var archHandlers = []handler{
	{rule(unix.SYS_OPEN), func(b *boot, c *call) verdict { return b.openFile(c, none, 0, uint64(uint32(c.Args[1]))) }},
	{rule(unix.SYS_CREAT), func(b *boot, c *call) verdict {
		return b.openFile(c, none, 0, unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC)
	}},
	{rule(unix.SYS_ACCESS), func(b *boot, c *call) verdict { return b.access(c, none, 0, 1) }},
	{rule(unix.SYS_READLINK), func(b *boot, c *call) verdict { return b.readlink(c, none, 0, 1) }},
	{rule(unix.SYS_STAT), func(b *boot, c *call) verdict { return b.stat(c, none, 0, 1, 0) }},
	{rule(unix.SYS_LSTAT), func(b *boot, c *call) verdict { return b.stat(c, none, 0, 1, unix.AT_SYMLINK_NOFOLLOW) }},
	{rule(unix.SYS_POLL), (*boot).poll},
}
