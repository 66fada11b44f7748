// SPDX-License-Identifier: MIT

// Command kill is a client that parks its memory, and tells on its standard output how far it has come. It is for tests
// that kill it, or holdfastd, on its way, and hold the next one to what it told.
package main
