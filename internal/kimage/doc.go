// SPDX-License-Identifier: MIT

// Package kimage reads from a kernel's image, without running it, whether it can take over a live update from the running
// kernel: its release, its configuration, and the formats in which it hands over memory and takes it.
//
// # Formats
//
// Two kernels agree if the old one's compatibility strings are in the new one. The new kernel compares them whole, and
// nothing promises that a newer kernel knows an older one's (Documentation/userspace-api/liveupdate.rst). In Linux 7.2.13 and
// 7.3.4, which have the same:
//
//	kho-v4          KHO_FDT_COMPATIBLE, include/linux/kho/abi/kexec_handover.h: the root of what is handed over. Otherwise
//	                the new kernel takes nothing ("handover FDT … is incompatible with", kernel/liveupdate/kexec_handover.c).
//	luo-v5          LUO_ABI_COMPATIBLE, include/linux/kho/abi/luo.h: all of LUO's own structures, sessions and FLBs included.
//	                Otherwise the new kernel panics when it starts, even with liveupdate=off (luo_early_startup(),
//	                kernel/liveupdate/luo_core.c; luo_restore_fail(), luo_internal.h).
//	memfd-v2        MEMFD_LUO_FH_COMPATIBLE, include/linux/kho/abi/memfd.h: a memfd in a session. Otherwise no session can be
//	                retrieved, not even another one: each open of the device fails (EIO; luo_file_deserialize_one(),
//	                kernel/liveupdate/luo_file.c; luo_open(), luo_core.c).
//	memblock-v1     MEMBLOCK_KHO_NODE_COMPATIBLE, and
//	reserve-mem-v1  RESERVE_MEM_KHO_NODE_COMPATIBLE, include/linux/kho/abi/memblock.h: regions of reserve_mem= on the command line.
//
// Types of files and their shared state (FLBs) are known by the string in their struct liveupdate_file_handler or
// liveupdate_flb (include/linux/liveupdate.h), so that types of later kernels are found too; but not on arm64 where the
// linker leaves the pointer before it empty. Earlier kernels had luo-session-vN and luo-flb-vN besides luo-vN. What a module of the
// kernel registers isn't in its image. Not compared: KHO_KEXEC_METADATA_VERSION (1 in both; on a mismatch the new kernel
// ignores only what the old one said of itself), KHO_BLOCK_SIZE (the page size), and test code's strings.
//
// # The running kernel
//
// The image in its memory isn't open to reading. See [Running] for what else tells. debugfs has
// /sys/kernel/debug/kho/out/fdt with KHO's string, and sub_fdts/LUO there begins with LUO's; for types of files there is only the image.
//
// # Hostile images
//
// Nothing in an image is believed. Reading takes memory for the decompressor's window (at most 128 MiB, and only what a stream
// really fills) and a megabyte or two, and ends after 512 MiB of unpacked kernel. The time is that of unpacking: 0.1 s for
// a small kernel with zstd, a few seconds for a distribution's with xz.
package kimage
