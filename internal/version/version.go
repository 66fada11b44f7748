// SPDX-License-Identifier: MIT

// Package version says which Holdfast this is.
package version

// Version is set by the linker from the Makefile.
var Version = "devel"
