package state

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"meshnet/crdt"
)

// View is what the merged state means: names, VNIs and addresses settled by rules that every node
// computes alike. It is immutable and may be read from any goroutine. A network that did not change
// since the view before is the same pointer.
type View struct {
	version   uint64
	digest    [16]byte
	nodes     []*Node        // by id
	networks  []*Network     // by shown name
	ids       []*Network     // by id
	endpoints list[Endpoint] // by (id, time, node)
	settled   []Conflict     // names and VNIs
	forgotten map[NodeID]crdt.Epoch
	heirs     map[NodeID]NodeID
}

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

	claims  list[Endpoint] // by (address, id, node)
	shown   list[Endpoint] // likewise, one an address
	unshown []loser        // in the order of claims
	members []NodeID       // ascending
	blocks  []*Block       // by (prefix, node)
	lengths []int          // of the prefixes of blocks, ascending
	roots   []ranked       // the highest first
	killed  []NodeID       // ascending
}

// loser is an endpoint that is not shown and, where another has its address, that one.
type loser struct{ lost, kept *Endpoint }

// ranked is a root and whether it is sealed.
type ranked struct {
	Root
	sealed bool
}

// ConflictKind tells what was claimed twice.
type ConflictKind uint8

const (
	// ConflictName: two networks, one name.
	ConflictName ConflictKind = iota
	// ConflictVNI: two networks, one VNI.
	ConflictVNI
	// ConflictAddress: two endpoints, one address, or an endpoint with an address that its network
	// does not have.
	ConflictAddress
)

// String returns name, vni or address.
func (k ConflictKind) String() string {
	switch k {
	case ConflictName:
		return "name"
	case ConflictVNI:
		return "vni"
	}
	return "address"
}

// Conflict is something that two sides both claimed and how every view settles it.
type Conflict struct {
	Kind    ConflictKind
	What    string // the name, VNI or address
	Network NetworkID
	Kept    string // who shows it; empty: nobody
	Lost    string // who does not, and under what it goes on
}

// Version counts the views of one document; a later view has a higher one.
func (v *View) Version() uint64 { return v.version }

// Digest is equal on two nodes exactly when their merged state is.
func (v *View) Digest() [16]byte { return v.digest }

// Node returns a node's record. Forgotten nodes have none.
func (v *View) Node(id NodeID) (*Node, bool) {
	i, found := slices.BinarySearchFunc(v.nodes, id, func(n *Node, id NodeID) int { return cmp.Compare(n.ID, id) })
	if !found {
		return nil, false
	}
	return v.nodes[i], true
}

// Nodes returns all nodes in the order of their ids. The slice is the view's.
func (v *View) Nodes() []*Node { return v.nodes }

// Network returns a network by id.
func (v *View) Network(id NetworkID) (*Network, bool) {
	i, found := slices.BinarySearchFunc(v.ids, id, func(n *Network, id NetworkID) int { return cmp.Compare(n.ID, id) })
	if !found {
		return nil, false
	}
	return v.ids[i], true
}

// ByName returns the network shown under a name.
func (v *View) ByName(name string) (*Network, bool) {
	i, found := slices.BinarySearchFunc(v.networks, name, func(n *Network, name string) int {
		return strings.Compare(n.Name, name)
	})
	if !found {
		return nil, false
	}
	return v.networks[i], true
}

// Networks returns all networks in the order of their shown names. The slice is the view's.
func (v *View) Networks() []*Network { return v.networks }

// Endpoint returns an endpoint by id, reachable or not.
func (v *View) Endpoint(id EndpointID) (*Endpoint, bool) {
	e, ok := v.endpoints.first(func(e *Endpoint) int { return cmp.Compare(e.ID, id) })
	if !ok || e.ID != id {
		return nil, false
	}
	return e, true
}

// Conflicts lists what was settled against somebody, in a fixed order. The slice is the caller's.
func (v *View) Conflicts() []Conflict {
	all := slices.Clone(v.settled)
	for _, n := range v.ids {
		for _, l := range n.unshown {
			c := Conflict{Kind: ConflictAddress, What: l.lost.Addr.String(), Network: n.ID, Lost: v.describe(l.lost)}
			if l.kept != nil {
				c.Kept = v.describe(l.kept)
			}
			all = append(all, c)
		}
	}
	return all
}

// Killed reports whether a person removed the network by force and saw this node's present use of
// it: the node then detaches its endpoints there.
func (v *View) Killed(net NetworkID, node NodeID) bool {
	n, ok := v.Network(net)
	if !ok {
		return false
	}
	_, found := slices.BinarySearch(n.killed, node)
	return found
}

// Forgotten returns the epoch up to which a node was given up for good. A record of a later epoch
// counts again.
func (v *View) Forgotten(id NodeID) (crdt.Epoch, bool) {
	e, ok := v.forgotten[id]
	return e, ok
}

