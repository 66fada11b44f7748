// SPDX-License-Identifier: MIT

// Package liveupdate is Go's face of the Live Update Orchestrator (LUO), with which Linux carries files, today memfds,
// through a kexec into the next kernel. It has the kernel's six ioctls and its errors, and nothing else: no policy, no
// names of its own, no state.
//
// # The life of a session
//
// A session is a named set of files. In the old kernel it is outgoing:
//
//	s, err := liveupdate.Device{}.Create(ctx, "cache")
//	err = s.Preserve(1, memfd)
//
// Then somebody loads the next kernel by kexec_file_load and calls reboot(LINUX_REBOOT_CMD_KEXEC). Until that very
// moment a descriptor of the session has to be open, in whatever process: when the last one is closed, everything in
// the session is undone. Passing it by SCM_RIGHTS to someone who lives longer is the way.
//
// In the next kernel the session is incoming. Its name and the tokens are what finds it and its files again; the
// kernel lists neither:
//
//	s, err := liveupdate.Device{}.Retrieve(ctx, "cache")
//	memfd, err := s.Retrieve(1)
//	err = s.Finish()
//
// An incoming session can't be used for another update. For that: retrieve, finish, create a new one (the same name is
// free at once), preserve. A retrieved file can't be preserved before its old session is finished, so there is a gap in
// which its open descriptors are all that holds the memory. Let more than one process have one.
//
// # What holds memory
//
//   - An outgoing session holds its files as long as a descriptor of the session is open. They can't be had back
//     from it in this kernel, so whoever still wants them keeps a descriptor of each too.
//   - An incoming session that nobody has retrieved stays until the next kexec.
//   - An incoming session that was retrieved is finished when its last descriptor is closed; what was not retrieved
//     from it by then is freed.
//   - A [Session] that is garbage collected is not closed, for that reason. An [os.File] is.
//
// # Who pays
//
// The pages of a file are charged to the memory cgroup of whoever calls [Session.Retrieve]
// (memfd_luo_retrieve_folios() in mm/memfd_luo.c). With too low a memory.max the caller is killed in the middle of it,
// or gets [ErrNoMemory], and in both cases the file is lost for good. Retrieve in the cgroup that is to own the memory,
// and look at its limit first.
//
// # Units, ranges, ownership
//
// Names are 1 to [MaxName] bytes of anything but NUL. Tokens are any uint64, unique in their session. Descriptors
// passed in stay the caller's, save for [FromFD]; those that come out are close-on-exec and the caller's to close.
// Everything is safe for concurrent use. Only waiting for a busy device can be interrupted, by the context; an ioctl
// runs to its end, which takes time for [Session.Preserve] and [Session.Retrieve] of large files.
//
// # Errors
//
// Errors are an [*Error] or a [*BusyError]. They say what was tried, on what, what the kernel said and what to do
// next, and [errors.Is] tells the Err variables apart.
//
// # Needs
//
// Linux 6.19 or newer built with CONFIG_LIVEUPDATE and CONFIG_LIVEUPDATE_MEMFD, and kho=on liveupdate=on on the
// command line of both kernels. /dev/liveupdate is root's alone. On other systems everything fails with
// [ErrNotSupported].
//
// What is said here of the kernel was read in Linux 7.2.13: kernel/liveupdate/luo_core.c, luo_session.c, luo_file.c,
// mm/memfd_luo.c and include/uapi/linux/liveupdate.h.
package liveupdate
