// SPDX-License-Identifier: MIT

// Package holdfast lets a program keep its memory while the host changes its kernel.
//
// A live update replaces the running kernel by kexec. What a program has put into a live update session stays in
// RAM, and the program's next incarnation gets it back from the new kernel. Sessions are handed out by holdfastd, the
// orchestrator, which works out from the caller's cgroup who is asking; systemd's file descriptor store (systemd
// 261 or newer) carries what was committed across the kexec.
//
// # The life of a service's memory
//
//	client, err := holdfast.Dial(ctx)
//	restored, err := holdfast.Restored(ctx, client)     // what systemd handed back
//	if len(restored) == 0 {                             // the first start
//		session, err := client.Acquire(ctx, "cache")
//		err = session.Preserve("data", memfd)           // pins the memory; it can be written, not resized
//		err = session.Store(ctx)                        // manifest, then all of it into one's own fd store
//	} else {
//		files, err := restored[0].Retrieve()            // memfd := files["data"]
//		session, err := holdfast.Renew(ctx, client, restored[0])
//	}
//
// From the moment that Store or Renew has returned, the memory survives the death of the program, its restart, and
// the next live update. The unit needs FileDescriptorStoreMax= (two entries a session and one a file; four and
// one a file while it renews) and FileDescriptorStorePreserve=yes.
//
// # Ownership and concurrency
//
// Functions that take an *os.File duplicate its descriptor: the caller's stays the caller's. Files that are returned
// are the caller's to close. A [Session] or [Committed] that is not closed is not closed by the garbage collector
// either: a leaked descriptor does less harm than memory that is gone. All types are safe for concurrent use.
//
// # Errors
//
// What the orchestrator refused is an [*Error], to be told apart with errors.Is and the Err variables of this
// package. What the kernel refused on the session itself comes from package liveupdate.
package holdfast