// Losses yields the nodes that were given up, in the order of their ids, each with the epoch up to
// which and the node that a person named to inherit what nobody else is left to; 0: none.
func (v *View) Losses() iter.Seq[Forget] {
	return func(yield func(Forget) bool) {
		for _, id := range slices.Sorted(maps.Keys(v.forgotten)) {
			if !yield(Forget{Node: id, Epoch: v.forgotten[id], Heir: v.heirs[id]}) {
				return
			}
		}
	}
}

// Endpoints yields the endpoints that are reachable, one an address, in the order of addresses.
func (n *Network) Endpoints() iter.Seq[*Endpoint] { return n.shown.all() }

// Changes yields how the endpoints that are reachable differ from those of the same network in another
// view: (nil, is) for one that came, (was, nil) for one that went, (was, is) for one that is not the
// same. In the order of addresses. It costs what changed between the two.
func (n *Network) Changes(since *Network) iter.Seq2[*Endpoint, *Endpoint] {
	return differ(since.shown, n.shown, byAddress)
}

// Since returns the reachable endpoints that two versions of a network do not share, each in the order
// of addresses. It costs what changed and n/256.
func (n *Network) Since(old *Network) (gone, came []*Endpoint) {
	return n.shown.since(old.shown, func(a, b *Endpoint) int { return a.Addr.Compare(b.Addr) })
}

// Claims yields all endpoints, also those whose address another one shows, in the order of
// (address, id).
func (n *Network) Claims() iter.Seq[*Endpoint] { return n.claims.all() }

// Unshown yields the endpoints that are not reachable, each with the one that shows its address; nil
// where the network does not have that address.
func (n *Network) Unshown() iter.Seq2[*Endpoint, *Endpoint] {
	return func(yield func(lost, kept *Endpoint) bool) {
		for _, l := range n.unshown {
			if !yield(l.lost, l.kept) {
				return
			}
		}
	}
}

// Len is how many endpoints are reachable.
func (n *Network) Len() int { return n.shown.n }

// At returns the reachable endpoint with an address.
func (n *Network) At(a netip.Addr) (*Endpoint, bool) {
	e, ok := n.shown.first(func(e *Endpoint) int { return e.Addr.Compare(a) })
	if !ok || e.Addr != a {
		return nil, false
	}
	return e, true
}

// Members returns the nodes with an endpoint here, in the order of their ids. The slice is the
// network's.
func (n *Network) Members() []NodeID { return n.members }

// HasMember reports whether a node has an endpoint here.
func (n *Network) HasMember(id NodeID) bool {
	_, found := slices.BinarySearch(n.members, id)
	return found
}

// Blocks returns the block records of all nodes, in the order of (prefix, node). The slice is the
// network's.
func (n *Network) Blocks() []*Block { return n.blocks }

// Winner returns the root that counts: sealed roots come first, then the lowest (At, Creator). None
// is known of a network without block records.
func (n *Network) Winner() (Root, bool) {
	if len(n.roots) == 0 {
		return Root{}, false
	}
	return n.roots[0].Root, true
}

// Sealed reports whether a node other than its creator has taken from a root.
func (n *Network) Sealed(r Root) bool { return slices.Contains(n.roots, ranked{r, true}) }

// Top returns the record that counts for an address: of the highest root, then of the highest
// version, then own before offer, then of the lowest node.
func (n *Network) Top(a netip.Addr) (*Block, bool) {
	var top *Block
	for _, bits := range n.lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		i, _ := slices.BinarySearchFunc(n.blocks, p, func(k *Block, p netip.Prefix) int { return comparePrefixes(k.Prefix, p) })
		for ; i < len(n.blocks) && n.blocks[i].Prefix == p; i++ {
			if k := n.blocks[i]; top == nil || n.outranks(k, top) {
				top = k
			}
		}
	}
	return top, top != nil
}

func (n *Network) outranks(a, b *Block) bool {
	return cmp.Or(cmp.Compare(n.rank(a.Root), n.rank(b.Root)), -cmp.Compare(a.Ver, b.Ver),
		cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node)) < 0
}

// rank is zero for the highest root.
func (n *Network) rank(r Root) int {
	return slices.IndexFunc(n.roots, func(x ranked) bool { return x.Root == r })
}

// Owner returns the node that owns an address: the writer of [Network.Top] where that is an Own.
// While a range is handed over nobody does.
func (n *Network) Owner(a netip.Addr) (NodeID, bool) {
	if k, ok := n.Top(a); ok && k.Kind == Own {
		return k.Node, true
	}
	return 0, false
}

// Users lists the containers on the network as "c1 on host1", at most limit of them, in the order of
// their addresses.
func (v *View) Users(n *Network, limit int) (users []string) {
	for e := range n.claims.all() {
		if len(users) == limit {
			break
		}
		users = append(users, v.describe(e))
	}
	return users
}

// describe names an endpoint for people.
func (v *View) describe(e *Endpoint) string {
	host := e.Node.String()
	if n, ok := v.Node(e.Node); ok {
		host = n.Name
	}
	return e.Container + " on " + host
}
