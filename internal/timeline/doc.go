// SPDX-License-Identifier: MIT

// Package timeline remembers what happened when in an update, over the kexec, and makes one line of time of it.
//
// # The clock
//
// The wall clock is read again from the RTC in the next kernel, good to a second, and CLOCK_MONOTONIC and CLOCK_BOOTTIME
// begin at 0 there. What goes on counting is the processor's own counter: the TSC on x86-64, CNTVCT_EL0 on arm64. In each
// kernel some readings of counter and CLOCK_BOOTTIME together are written down ([Reading]); two of them give the counter's
// frequency as that kernel's clocks have it, and one on each side of the kexec relates the clocks of both kernels. So
// everything that either kernel or its PID 1 has stamped can be put on one line. It also tells what NTP did to CLOCK_BOOTTIME
// between two readings. Where there is no such counter, where it was set back or doesn't go steadily, the wall clock is all
// there is, and the report says so.
//
// # The document
//
// It is a memfd of fixed size, since one that is preserved can't be resized. A header of 64 bytes:
//
//	0   16 bytes, [magic]
//	16  the counter, little-endian, as often as every 20 ms while the kernel is being left: the last sign of life
//	24  how many lines of this kernel had no room
//
// and then JSON, one [Line] each, up to the first NUL. Lines are appended; when a kernel or a round begins, what is older
// than the last update is taken out. Where there is no room for all participants and sessions, those that are too many are
// left out, and how the kernel was left and the next one came is not. A line that was cut off by a death is passed over.
//
// It lies in a session of Holdfast's own, "report", which is parked, reclaimed and renewed like any other.
package timeline
