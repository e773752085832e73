package ipam

import (
	"slices"

	"meshnet/state"
)

// saw takes in a view. A network that is the same pointer as before costs nothing.
func (m *Machine) saw(v *state.View) {
	for l := range v.Losses() {
		m.forget(l) // with the view before, which has what it had
	}
	fenced := m.fenced()
	m.view = v
	for _, node := range v.Nodes() {
		if node.ID == m.self {
			m.epoch = max(m.epoch, node.Epoch)
		} else {
			m.meet(node.ID, node.Epoch)
		}
	}
	if fenced && !m.fenced() {
		for _, id := range m.order {
			m.nets[id].checked = false // the document begins anew
		}
	}
	for _, sn := range v.Networks() {
		if !sn.Def.Subnet.Addr().Is4() {
			continue
		}
		n := m.network(sn.ID)
		if n.view == sn && n.checked {
			continue
		}
		if n.view == nil {
			n.learnt = m.now
		}
		// Most news is of endpoints, from which nothing follows that refresh works out.
		n.stale = n.stale || n.view == nil || !n.checked || n.view.Def.Subnet != sn.Def.Subnet || !sameSlice(n.heard, sn.Blocks())
		n.view, n.heard = sn, sn.Blocks()
		n.defined = n.defined || !sn.Removed
		if !n.checked && !m.fenced() {
			m.check(n)
		}
	}
	for _, id := range m.order {
		n := m.nets[id]
		if n.view == nil {
			continue
		}
		if _, ok := v.Network(id); !ok {
			m.drop(n)
		}
	}
}

// sameSlice reports whether two slices that nobody writes to are one.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// check compares own records in the view with the log, once after a start: a crash may have kept
// one and lost the other. The log is right, but for offers: those may have been seen.
func (m *Machine) check(n *network) {
	n.checked = true
	var mine []*state.Block
	for _, b := range n.view.Blocks() {
		if b.Node == m.self {
			mine = append(mine, b)
		}
	}
	for i := range n.blocks {
		b := n.blocks[i]
		j := slices.IndexFunc(mine, func(o *state.Block) bool { return o.Prefix == b.Prefix })
		if j < 0 || !same(mine[j], &b) {
			m.out.Changes = append(m.out.Changes, state.PutBlock{Block: b})
		}
	}
	for _, b := range mine {
		if _, ok := n.find(b.Prefix); ok {
			continue
		}
		if b.Kind == state.Offer {
			m.write(entry{kind: entPut, block: *b})
		} else {
			m.out.Changes = append(m.out.Changes, state.RemoveBlock{Network: n.id, Prefix: b.Prefix})
		}
	}
	m.checkEndpoints(n)
}

func (m *Machine) checkEndpoints(n *network) {
	for i := range n.allocs {
		e := n.allocs[i]
		if _, ok := m.view.Endpoint(e.ID); !ok {
			m.out.Changes = append(m.out.Changes, state.PutEndpoint{Endpoint: e, Kept: true})
		}
	}
	for e := range n.view.Claims() {
		if e.Node != m.self {
			continue
		}
		if !slices.ContainsFunc(n.allocs, func(a state.Endpoint) bool { return a.ID == e.ID }) {
			m.out.Changes = append(m.out.Changes, state.RemoveEndpoint{ID: e.ID})
		}
	}
}

// same reports whether two records of this node say the same.
func same(a, b *state.Block) bool {
	return a.Root == b.Root && a.Ver == b.Ver && a.Kind == b.Kind && a.State == b.State &&
		a.To == b.To && a.ToEpoch == b.ToEpoch && a.Sealed == b.Sealed && slices.Equal(a.Lineage, b.Lineage)
}

// drop gives up what is held of a network that is gone. What versions were held is kept: if the
// network comes back, because somebody attached meanwhile, an old offer is still an old one. A network
// whose definition was never seen since the start is not gone but not heard of yet: it was in the
// view for this node's own endpoints only.
func (m *Machine) drop(n *network) {
	if n.defined {
		for i := range n.blocks {
			m.out.Changes = append(m.out.Changes, state.RemoveBlock{Network: n.id, Prefix: n.blocks[i].Prefix})
		}
		if len(n.blocks)+len(n.resting)+len(n.estate) > 0 {
			m.write(entry{kind: entDrop, network: n.id})
		}
	}
	for _, w := range n.wants {
		m.answer(w, nil, state.Refuse(state.ErrNoNetwork, "network %s was removed; create it again", n.view.Name))
	}
	n.view, n.heard, n.checked, n.defined, n.wants = nil, nil, false, false, nil
	n.ask, n.vouches, n.race = request{}, nil, race{}
	n.inquiry, n.claims, n.idle, n.told = nil, nil, nil, nil
}

// knows reports whether a node is known and not forgotten.
func (m *Machine) knows(id state.NodeID) (*state.Node, bool) {
	if m.view == nil || m.isLost(id) {
		return nil, false
	}
	return m.view.Node(id)
}

// tidy works out what follows from a change and does what needs nobody: seal the root that others
// took from and drop offers that were taken.
func (m *Machine) tidy(n *network) {
	if !n.stale {
		return
	}
	m.refresh(n)
	m.seal(n)
	m.clean(n)
	m.succeed(n)
	m.discard(n)
	m.fresh(n)
}

// fresh works out what follows from the log and the view, if one of them changed.
func (m *Machine) fresh(n *network) {
	if n.stale {
		m.refresh(n)
	}
}

// seal marks the records of a root of this node once another node has taken from it.
func (m *Machine) seal(n *network) {
	for i := range n.blocks {
		b := n.blocks[i]
		if b.Sealed || b.Root.Creator != m.self {
			continue
		}
		if slices.ContainsFunc(n.rivals, func(o *state.Block) bool { return o.Root == b.Root }) {
			b.Sealed = true
			m.put(b) // in its place: the order stays
		}
	}
}

// clean drops own offers once it is known that they were taken: somebody else, or this node later,
// holds the offered version of a part of it.
func (m *Machine) clean(n *network) {
	if !slices.ContainsFunc(n.blocks, func(b state.Block) bool { return b.Kind == state.Offer }) {
		return
	}
	var done []int
	note := func(mine *state.Block) {
		if i, ok := n.find(mine.Prefix); ok && !slices.Contains(done, i) {
			done = append(done, i)
		}
	}
	taken := func(mine, other *state.Block) {
		// An offer that is passed on within the chain has a higher version than this one.
		if mine.Kind == state.Offer && other.Root == mine.Root && other.Ver >= mine.Ver {
			note(mine)
		}
	}
	overlaps(n.blocks, n.others, taken)
	if len(n.estate) > 0 {
		past := make([]*state.Block, len(n.estate))
		for i := range n.estate {
			past[i] = &n.estate[i]
		}
		overlaps(n.blocks, past, taken)
	}
	own := make([]*state.Block, len(n.blocks))
	for i := range n.blocks {
		own[i] = &n.blocks[i]
	}
	overlaps(n.blocks, own, func(mine, later *state.Block) {
		if mine.Kind == state.Offer && later.Root == mine.Root && later.Ver > mine.Ver {
			note(mine)
		}
	})
	slices.Sort(done)
	slices.Reverse(done)
	for _, i := range done {
		m.remove(n, n.blocks[i].Prefix)
	}
}
