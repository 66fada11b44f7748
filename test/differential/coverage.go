// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"strings"
)

// A pair is an operation and what it gave; step tells apart the places in the kernel that give the same errno.
type pair struct{ op, errno, step string }

// A covered pair says where in Linux 7.2.13 it comes from.
type covered struct {
	pair
	where       string
	unreachable string // why it can't be met, if it can't
}

func (c covered) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.op, c.errno, c.step)) + "  " + c.where
}

// stepOf tells the place from what the agent was asked to do: slot a, N = size + 100*place + 10000*command +
// 100000*content as in agent/ioctl.go.
func stepOf(op, errno string, a int, n int64, name string) string {
	size, place, command, content := n%100, n/100%100, n/10000%10, n/100000
	ofDevice := op == "create" || op == "retrieve"
	switch {
	case errno == "EFAULT":
		switch {
		case place == 1 || place == 2 || place == 5 || place == 9 || place == 12:
			return "(size)"
		case place == 4 || place == 10 || size == 16 || size == 18:
			return "(struct)"
		}
		return "(answer)"
	case errno != "EINVAL" || op == "open":
		return ""
	case command == 5:
		return "(number)"
	case ofDevice && a >= 2 || !ofDevice && a < 2:
		return "(other descriptor's number)"
	case size >= 1 && size <= 8:
		return "(size)"
	case content == 2:
		return "(reserved)"
	case op == "getname": // it works on both sides
		return "(other descriptor's number)"
	case op == "create" && name == "":
		return "(empty name)"
	case op == "create" && len(name) > 63:
		return "(long name)"
	}
	return ""
}

func (c *comparison) cover(r result) {
	var kind, name string
	var a, b int
	var n, m, l int64
	fmt.Sscanf(r.op, "%s %d %d %d %d %d %q", &kind, &a, &b, &n, &m, &l, &name)
	errno, _, _ := strings.Cut(r.gave, " ")
	p := pair{op: kind, errno: errno}
	if liveUpdate(kind) {
		p.step = stepOf(kind, errno, a, n, name)
	}
	c.seen[p]++
}

// liveUpdate says whether every errno of an operation has to be in the table.
func liveUpdate(op string) bool {
	switch op {
	case "open", "create", "retrieve", "preserve", "retrievefd", "finish", "getname":
		return true
	}
	return false
}

