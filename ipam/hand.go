package ipam

import (
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

const (
	// idleTime is how long a block beyond need is kept before it is given back.
	idleTime = 10 * time.Minute
	// reviewPause is how often that is looked at.
	reviewPause = time.Minute
	// claimsMax bounds for how many addresses of own containers other owners are asked at once.
	claimsMax = 16
	// claimPause is how long the owner of an address that another container has is not asked again.
	claimPause = time.Minute
	// heirsWanted is how many living heirs the record of a block names at least.
	heirsWanted = 2
)

// heirs returns who is to inherit what this node has under a root, the first last.
func (m *Machine) heirs(n *network) []state.NodeID {
	var others []state.NodeID
	for _, node := range m.view.Nodes() {
		if node.ID != m.self && !m.isLost(node.ID) {
			others = append(others, node.ID)
		}
	}
	heirs := rank(n.id, others)
	heirs = heirs[:min(len(heirs), successors)]
	slices.Reverse(heirs) // the last of a lineage inherits first
	return heirs
}

// succeed names heirs where a block has too few that were not given up: who takes the root of a network
// before others are there knows none. The owner's new record is a later version, as when it divides.
func (m *Machine) succeed(n *network) {
	if m.fenced() || m.leaving {
		return
	}
	var heirs []state.NodeID
	for _, b := range slices.Clone(n.blocks) {
		if b.State != state.Usable || !n.holds(&b) || m.living(b.Lineage) >= heirsWanted {
			continue
		}
		if heirs == nil {
			if heirs = m.heirs(n); len(heirs) == 0 {
				return
			}
		}
		fresh := slices.DeleteFunc(slices.Clone(heirs), func(id state.NodeID) bool { return slices.Contains(b.Lineage, id) })
		if m.living(fresh) == 0 {
			continue
		}
		b.Lineage = append(fresh, b.Lineage...)
		b.Lineage = b.Lineage[max(0, len(b.Lineage)-lineageMax):]
		b.Ver++
		m.put(b)
		m.out.Sync = true
	}
}

// living counts the nodes that were not given up.
func (m *Machine) living(ids []state.NodeID) (count int) {
	for _, id := range ids {
		if id != m.self && !m.isLost(id) {
			count++
		}
	}
	return count
}

// homeless reports whether an address of a container here lies in no block of this node: it was given
// out under a root that lost, or before this node was given up.
func (n *network) homeless(a netip.Addr) bool {
	return !slices.ContainsFunc(n.blocks, func(b state.Block) bool { return n.holds(&b) && b.Prefix.Contains(a) })
}

// reclaim asks the owners of the addresses that containers here have for just these. Traffic goes on
// meanwhile; where the owner has another container there, that one is shown.
func (m *Machine) reclaim(n *network) {
	m.fresh(n)
	asked := 0
	var claims map[netip.Addr]*request
	for i := range n.allocs {
		a := n.allocs[i].Addr
		if !n.known || !n.homeless(a) {
			continue
		}
		r := n.claims[a]
		if r == nil {
			r = &request{urgent: true}
		}
		if claims == nil {
			claims = map[netip.Addr]*request{}
		}
		claims[a] = r
		if asked++; asked > claimsMax {
			continue
		}
		if id, ok := m.ownerOf(n, a); ok && id != m.self && m.answers(id) {
			m.seekExact(n, r, id, a, true)
		} else if ok && id != m.self {
			asked--
		}
	}
	n.claims = claims
	m.shed(n)
}

// shed drops the blocks under a root that lost for good, once no container needs them.
func (m *Machine) shed(n *network) {
	if !n.known || len(n.claims) > 0 {
		return
	}
	var others []state.Block
	for i := range n.blocks {
		if b := &n.blocks[i]; b.Root != n.root && b.Kind != state.Offer {
			others = append(others, *b)
		}
	}
	if len(others) > 0 && !n.sealed(n.root) {
		others = nil
	}
	for _, b := range others {
		open := slices.ContainsFunc(n.blocks, func(o state.Block) bool { return o.Root == b.Root && o.Kind == state.Offer })
		if before(n.root, true, b.Root, true) || b.Root.Creator == m.self && !open && !n.sealed(b.Root) {
			m.remove(n, b.Prefix)
		}
	}
	m.fresh(n)
}

// sealed reports whether anybody but its creator is known to have taken from a root.
func (n *network) sealed(r state.Root) bool {
	see := func(b *state.Block) bool { return b.Root == r && (b.Sealed || b.Node != r.Creator) }
	return slices.ContainsFunc(n.rivals, see) || slices.ContainsFunc(n.blocks, func(b state.Block) bool { return see(&b) })
}

// giveBack offers a block that no container used for a while to the one it came from, where enough is
// left. The creator of a root has nobody to give back to.
func (m *Machine) giveBack(n *network) {
	if len(n.usable) < 2 || n.pending() || len(n.wants) > 0 {
		n.idle = nil
		return
	}
	if n.idle != nil && m.now < n.reviewed+reviewPause {
		m.wake(n.reviewed + reviewPause)
		return
	}
	n.reviewed = m.now
	idle := map[netip.Prefix]time.Duration{}
	for _, p := range n.usable {
		if !n.inUse(p) {
			since, ok := n.idle[p]
			if !ok {
				since = m.now
			}
			idle[p] = since
		}
	}
	n.idle = idle
	m.wake(m.now + reviewPause)
	for _, p := range slices.Clone(n.usable) {
		since, ok := idle[p]
		i, _ := n.find(p)
		b := n.blocks[i]
		if !ok || m.now < since+idleTime || b.Root.Creator == m.self || m.low(n, m.spare(n)-size(p)) || m.spare(n) < size(p) {
			continue
		}
		if to, ok := m.origin(b.Lineage); ok {
			m.handOn(n, p, to)
			return // one a minute
		}
	}
}

// inUse reports whether a block has a container, or an address in its cooldown.
func (n *network) inUse(p netip.Prefix) bool {
	return slices.ContainsFunc(n.allocs, func(e state.Endpoint) bool { return p.Contains(e.Addr) }) ||
		slices.ContainsFunc(n.resting, func(r rest) bool { return p.Contains(r.addr) })
}

// origin returns the last node of a lineage that was not given up, if it answers.
func (m *Machine) origin(lineage []state.NodeID) (state.NodeID, bool) {
	for _, id := range slices.Backward(lineage) {
		if id == m.self || m.isLost(id) {
			continue
		}
		_, ok := m.knows(id)
		return id, ok && m.answers(id)
	}
	return 0, false
}

// handOn offers a whole block that nobody asked for.
func (m *Machine) handOn(n *network, p netip.Prefix, to state.NodeID) {
	node, ok := m.knows(to)
	if !ok {
		return
	}
	m.offer(n, p, to, &message{epoch: node.Epoch})
	m.fresh(n)
}

// depart offers all blocks to those that would inherit them, or to any other node that answers.
func (m *Machine) depart(n *network) {
	for _, w := range n.wants {
		m.answer(w, nil, state.Refuse(state.ErrNoAddress, "this node is leaving the mesh; attach on another"))
	}
	n.wants = nil
	for _, p := range slices.Clone(n.usable) {
		if slices.ContainsFunc(n.allocs, func(e state.Endpoint) bool { return p.Contains(e.Addr) }) {
			continue
		}
		i, _ := n.find(p)
		to, ok := m.origin(n.blocks[i].Lineage)
		if !ok {
			to, ok = m.anyAlive(n)
		}
		if ok {
			m.handOn(n, p, to)
		}
	}
}

func (m *Machine) anyAlive(n *network) (state.NodeID, bool) {
	for _, id := range rank(n.id, m.alive) {
		if _, ok := m.knows(id); ok {
			return id, true
		}
	}
	return 0, false
}

// Left reports whether nothing is left to hand on: others have taken all that this node had under the
// roots that count.
func (m *Machine) Left() bool {
	if !m.leaving {
		return false
	}
	for _, id := range m.order {
		n := m.nets[id]
		for i := range n.blocks {
			if n.view != nil && n.known && n.blocks[i].Root == n.root {
				return false
			}
		}
	}
	return true
}

// Quarantined returns the ranges without an owner, in the order of (network, prefix).
func (m *Machine) Quarantined() (out []state.Quarantined) {
	for _, id := range m.order {
		n := m.nets[id]
		for i := range n.orphans {
			o := &n.orphans[i]
			q := state.Quarantined{
				Network: id, Prefix: o.prefix, Node: o.holder, Name: m.name(o.holder), Heir: o.heir,
				Left: max(0, m.due(o)-m.now),
			}
			if n.inquiry != nil && o.heir == m.self {
				q.Waits = m.silentTo(n.inquiry)
			}
			out = append(out, q)
		}
	}
	return out
}

// Lost returns who was given up, in the order of node ids.
func (m *Machine) Lost() []state.Lost {
	out := make([]state.Lost, 0, len(m.lost))
	for _, id := range sortedNodes(m.lost) {
		out = append(out, state.Lost{Node: id, Epoch: m.lost[id].epoch, Name: m.lost[id].name})
	}
	return out
}
