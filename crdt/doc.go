// Package crdt holds the two lattices whose merge makes the documents of all nodes equal.
//
// [Owned] is one map a node, written by that node alone: each write is an op with a number, a node's
// state is the set of ops known of it, and how far they are known without a gap is one number, so
// that two replicas compare in a few bytes and send each other only their difference. A removal is an
// op like any other and leaves nothing behind. [Shared] is one map that every node writes: an
// add-wins observed-remove map with dots and a version vector (Bieniusa et al., An optimized
// conflict-free replicated set, 2012; Preguiça et al., Dotted version vectors, 2010).
//
// Merging is commutative, associative and idempotent, cannot fail, and returns what was news: nothing
// exactly when nothing changed.
//
// The package knows nothing of networks and does not look into keys and values. It does no I/O and
// has no clock. Owned and Shared belong to one goroutine each; ops, entries, deltas and patches are
// immutable and may be shared by any number of them, slices included.
package crdt
