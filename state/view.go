package state

import (
	"iter"
	"net/netip"

	"meshnet/crdt"
)

// View is what the merged state means: names, VNIs and addresses settled by rules that every node
// computes alike. It is immutable and may be read from any goroutine. A network that did not change
// since the view before is the same pointer.
type View struct {
	version   uint64
	digest    [16]byte
	nodes     []*Node    // by id
	networks  []*Network // by shown name
	byID      map[NetworkID]*Network
	byName    map[string]*Network
	index     *index
	conflicts []Conflict
	forgotten map[NodeID]crdt.Epoch
}

type index struct{}

// Network is one network as every node sees it. Immutable.
type Network struct {
	ID   NetworkID
	Name string // as shown: Def.Name, or Def.Name~id4 where another network has the name
	Def  Definition
	VNI  uint32
	// Created is the record it stems from.
	Created Created
	// Removed: its definition is gone and it lives only while it has members.
	Removed bool

	claims  []*Endpoint // by (address, id, node)
	shown   []*Endpoint // by address
	members []NodeID    // ascending
	blocks  []*Block    // by (prefix, node)
}

// ConflictKind tells what was claimed twice.
type ConflictKind uint8

const (
	// ConflictName: two networks, one name.
	ConflictName ConflictKind = iota
	// ConflictVNI: two networks, one VNI.
	ConflictVNI
	// ConflictAddress: two endpoints, one address.
	ConflictAddress
)

// Conflict is something that two sides both claimed and how every view settles it.
type Conflict struct {
	Kind    ConflictKind
	What    string // the name, VNI or address
	Network NetworkID
	Kept    string // who shows it
	Lost    string // who does not, and under what it goes on
}

// Version counts the views of one document; a later view has a higher one.
func (v *View) Version() uint64 { panic("todo") }

// Digest is equal on two nodes exactly when their merged state is.
func (v *View) Digest() [16]byte { panic("todo") }

// Node returns a node's record. Forgotten nodes have none.
func (v *View) Node(id NodeID) (*Node, bool) { panic("todo") }

// Nodes returns all nodes in the order of their ids. The slice is the view's.
func (v *View) Nodes() []*Node { panic("todo") }

// Network returns a network by id.
func (v *View) Network(id NetworkID) (*Network, bool) { panic("todo") }

// ByName returns the network shown under a name.
func (v *View) ByName(name string) (*Network, bool) { panic("todo") }

// Networks returns all networks in the order of their shown names. The slice is the view's.
func (v *View) Networks() []*Network { panic("todo") }

// Endpoint returns an endpoint by id, reachable or not.
func (v *View) Endpoint(id EndpointID) (*Endpoint, bool) { panic("todo") }

// Conflicts lists what was settled against somebody, in a fixed order. The slice is the view's.
func (v *View) Conflicts() []Conflict { panic("todo") }

// Endpoints yields the endpoints that are reachable, one an address, in the order of addresses.
func (n *Network) Endpoints() iter.Seq[*Endpoint] { panic("todo") }

// Claims yields all endpoints, also those whose address another one shows, in the order of
// (address, id).
func (n *Network) Claims() iter.Seq[*Endpoint] { panic("todo") }

// Len is how many endpoints are reachable.
func (n *Network) Len() int { panic("todo") }

// At returns the reachable endpoint with an address.
func (n *Network) At(a netip.Addr) (*Endpoint, bool) { panic("todo") }

// Members returns the nodes with an endpoint here, in the order of their ids. The slice is the
// network's.
func (n *Network) Members() []NodeID { panic("todo") }

// HasMember reports whether a node has an endpoint here.
func (n *Network) HasMember(id NodeID) bool { panic("todo") }

// Blocks returns the block records of all nodes, in the order of (prefix, node). The slice is the
// network's.
func (n *Network) Blocks() []*Block { panic("todo") }

// Winner returns the root that counts: sealed roots come first, then the lowest (At, Creator). None
// is known of a network without block records.
func (n *Network) Winner() (Root, bool) { panic("todo") }

// Sealed reports whether a node other than its creator has taken from a root.
func (n *Network) Sealed(r Root) bool { panic("todo") }

// Top returns the record that counts for an address: of the highest root, then of the highest
// version, then own before offer.
func (n *Network) Top(a netip.Addr) (*Block, bool) { panic("todo") }

// Owner returns the node that owns an address: the writer of [Network.Top] where that is an Own.
// While a range is handed over nobody does.
func (n *Network) Owner(a netip.Addr) (NodeID, bool) { panic("todo") }

// Killed reports whether a person removed the network by force and saw this node's present use of
// it: the node then detaches its endpoints there.
func (v *View) Killed(net NetworkID, node NodeID) bool { panic("todo") }

// Forgotten returns the epoch up to which a node was given up for good. A record of a later epoch
// counts again.
func (v *View) Forgotten(id NodeID) (crdt.Epoch, bool) { panic("todo") }
