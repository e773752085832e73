package state

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// View returns the state as of now. Where nothing changed it is the view before.
func (d *Doc) View() *View {
	digest := d.Digest()
	if d.last != nil && d.last.digest == digest {
		return d.last
	}
	v := &View{version: 1, digest: digest, endpoints: new([shards]shard)}
	if d.last != nil {
		*v = *d.last
		v.version, v.digest = v.version+1, digest
	}
	m := &d.model
	if m.dirtyNodes {
		v.nodes = make([]*Node, 0, len(m.nodes))
		for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
			v.nodes = append(v.nodes, m.nodes[id])
		}
	}
	if m.dirtyForgotten {
		v.forgotten = maps.Clone(m.forgotten)
	}
	m.index(v)
	if m.dirtySet {
		m.rebuildAll(v)
	} else {
		m.rebuildDirty(v)
	}
	v.list()
	m.dirtyNodes, m.dirtyForgotten, m.dirtySet = false, false, false
	clear(m.dirtyNets)
	clear(m.dirtyEndpoints)
	d.last = v
	return v
}

// index brings the index of endpoints up to date, copying the shards that change.
func (m *model) index(v *View) {
	if len(m.dirtyEndpoints) == 0 {
		return
	}
	byShard := make(map[EndpointID]map[endpointAt]*Endpoint)
	for at, e := range m.dirtyEndpoints {
		i := at.id % shards
		if byShard[i] == nil {
			byShard[i] = make(map[endpointAt]*Endpoint)
		}
		byShard[i][at] = e
	}
	index := *v.endpoints
	for i, changed := range byShard {
		index[i] = patch(index[i], changed, endpointKeyOf, func(a, b *Endpoint) int {
			return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.At, b.At), cmp.Compare(a.Node, b.Node))
		})
	}
	v.endpoints = &index
}

func endpointKeyOf(e *Endpoint) endpointAt { return endpointAt{e.ID, e.Node} }

// patch returns a sorted copy of a sorted list with the changed elements replaced; nil is gone.
func patch[K comparable, T any](list []*T, changed map[K]*T, key func(*T) K, compare func(a, b *T) int) []*T {
	fresh := make([]*T, 0, len(changed))
	for _, e := range changed {
		if e != nil {
			fresh = append(fresh, e)
		}
	}
	slices.SortFunc(fresh, compare)
	out := make([]*T, 0, len(list)+len(fresh))
	for _, e := range list {
		if _, gone := changed[key(e)]; gone {
			continue
		}
		for len(fresh) > 0 && compare(fresh[0], e) < 0 {
			out = append(out, fresh[0])
			fresh = fresh[1:]
		}
		out = append(out, e)
	}
	return append(out, fresh...)
}

// rebuildAll settles names and VNIs and builds the networks that are new or differ.
func (m *model) rebuildAll(v *View) {
	nets, conflicts := m.settle()
	v.settled = conflicts
	v.ids = make([]*Network, 0, len(nets))
	live := make(map[NetworkID]bool, len(nets))
	for _, s := range nets {
		n := s.net
		was := n.built
		live[n.id] = true
		if was == nil || n.dirty() || was.Name != s.name || was.VNI != s.vni || was.Removed != s.removed {
			n.build(s)
		}
		v.ids = append(v.ids, n.built)
	}
	v.networks = slices.Clone(v.ids)
	slices.SortFunc(v.networks, func(a, b *Network) int { return strings.Compare(a.Name, b.Name) })
	for id, n := range m.dirtyNets {
		if live[id] {
			continue
		}
		n.park()
		if n.void() {
			delete(m.nets, id)
		}
	}
}

// rebuildDirty builds networks of which only endpoints, blocks or kills changed.
func (m *model) rebuildDirty(v *View) {
	if len(m.dirtyNets) == 0 {
		return
	}
	v.ids, v.networks = slices.Clone(v.ids), slices.Clone(v.networks)
	for id, n := range m.dirtyNets {
		was := n.built
		if was == nil {
			n.park()
			if n.void() {
				delete(m.nets, id)
			}
			continue
		}
		n.build(&settled{net: n, record: was.Created, removed: was.Removed, name: was.Name, vni: was.VNI})
		i, _ := slices.BinarySearchFunc(v.ids, id, func(n *Network, id NetworkID) int { return cmp.Compare(n.ID, id) })
		v.ids[i] = n.built
		i, _ = slices.BinarySearchFunc(v.networks, was.Name, func(n *Network, name string) int {
			return strings.Compare(n.Name, name)
		})
		v.networks[i] = n.built
	}
}

// dirty reports whether anything was said of the network since it was built.
func (n *netModel) dirty() bool { return n.changed || len(n.claims) > 0 || len(n.blocks) > 0 }

