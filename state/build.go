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
	v := &View{version: 1, digest: digest}
	if d.last != nil {
		*v = *d.last
		v.version, v.digest = v.version+1, digest
	}
	m := &d.model
	if len(m.dirtyNodes) > 0 {
		out, in := sides(m.dirtyNodes, func(a, b *Node) int { return cmp.Compare(a.ID, b.ID) })
		v.nodes = merge(v.nodes, out, in, func(a, b *Node) int { return cmp.Compare(a.ID, b.ID) })
	}
	if m.dirtyForgotten {
		v.forgotten, v.heirs = maps.Clone(m.forgotten), maps.Clone(m.heirs)
	}
	out, in := sides(m.dirtyEndpoints, byID)
	v.endpoints = v.endpoints.edit(out, in, byID)
	if m.dirtySet {
		m.rebuildAll(v)
	} else {
		m.rebuildDirty(v)
	}
	m.dirtyForgotten, m.dirtySet = false, false
	m.dirtyNodes = emptied(m.dirtyNodes)
	m.dirtyNets = emptied(m.dirtyNets)
	m.dirtyEndpoints = emptied(m.dirtyEndpoints)
	d.last = v
	return v
}

func byID(a, b *Endpoint) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.At, b.At), cmp.Compare(a.Node, b.Node))
}

func byAddress(a, b *Endpoint) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node))
}

func byPrefix(a, b *Block) int {
	return cmp.Or(comparePrefixes(a.Prefix, b.Prefix), cmp.Compare(a.Node, b.Node))
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
		for e := range n.built.claims.all() {
			at := endpointAt{e.ID, e.Node}
			if _, changed := n.claims[at]; !changed {
				n.claims[at] = change[Endpoint]{now: e}
			}
		}
		clear(n.blocks)
		for at, k := range n.allBlocks {
			n.blocks[at] = change[Block]{now: k}
		}
		n.built = nil
	}
	for at, c := range n.claims {
		if n.claims[at] = (change[Endpoint]{now: c.now}); c.now == nil {
			delete(n.claims, at)
		}
	}
	for at, c := range n.blocks {
		if n.blocks[at] = (change[Block]{now: c.now}); c.now == nil {
			delete(n.blocks, at)
		}
	}
}

// build makes the network that views show from the one before and what changed.
func (n *netModel) build(s *settled) {
	was := n.built
	if was == nil {
		was = &Network{}
	}
	net := &Network{
		ID: n.id, Name: s.name, VNI: s.vni, Removed: s.removed, Created: s.record, Def: s.record.Def,
		claims: was.claims, shown: was.shown, unshown: was.unshown,
		blocks: was.blocks, roots: was.roots, lengths: was.lengths, members: was.members, killed: n.killed(),
	}
	if len(n.blocks) > 0 {
		out, in := sides(n.blocks, byPrefix)
		net.blocks = merge(was.blocks, out, in, byPrefix)
		net.lengths, net.roots = n.survey()
	}
	out, in := sides(n.claims, byAddress)
	net.claims = was.claims.edit(out, in, byAddress)
	if n.joined || n.built == nil {
		net.members = slices.Sorted(maps.Keys(n.members))
	}
	touched := make(map[netip.Addr]bool, len(out)+len(in))
	switch {
	case n.built == nil || was.Def.Subnet != net.Def.Subnet || was.Def.Gateway != net.Def.Gateway:
		net.shown, net.unshown = list[Endpoint]{}, nil
		for e := range net.claims.all() {
			touched[e.Addr] = true
		}
	default:
		for _, e := range out {
			touched[e.Addr] = true
		}
		for _, e := range in {
			touched[e.Addr] = true
		}
		if len(n.blocks) > 0 { // another may own an address now that several claim
			for _, l := range was.unshown {
				touched[l.lost.Addr] = true
			}
		}
	}
	net.settle(touched)
	n.claims = emptied(n.claims)
	n.blocks = emptied(n.blocks)
	n.joined, n.changed = false, false
	n.built = net
}

// settle decides anew, at these addresses, which endpoints are shown: of those with one address its
// owner's, else the lowest (time, node, id); none with an address that the network does not have.
func (n *Network) settle(touched map[netip.Addr]bool) {
	if len(touched) == 0 {
		return
	}
	var out, in []*Endpoint
	lost := slices.DeleteFunc(slices.Clone(n.unshown), func(l loser) bool { return touched[l.lost.Addr] })
	kept := len(lost)
	for a := range touched {
		was, shown := n.At(a)
		best, losers := n.choose(a)
		lost = append(lost, losers...)
		if shown && was == best {
			continue
		}
		if shown {
			out = append(out, was)
		}
		if best != nil {
			in = append(in, best)
		}
	}
	if len(lost) > kept {
		slices.SortFunc(lost, func(a, b loser) int { return byAddress(a.lost, b.lost) })
	}
	n.unshown = lost
	if len(lost) == 0 {
		n.shown = n.claims // the same chunks, so that they are kept once
		return
	}
	slices.SortFunc(out, byAddress)
	slices.SortFunc(in, byAddress)
	n.shown = n.shown.edit(out, in, byAddress)
}

// choose returns the endpoint that is shown with an address, nil for none, and those that are not.
func (n *Network) choose(a netip.Addr) (best *Endpoint, lost []loser) {
	var group []*Endpoint
	for e := range n.claims.from(func(e *Endpoint) int { return e.Addr.Compare(a) }) {
		if e.Addr != a {
			break
		}
		group = append(group, e)
	}
	switch {
	case len(group) == 0:
		return nil, nil
	case !n.fits(group[0]):
	case len(group) == 1:
		return group[0], nil
	default:
		owner, _ := n.Owner(a)
		best = slices.MinFunc(group, func(a, b *Endpoint) int {
			return cmp.Or(compareBool(a.Node != owner, b.Node != owner),
				cmp.Compare(a.At, b.At), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
		})
	}
	for _, e := range group {
		if e != best {
			lost = append(lost, loser{e, best})
		}
	}
	return best, lost
}

// fits reports whether the network has an endpoint's address.
func (n *Network) fits(e *Endpoint) bool { return n.Def.host(e.Addr) && e.Addr != n.Def.Gateway }

// survey returns the lengths of the blocks' prefixes and the roots, the highest first.
func (n *netModel) survey() (lengths []int, roots []ranked) {
	for bits, count := range n.lengths {
		if count > 0 {
			lengths = append(lengths, bits)
		}
	}
	for r, c := range n.roots {
		roots = append(roots, ranked{r, c.seals > 0})
	}
	slices.SortFunc(roots, func(a, b ranked) int {
		return cmp.Or(compareBool(!a.sealed, !b.sealed), cmp.Compare(a.At, b.At), cmp.Compare(a.Creator, b.Creator))
	})
	return lengths, roots
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
