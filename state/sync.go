package state

import "meshnet/crdt"

// Digest is equal on two documents exactly when their merged state is.
func (d *Doc) Digest() [16]byte { panic("todo") }

// Buckets hashes the heads of all nodes in 32 buckets by node id, and the shared records: what to
// compare when digests differ.
func (d *Doc) Buckets() (nodes [32]uint64, shared uint64) { panic("todo") }

// Heads returns how far the maps of one bucket (0 to 31) are known, in the order of (node, epoch). A
// node whose new epoch is not complete yet has a head for each.
func (d *Doc) Heads(bucket int) []crdt.Head { panic("todo") }

// Gaps returns the heads of the nodes of which ops are known beyond a gap.
func (d *Doc) Gaps() []crdt.Head { panic("todo") }

// Missing returns what a holder of these heads lacks of the nodes that they name, as patches of at
// most about limit bytes encoded, and whether there is more. At least one node's patch is returned
// whole, so asking again with the new heads ends. A node that the asker does not know is named by a
// head whose Epoch and Seq are zero: who answers for a bucket adds those of [Doc.Heads] that the
// asker did not name.
func (d *Doc) Missing(heads []crdt.Head, limit int) (out Out, more bool) { panic("todo") }

// Shared returns all shared records as one delta.
func (d *Doc) Shared() crdt.Delta { panic("todo") }

// Encode cuts what is to be told into messages of at most limit bytes each, an op that is larger
// alone in its own. Shared deltas and patches are split likewise, so that each message alone does no
// harm when others are lost.
func Encode(o Out, limit int) [][]byte { panic("todo") }

// Decode is the inverse of [Encode] for one message. It copies what it keeps.
func Decode(b []byte) (In, error) { panic("todo") }

// Restore takes in what this node's log held, own ops included; for use before the first Apply.
func (d *Doc) Restore(in In) { panic("todo") }

// Renew begins a new epoch: the own map is written again whole, by a new actor.
func (d *Doc) Renew(epoch crdt.Epoch, actor crdt.Actor) Out { panic("todo") }

// Doubt returns the highest epoch of own ops that others hold and this node does not: it was rolled
// back or copied, and has to Renew with a later epoch before it writes.
func (d *Doc) Doubt() (crdt.Epoch, bool) { panic("todo") }

// Epoch returns the epoch in which this node writes.
func (d *Doc) Epoch() crdt.Epoch { panic("todo") }
