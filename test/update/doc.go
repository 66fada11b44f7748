// SPDX-License-Identifier: MIT

// Package update tests whole updates, with the real holdfastd, holdfast-updated and holdfast, and participants that are
// processes of their own, on an emulated kernel: those that succeed, and those that are called off, after which everybody
// runs on and a good one works. They need root, since nobody else may start an update; elsewhere they skip.
package update
