package state

import (
	"net/netip"
	"time"

	"meshnet/crdt"
)

// SilenceMax is how old what a node holds of others may be when it speaks to them. By then the others
// may have dropped what they knew of nodes that left or were given up, and must not hear it again (the
// rule of Akka's Distributed Data for a replica that was away).
const SilenceMax = 30 * 24 * time.Hour

// Doc is the merged state of the mesh as one node holds it. One goroutine owns it.
type Doc struct {
	self   NodeID
	owned  *crdt.Owned
	shared *crdt.Shared
	model  model
	last   *View
	hashed [2][16]byte // what digest is a hash of
	digest [16]byte
}

// NewDoc returns an empty document that self writes to, in epoch, with actor for shared records.
func NewDoc(self crdt.Node, epoch crdt.Epoch, actor crdt.Actor) *Doc {
	d := &Doc{self: self, model: newModel()}
	d.owned = crdt.NewOwned(self, epoch, d.onOwned)
	d.shared = crdt.NewShared(actor, d.onShared)
	return d
}

// Merge takes in what another node said and returns what of it was news, which keeps the slices of
// in. It cannot fail. Writes of this node that it does not have are not taken in: see [Doc.Doubt].
func (d *Doc) Merge(in In) Out { return d.take(in, d.owned.Merge, d.owned.Patch) }

// Restore takes in what this node's log held, own ops included; for use before the first Apply.
func (d *Doc) Restore(in In) { d.take(in, d.owned.Restore, d.owned.RestorePatch) }

func (d *Doc) take(in In, merge func([]crdt.Op) []crdt.Op, patch func(crdt.Patch) ([]crdt.Op, bool)) Out {
	var out Out
	for _, delta := range in.Shared {
		if news := d.shared.Merge(delta); !news.Empty() {
			out.Shared = append(out.Shared, news)
		}
	}
	out.Ops = merge(in.Ops)
	for _, p := range in.Patches {
		ops, more := patch(p)
		out.Ops = append(out.Ops, ops...)
		if more {
			out.Patches = append(out.Patches, p.Apart())
		}
	}
	return out
}

// Meet comes before this node speaks to others. silent is for how long it has heard of nobody: from
// [SilenceMax] on what it holds of other nodes is dropped, and it reports whether there was any. Its own
// records, shared ones and who was given up stay.
func (d *Doc) Meet(silent time.Duration) bool { return silent >= SilenceMax && d.Alone() }

// Alone drops what is held of other nodes' maps, and reports whether there was any.
func (d *Doc) Alone() bool { return d.owned.Alone() }

// Yields reports whether, of two living hosts with one identity, the one at own makes no changes: the one
// with the larger address.
func Yields(own, other netip.AddrPort) bool { return other.Compare(own) < 0 }

// Renew begins a later epoch: the own map is written again whole, by a new actor. The epoch must be
// higher than those of [Doc.Epoch] and [Doc.Doubt].
func (d *Doc) Renew(epoch crdt.Epoch, actor crdt.Actor) Out {
	d.shared.Renew(actor)
	return Out{Ops: d.owned.Renew(epoch)}
}

// Doubt returns the highest epoch of own ops that others hold and this node does not: it was rolled
// back or copied, and has to Renew with a later epoch before it writes.
func (d *Doc) Doubt() (crdt.Epoch, bool) { return d.owned.Doubt() }

// Epoch returns the epoch in which this node writes.
func (d *Doc) Epoch() crdt.Epoch { return d.owned.Epoch() }

// Ignored counts what was not taken in or not read: ops that came too late, records of no known form.
func (d *Doc) Ignored() uint64 { return d.owned.Ignored() + d.model.unread }
