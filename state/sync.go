package state

import "meshnet/crdt"

// Digest is equal on two documents exactly when their merged state is.
func (d *Doc) Digest() [16]byte { panic("todo") }

// Buckets hashes the heads of all nodes in 32 buckets by node id, and the shared records: what to
// compare when digests differ.
func (d *Doc) Buckets() (nodes [32]uint64, shared uint64) { panic("todo") }

// Heads returns how far the maps of one bucket are known, in the order of node ids.
func (d *Doc) Heads(bucket int) []crdt.Head { panic("todo") }

// Gaps returns the heads of the nodes of which ops are known beyond a gap.
func (d *Doc) Gaps() []crdt.Head { panic("todo") }

// Missing returns what a holder of these heads lacks, at most about limit bytes encoded, and
// whether there is more.
func (d *Doc) Missing(heads []crdt.Head, limit int) (out Out, more bool) { panic("todo") }

// Shared returns all shared records as one delta.
func (d *Doc) Shared() crdt.Delta { panic("todo") }

// Encode cuts what is to be told into messages of at most limit bytes each, an op that is larger
// alone in its own. Shared deltas are split likewise.
func Encode(o Out, limit int) [][]byte { panic("todo") }

// Decode is the inverse of [Encode] for one message. It copies what it keeps.
func Decode(b []byte) (In, error) { panic("todo") }

// Restore takes in what this node's log held, own ops included; for use before the first Apply.
func (d *Doc) Restore(in In) { panic("todo") }

// Renew begins a new epoch: the own map is written again whole, by a new actor.
func (d *Doc) Renew(epoch crdt.Epoch, actor crdt.Actor) Out { panic("todo") }
