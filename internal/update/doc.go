// SPDX-License-Identifier: MIT

// Package update has the rules of a round: one try to carry out a live update, from asking every participant to get
// ready to the switch, or back. It does nothing by itself: events come in with the time that they happened at, and what
// is to be done is read off the phase.
//
//	idle → preparing → prepared → quiescing → committing
//	           └──────────┴───────────┴────────────┴→ aborted → resumed
//
// While preparing, participants preserve what they have and go on working. While quiescing, they pause and save the rest.
// Until the switch each round can be called off; then all are told, and the round is over (resumed) when they have said
// that they are running as before, and the loaded kernel is dropped.
package update
