// SPDX-License-Identifier: MIT

// Package custody keeps sessions that clients have parked, and the files in them, and gives them back. What it knows it
// has from its keeper: whatever holds descriptors for it while it isn't there itself. It can be killed at any point, and
// goes on with what the keeper hands back.
//
// In this kernel a parked session is outgoing; its files are kept beside it, since they can't be had out of it here. In
// the next kernel it is incoming, and the files are in it, for whoever is to pay for their memory.
package custody
