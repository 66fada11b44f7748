// SPDX-License-Identifier: MIT

// Package api holds the varlink interfaces that Holdfast serves, as text.
package api

import _ "embed"

// Sessions is the description of the interface io.holdfast.Sessions.
//
//go:embed io.holdfast.Sessions.varlink
var Sessions string

// Update is the description of the interface io.holdfast.Update.
//
//go:embed io.holdfast.Update.varlink
var Update string
