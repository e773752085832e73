package state

import (
	"crypto/sha256"
	"encoding/binary"

	"meshnet/crdt"
)

// Digest is equal on two documents exactly when their merged state is.
func (d *Doc) Digest() [16]byte {
	owned, shared := d.owned.Digest(), d.shared.Digest()
	if owned != d.hashed[0] || shared != d.hashed[1] {
		d.hashed = [2][16]byte{owned, shared}
		h := sha256.Sum256(append(owned[:], shared[:]...))
		d.digest = [16]byte(h[:16])
	}
	return d.digest
}

// Buckets hashes the heads of all nodes in 32 buckets by node id, and the shared records: what to
// compare when digests differ.
func (d *Doc) Buckets() (nodes [crdt.Buckets]uint64, shared uint64) {
	h := d.shared.Digest()
	return d.owned.Buckets(), binary.BigEndian.Uint64(h[:])
}

// Heads returns how far the maps of one bucket (0 to 31) are known, in the order of (node, epoch). A
// node whose new epoch is not complete yet has a head for each.
func (d *Doc) Heads(bucket int) []crdt.Head { return d.owned.Heads(bucket) }

// Gaps returns the heads of the nodes of which ops are known beyond a gap, or a part only of a new
// epoch.
func (d *Doc) Gaps() []crdt.Head { return d.owned.Gaps() }

// Missing returns what a holder of these heads lacks of the nodes that they name, as patches of at
// most about limit bytes encoded, and whether there is more. At least one node's patch is returned
// whole, so asking again with the new heads ends. A node that the asker does not know is named by a
// head whose Epoch and Seq are zero: who answers for a bucket adds those of [Doc.Heads] that the
// asker did not name.
func (d *Doc) Missing(heads []crdt.Head, limit int) (out Out, more bool) {
	out.Patches, more = d.owned.Missing(heads, limit)
	return out, more
}

// Shared returns all shared records as one delta.
func (d *Doc) Shared() crdt.Delta { return d.shared.Full() }