var pairs = []covered{
	{pair{"open", "ok", ""}, "kernel/liveupdate/luo_core.c luo_open", ""},
	{pair{"open", "EBUSY", ""}, "kernel/liveupdate/luo_core.c luo_open", ""},
	{pair{"open", "EEXIST", ""}, "fs/namei.c do_open: O_EXCL", ""},
	{pair{"open", "ENOTDIR", ""}, "fs/namei.c do_open: O_DIRECTORY", ""},
	{pair{"open", "EIO", ""}, "kernel/liveupdate/luo_core.c luo_open", "only if what the previous kernel left can not be read"},
	{pair{"create", "ok", ""}, "kernel/liveupdate/luo_core.c luo_ioctl_create_session", ""},
	{pair{"create", "EBADF", ""}, "fs/ioctl.c: no such descriptor", ""},
	{pair{"create", "EINVAL", "(number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"create", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: below the numbers", ""},
	{pair{"create", "EFAULT", "(size)"}, "kernel/liveupdate/luo_core.c luo_ioctl: get_user", ""},
	{pair{"create", "ENOTTY", ""}, "kernel/liveupdate/luo_core.c luo_ioctl: other bits of the number", ""},
	{pair{"create", "EINVAL", "(size)"}, "kernel/liveupdate/luo_core.c luo_ioctl: min_size", ""},
	{pair{"create", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_core.c luo_ioctl: copy_struct_from_user", ""},
	{pair{"create", "E2BIG", ""}, "kernel/liveupdate/luo_core.c luo_ioctl: copy_struct_from_user", ""},
	{pair{"create", "EMFILE", ""}, "kernel/liveupdate/luo_core.c luo_ioctl_create_session: get_unused_fd_flags", ""},
	{pair{"create", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_core.c luo_ioctl_create_session: luo_ucmd_respond", ""},
	{pair{"retrieve", "ok", ""}, "kernel/liveupdate/luo_core.c luo_ioctl_retrieve_session", ""},
	{pair{"retrieve", "EBADF", ""}, "fs/ioctl.c: no such descriptor", ""},
	{pair{"retrieve", "EINVAL", "(number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"retrieve", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: below the numbers", ""},
	{pair{"retrieve", "EFAULT", "(size)"}, "kernel/liveupdate/luo_core.c luo_ioctl: get_user", ""},
	{pair{"retrieve", "ENOTTY", ""}, "kernel/liveupdate/luo_core.c luo_ioctl: other bits of the number", ""},
	{pair{"retrieve", "EINVAL", "(size)"}, "kernel/liveupdate/luo_core.c luo_ioctl: min_size", ""},
	{pair{"retrieve", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_core.c luo_ioctl: copy_struct_from_user", ""},
	{pair{"retrieve", "E2BIG", ""}, "kernel/liveupdate/luo_core.c luo_ioctl: copy_struct_from_user", ""},
	{pair{"retrieve", "EMFILE", ""}, "kernel/liveupdate/luo_core.c luo_ioctl_retrieve_session: get_unused_fd_flags", ""},
	{pair{"retrieve", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_core.c luo_ioctl_retrieve_session: luo_ucmd_respond", ""},
	{pair{"create", "EINVAL", "(empty name)"}, "kernel/liveupdate/luo_session.c luo_session_create", ""},
	{pair{"create", "EINVAL", "(long name)"}, "kernel/liveupdate/luo_session.c luo_session_create", ""},
	{pair{"create", "EEXIST", ""}, "kernel/liveupdate/luo_session.c luo_session_insert", ""},
	{pair{"create", "ENOMEM", ""}, "kernel/liveupdate/luo_session.c luo_session_alloc, kernel/liveupdate/kho_block.c", "only if the kernel is out of memory"},
	{pair{"create", "ENOSPC", ""}, "kernel/liveupdate/kho_block.c kho_block_set_grow", "only with 10,000 blocks of sessions"},
	{pair{"retrieve", "ENOENT", ""}, "kernel/liveupdate/luo_session.c luo_session_retrieve", ""},
	{pair{"retrieve", "EINVAL", ""}, "kernel/liveupdate/luo_session.c luo_session_retrieve: retrieved already", ""},
	{pair{"preserve", "ok", ""}, "kernel/liveupdate/luo_session.c luo_session_preserve_fd", ""},
	{pair{"preserve", "EBADF", ""}, "fs/ioctl.c: no such descriptor; kernel/liveupdate/luo_file.c luo_preserve_file: fget", ""},
	{pair{"preserve", "EINVAL", "(number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: beyond the numbers", ""},
	{pair{"preserve", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"preserve", "EFAULT", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: get_user", ""},
	{pair{"preserve", "ENOTTY", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: other bits of the number", ""},
	{pair{"preserve", "EINVAL", ""}, "kernel/liveupdate/luo_session.c luo_ioctl_type_valid: the other side", ""},
	{pair{"preserve", "EINVAL", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: min_size", ""},
	{pair{"preserve", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"preserve", "E2BIG", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"preserve", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_session.c luo_session_preserve_fd: luo_ucmd_respond", ""},
	{pair{"retrievefd", "ok", ""}, "kernel/liveupdate/luo_session.c luo_session_retrieve_fd", ""},
	{pair{"retrievefd", "EBADF", ""}, "fs/ioctl.c: no such descriptor", ""},
	{pair{"retrievefd", "EINVAL", "(number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: beyond the numbers", ""},
	{pair{"retrievefd", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"retrievefd", "EFAULT", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: get_user", ""},
	{pair{"retrievefd", "ENOTTY", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: other bits of the number", ""},
	{pair{"retrievefd", "EINVAL", ""}, "kernel/liveupdate/luo_session.c luo_ioctl_type_valid: the other side", ""},
	{pair{"retrievefd", "EINVAL", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: min_size", ""},
	{pair{"retrievefd", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"retrievefd", "E2BIG", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"retrievefd", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_session.c luo_session_retrieve_fd: luo_ucmd_respond", ""},
	{pair{"finish", "ok", ""}, "kernel/liveupdate/luo_session.c luo_session_finish", ""},
	{pair{"finish", "EBADF", ""}, "fs/ioctl.c: no such descriptor", ""},
	{pair{"finish", "EINVAL", "(number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: beyond the numbers", ""},
	{pair{"finish", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"finish", "EFAULT", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: get_user", ""},
	{pair{"finish", "ENOTTY", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: other bits of the number", ""},
	{pair{"finish", "EINVAL", ""}, "kernel/liveupdate/luo_session.c luo_ioctl_type_valid: the other side", ""},
	{pair{"finish", "EINVAL", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: min_size", ""},
	{pair{"finish", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"finish", "E2BIG", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"finish", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_session.c luo_session_finish: luo_ucmd_respond", ""},
	{pair{"finish", "EINVAL", "(reserved)"}, "kernel/liveupdate/luo_session.c luo_session_finish", ""},
	{pair{"getname", "ok", ""}, "kernel/liveupdate/luo_session.c luo_session_get_name", ""},
	{pair{"getname", "EBADF", ""}, "fs/ioctl.c: no such descriptor", ""},
	{pair{"getname", "EINVAL", "(number)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: beyond the numbers", ""},
	{pair{"getname", "EINVAL", "(other descriptor's number)"}, "kernel/liveupdate/luo_core.c luo_ioctl: beyond the numbers", ""},
	{pair{"getname", "EFAULT", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: get_user", ""},
	{pair{"getname", "ENOTTY", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: other bits of the number", ""},
	{pair{"getname", "EINVAL", "(size)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: min_size", ""},
	{pair{"getname", "EFAULT", "(struct)"}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"getname", "E2BIG", ""}, "kernel/liveupdate/luo_session.c luo_session_ioctl: copy_struct_from_user", ""},
	{pair{"getname", "EFAULT", "(answer)"}, "kernel/liveupdate/luo_session.c luo_session_get_name: luo_ucmd_respond", ""},
	{pair{"getname", "EINVAL", "(reserved)"}, "kernel/liveupdate/luo_session.c luo_session_get_name", ""},
	{pair{"preserve", "EEXIST", ""}, "kernel/liveupdate/luo_file.c luo_preserve_file: the token", ""},
	{pair{"preserve", "ENOENT", ""}, "kernel/liveupdate/luo_file.c luo_preserve_file: can_preserve", ""},
	{pair{"preserve", "EBUSY", ""}, "kernel/liveupdate/luo_file.c luo_preserve_file: xa_insert", ""},
	{pair{"preserve", "EFBIG", ""}, "mm/memfd_luo.c memfd_luo_preserve", ""},
	{pair{"preserve", "ENOMEM", ""}, "mm/memfd_luo.c memfd_luo_preserve_folios: kvmalloc of 1 TiB and more", ""},
	{pair{"preserve", "ENOSPC", ""}, "kernel/liveupdate/kho_block.c kho_block_set_grow", "only with 10,000 blocks of files"},
	{pair{"preserve", "ENOTSUP", ""}, "mm/memfd_luo.c memfd_luo_preserve", "7.2 has no seal that it does not support"},
	{pair{"retrievefd", "EMFILE", ""}, "kernel/liveupdate/luo_session.c luo_session_retrieve_fd: get_unused_fd_flags", ""},
	{pair{"retrievefd", "ENOENT", ""}, "kernel/liveupdate/luo_file.c luo_retrieve_file", ""},
	{pair{"retrievefd", "ENOMEM", ""}, "mm/memfd_luo.c memfd_luo_retrieve_folios: mem_cgroup_charge", "only in a memory cgroup that is full, where the caller is killed"},
	{pair{"retrievefd", "EIO", ""}, "mm/memfd_luo.c memfd_luo_retrieve_folios", "only if a page is not as it was left"},
	{pair{"retrievefd", "ENOTSUP", ""}, "mm/memfd_luo.c memfd_luo_retrieve", "only if the previous kernel knew more seals"},
	{pair{"finish", "EBUSY", ""}, "kernel/liveupdate/luo_file.c luo_file_can_finish_one", "memfds have no can_finish"},
	{pair{"truncate", "ok", ""}, "mm/shmem.c shmem_setattr", ""},
	{pair{"truncate", "EPERM", ""}, "mm/shmem.c shmem_setattr: frozen or sealed", ""},
	{pair{"fallocate", "ok", ""}, "mm/shmem.c shmem_fallocate", ""},
	{pair{"fallocate", "EPERM", ""}, "mm/shmem.c shmem_fallocate: frozen or sealed", ""},
	{pair{"fallocate", "ENOTSUP", ""}, "mm/shmem.c shmem_fallocate, fs/open.c vfs_fallocate: the mode", ""},
	{pair{"write", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"write", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"pwrite", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"pwrite", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"writev", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"writev", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"pwritev", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"pwritev", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"sendfile", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"sendfile", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"copyrange", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"copyrange", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"splice", "ok", ""}, "mm/shmem.c shmem_write_begin", ""},
	{pair{"splice", "EPERM", ""}, "mm/shmem.c shmem_write_begin: frozen or sealed", ""},
	{pair{"addseals", "ok", ""}, "mm/memfd.c memfd_add_seals", ""},
	{pair{"addseals", "EPERM", ""}, "mm/memfd.c memfd_add_seals", ""},
	{pair{"addseals", "EBUSY", ""}, "mm/memfd.c memfd_add_seals: mapped, or pinned as it is preserved", ""},
	{pair{"addseals", "EINVAL", ""}, "mm/memfd.c memfd_add_seals", ""},
	{pair{"map", "EPERM", ""}, "mm/memfd.c memfd_check_seals_mmap", ""},
	{pair{"map", "ENODEV", ""}, "mm/mmap.c: a session or the device", ""},
	{pair{"reopen", "EPERM", ""}, "mm/shmem.c shmem_setattr: O_TRUNC while frozen or sealed", ""},
	{pair{"reopen", "ENXIO", ""}, "fs/open.c: a session", ""},
	{pair{"epoll", "EPERM", ""}, "fs/eventpoll.c: a session or the device", ""},
	{pair{"reboot", "EINVAL", ""}, "kernel/kexec_core.c kernel_kexec: nothing loaded; kernel/reboot.c", ""},
	{pair{"load-kernel", "EBADF", ""}, "kernel/kexec_file.c", ""},
	{pair{"load-kernel", "EINVAL", ""}, "kernel/kexec_file.c: flags", ""},
}
