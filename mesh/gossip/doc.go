// Package gossip decides what to tell which member of the mesh, and when, so that all documents
// become equal.
//
// A change of this node is pushed at once: to every member of a small mesh, down three trees that
// every member computes alike in a larger one. Who gets news by a push passes it on once. What a push
// lost is pulled: a gap in a writer's ops after 30 ms, anything else by comparing digests, first
// shortly after news and then about once a second. Equal documents cost 16 bytes a comparison, others
// their difference.
//
// The package does no I/O and has no clock: [Machine.Step] is told the time and what happened, and
// returns what to send. It does not know what the state means, who is a member, or how messages
// travel. A [Machine] belongs to one goroutine.
package gossip