// park keeps what is said of a network that is not shown for when it will be.
func (n *netModel) park() {
	if n.built != nil {
		for _, e := range n.built.claims {
			if _, changed := n.claims[endpointKeyOf(e)]; !changed {
				n.claims[endpointKeyOf(e)] = e
			}
		}
		n.blocks = maps.Clone(n.allBlocks)
		n.built = nil
	}
	maps.DeleteFunc(n.claims, func(_ endpointAt, e *Endpoint) bool { return e == nil })
	maps.DeleteFunc(n.blocks, func(_ blockAt, k *Block) bool { return k == nil })
}

// build makes the network that views show from the one before and what changed.
func (n *netModel) build(s *settled) {
	was := n.built
	if was == nil {
		was = &Network{}
	}
	net := &Network{
		ID: n.id, Name: s.name, VNI: s.vni, Removed: s.removed, Created: s.record, Def: s.record.Def,
		claims: was.claims, blocks: was.blocks, roots: was.roots, lengths: was.lengths,
		members: was.members, killed: n.killed(),
	}
	if len(n.blocks) > 0 {
		net.blocks = patch(was.blocks, n.blocks, func(k *Block) blockAt {
			return blockAt{k.Prefix, k.Node}
		}, func(a, b *Block) int {
			return cmp.Or(comparePrefixes(a.Prefix, b.Prefix), cmp.Compare(a.Node, b.Node))
		})
		net.lengths, net.roots = survey(net.blocks)
	}
	if len(n.claims) > 0 {
		net.claims = patch(was.claims, n.claims, endpointKeyOf, func(a, b *Endpoint) int {
			return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node))
		})
	}
	if n.joined || n.built == nil {
		net.members = slices.Sorted(maps.Keys(n.members))
	}
	net.settle()
	clear(n.claims)
	clear(n.blocks)
	n.joined, n.changed = false, false
	n.built = net
}

// settle decides which endpoints are shown: of those with one address its owner's, else the lowest
// (time, node, id); none with an address that the network does not have.
func (n *Network) settle() {
	clean := true
	for i, e := range n.claims {
		if !n.fits(e) || i > 0 && n.claims[i-1].Addr == e.Addr {
			clean = false
			break
		}
	}
	if clean {
		n.shown = n.claims
		return
	}
	n.shown = nil
	for i := 0; i < len(n.claims); {
		j := i + 1
		for j < len(n.claims) && n.claims[j].Addr == n.claims[i].Addr {
			j++
		}
		group := n.claims[i:j]
		i = j
		var best *Endpoint
		if n.fits(group[0]) {
			owner, _ := n.Owner(group[0].Addr)
			best = slices.MinFunc(group, func(a, b *Endpoint) int {
				return cmp.Or(compareBool(a.Node != owner, b.Node != owner),
					cmp.Compare(a.At, b.At), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
			})
			n.shown = append(n.shown, best)
		}
		for _, e := range group {
			if e != best {
				n.unshown = append(n.unshown, loser{e, best})
			}
		}
	}
}

// fits reports whether the network has an endpoint's address.
func (n *Network) fits(e *Endpoint) bool { return n.Def.host(e.Addr) && e.Addr != n.Def.Gateway }

// survey returns the lengths of the blocks' prefixes and the roots, the highest first. A root is
// sealed when its creator says so and when another node holds a record of it.
func survey(blocks []*Block) (lengths []int, roots []ranked) {
	sealed := make(map[Root]bool)
	var has [129]bool
	for _, k := range blocks {
		has[k.Prefix.Bits()] = true
		sealed[k.Root] = sealed[k.Root] || k.Sealed || k.Node != k.Root.Creator
	}
	for bits, ok := range has {
		if ok {
			lengths = append(lengths, bits)
		}
	}
	for r, s := range sealed {
		roots = append(roots, ranked{r, s})
	}
	slices.SortFunc(roots, func(a, b ranked) int {
		return cmp.Or(compareBool(!a.sealed, !b.sealed), cmp.Compare(a.At, b.At), cmp.Compare(a.Creator, b.Creator))
	})
	return lengths, roots
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// list gathers the conflicts of all networks.
func (v *View) list() {
	v.conflicts = v.settled[:len(v.settled):len(v.settled)]
	for _, n := range v.ids {
		for _, l := range n.unshown {
			c := Conflict{Kind: ConflictAddress, What: l.lost.Addr.String(), Network: n.ID, Lost: v.describe(l.lost)}
			if l.kept != nil {
				c.Kept = v.describe(l.kept)
			}
			v.conflicts = append(v.conflicts, c)
		}
	}
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
