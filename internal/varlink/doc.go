// SPDX-License-Identifier: MIT

// Package varlink speaks the varlink protocol (https://varlink.org) over unix stream sockets, with file
// descriptors: the dialect of systemd's sd-varlink. It has both sides, [Server] and [Client].
//
// # Frames
//
// A message is a JSON object ended by a NUL. Its descriptors travel as SCM_RIGHTS with its first byte, in a
// sendmsg of its own, and are named in the JSON by their index: 0, 1, …
//
// # Which message descriptors belong to
//
// A stream has no message borders, but descriptors put a border into it: once a recvmsg has taken some, it
// returns no byte of a later sendmsg (net/unix/af_unix.c, unix_stream_read_generic, "if (scm.fp) break"; read
// in 6.9 and 7.2). It may return bytes of earlier ones that had none. So the descriptors of one recvmsg belong
// to the message that its last byte is part of.
//
// # Hostile peers
//
// Everything that a peer of the server may hold up, holds up that peer only. Closing a descriptor that a peer
// sent can block for as long as the peer likes: a lingering socket, a file on FUSE. So the server closes those
// in a goroutine of the connection's own, at most one each, and a connection counts against the limits until
// its last descriptor is closed. The kernel, too, drops what exceeded the limit inside recvmsg, and what was
// still queued inside the connection's close, and both can block: only that connection's goroutine again. In
// all, a connection can hold up two threads, and [Server.MaxConnections] and [Server.Admit] bound the sum.
package varlink
