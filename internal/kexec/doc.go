// SPDX-License-Identifier: MIT

// Package kexec loads the next kernel, and finds what there is to load: boot entries, the parts of a unified kernel image,
// and a command line on which live update is switched on.
package kexec
