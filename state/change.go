package state

import (
	"bytes"
	"net/netip"
	"slices"

	"meshnet/crdt"
)

// Change is one edit of the document by this node. Each carries all that the core cannot know: time
// and chance are in its fields.
type Change interface{ change() }

// CreateNetwork adds a network. The id and the VNI are computed; Def.Life is set by the document.
type CreateNetwork struct {
	Def   Definition
	At    int64 // seconds since 1970
	Force bool  // allow a subnet that overlaps another network's
}

// RemoveNetwork removes a network's definition. Refused with [ErrNetworkInUse] while users are known,
// unless Force, which asks the users it sees to detach.
type RemoveNetwork struct {
	ID    NetworkID
	Force bool
}

// PutNode writes this node's own record.
type PutNode struct{ Node Node }

// PutEndpoint writes an endpoint of this node, and the Use that goes with the first on a network.
type PutEndpoint struct {
	Endpoint Endpoint
	// Kept: the container had the address before and keeps it; who else shows it is settled when
	// read.
	Kept bool
}

// RemoveEndpoint removes an endpoint of this node, and the Use with the last on a network.
type RemoveEndpoint struct{ ID EndpointID }

// PutBlock writes a block record of this node.
type PutBlock struct{ Block Block }

// RemoveBlock removes a block record of this node.
type RemoveBlock struct {
	Network NetworkID
	Prefix  netip.Prefix
}

// Forget gives up a dead node up to an epoch. Heir, if it is set, takes over what no other node is
// left to inherit.
type Forget struct {
	Node  NodeID
	Epoch crdt.Epoch
	Heir  NodeID
}

// Leave gives up this node itself. Nothing is written afterwards but in a new epoch.
type Leave struct{}

func (CreateNetwork) change()  {}
func (RemoveNetwork) change()  {}
func (PutNode) change()        {}
func (PutEndpoint) change()    {}
func (RemoveEndpoint) change() {}
func (PutBlock) change()       {}
func (RemoveBlock) change()    {}
func (Forget) change()         {}
func (Leave) change()          {}

// Out is what a change or a merge made known: what to log and what to tell others. Its contents are
// immutable.
type Out struct {
	Ops     []crdt.Op
	Patches []crdt.Patch // answers to a pull; as news, without ops, where they did more than their ops
	Shared  []crdt.Delta
}

// Empty reports whether nothing was news.
func (o Out) Empty() bool { return len(o.Ops) == 0 && len(o.Patches) == 0 && len(o.Shared) == 0 }

// OfEndpoints reports whether all of it is single records of endpoints.
func (o Out) OfEndpoints() bool {
	return len(o.Patches)+len(o.Shared) == 0 &&
		!slices.ContainsFunc(o.Ops, func(op crdt.Op) bool { return !bytes.HasPrefix(op.Key, []byte(keyEndpoint)) })
}

// In is what another node said.
type In = Out
