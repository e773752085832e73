package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

const (
	// givenMax bounds how many offers one step holds that came by message.
	givenMax = 16
)

// witnessKey names a block of another node.
type witnessKey struct {
	network state.NetworkID
	node    state.NodeID
	prefix  netip.Prefix
}

// vouch is the wait of a taken block for its witness.
type vouch struct {
	prefix netip.Prefix
	until  time.Duration
	tries  int
}

func (m *Machine) send(to state.NodeID, msg *message) {
	m.out.Send = append(m.out.Send, Envelope{To: to, Body: msg.encode()})
}

func (m *Machine) receive(ev Msg) {
	msg, err := decodeMessage(ev.Body)
	if err != nil || ev.From == m.self {
		return // another version's, or nobody's: who asked asks again
	}
	switch msg.kind {
	case msgRoot:
		m.send(ev.From, &message{kind: msgWait, network: msg.network})
		return
	case msgMeet:
		m.onMeet(ev.From, &msg)
		return
	case msgMet:
		m.onMet(ev.From, &msg)
		return
	case msgInquire:
		m.onInquire(ev.From, &msg)
		return
	}
	n, ok := m.nets[msg.network]
	if !ok || n.view == nil || m.view == nil {
		return
	}
	switch msg.kind {
	case msgAsk:
		m.fresh(n)
		m.onAsk(n, ev.From, &msg)
	case msgGive:
		m.onGive(n, ev.From, &msg)
	case msgRefuse:
		m.onRefuse(n, ev.From, &msg)
	case msgWitness:
		m.fresh(n)
		m.onWitness(n, ev.From, &msg)
	case msgStored:
		m.fresh(n)
		m.onStored(n, ev.From, &msg)
	case msgWait:
		m.onWait(n, ev.From)
	case msgTestify:
		m.onTestify(n, ev.From, &msg)
	}
}

// onAsk answers a request for addresses: with the offer that this node made to the asker before, if
// it is still open, or a new one.
func (m *Machine) onAsk(n *network, from state.NodeID, msg *message) {
	no := func(why refusal, text string) {
		m.send(from, &message{kind: msgRefuse, network: n.id, seq: msg.seq, why: why, text: text})
	}
	node, ok := m.knows(from)
	if !ok || msg.epoch < node.Epoch || !n.known || m.fenced() || m.leaving {
		no(refuseLater, "")
		return
	}
	for _, b := range n.blocks {
		if b.Kind == state.Offer && b.To == from && b.Root == n.root && b.ToEpoch >= msg.born &&
			(!msg.exact.IsValid() || b.Prefix.Contains(msg.exact)) {
			m.send(from, &message{kind: msgGive, network: n.id, seq: msg.seq, block: b})
			return
		}
	}
	var p netip.Prefix
	var why refusal
	var text string
	if msg.exact.IsValid() {
		p, why, text = m.single(n, from, msg)
	} else {
		if p, why = m.portion(n, from, msg); why == refuseNone && m.resting(n) > 0 {
			text = m.inQuarantine(n).Error()
		}
	}
	if !p.IsValid() {
		no(why, text)
		return
	}
	m.offer(n, p, from, msg)
}

// single returns the block of one address if it can be given.
func (m *Machine) single(n *network, from state.NodeID, msg *message) (netip.Prefix, refusal, string) {
	a := msg.exact
	if i, ok := n.allocation(a); ok {
		return netip.Prefix{}, refuseUsed, n.allocs[i].Container
	}
	for _, r := range n.resting {
		if r.addr == a && r.until > m.now && !msg.held {
			return netip.Prefix{}, refuseResting, r.container
		}
	}
	if e, ok := n.view.At(a); ok && e.Node != m.self && (e.Node != from || !msg.held) {
		return netip.Prefix{}, refuseUsed, e.Container
	}
	if !n.mine(a) || !n.view.Def.Allocatable(a) && !msg.held {
		return netip.Prefix{}, refuseNone, ""
	}
	return netip.PrefixFrom(a, 32), 0, ""
}

// portion returns the block to give to an asker: what it asks for, at most half of what is free,
// nearest to its place in the subnet; and ahead of need only from plenty.
func (m *Machine) portion(n *network, from state.NodeID, msg *message) (netip.Prefix, refusal) {
	busy := n.reserved()
	taken := func(a netip.Addr) {
		x := number(a)
		busy = append(busy, span{x, x})
	}
	for i := range n.allocs {
		taken(n.allocs[i].Addr)
	}
	resting := false
	for _, r := range n.resting {
		if r.until > m.now {
			taken(r.addr)
			resting = resting || n.mine(r.addr)
		}
	}
	for e := range n.view.Claims() {
		if e.Node != m.self && e.Addr.Is4() {
			taken(e.Addr)
		}
	}
	sortSpans(busy)
	free := gaps(n.usable, busy)
	have := count(free)
	switch {
	case have == 0 && resting:
		return netip.Prefix{}, refuseResting
	case have == 0:
		return netip.Prefix{}, refuseNone
	}
	bits := max(int(msg.bits), int(n.view.Def.BlockBits), 32-log2((have+1)/2))
	for ; bits <= 32; bits++ {
		p, ok := hole(free, bits, n.place(from))
		if !ok {
			continue
		}
		if !msg.urgent && m.low(n, have-size(p)) {
			return netip.Prefix{}, refuseScarce
		}
		return p, 0
	}
	return netip.Prefix{}, refuseNone
}

// offer is step O: the block that holds p is divided, p is given away and no longer used.
func (m *Machine) offer(n *network, p netip.Prefix, to state.NodeID, msg *message) {
	i := slices.IndexFunc(n.usable, func(u netip.Prefix) bool { return contains(u, p) })
	at, _ := n.find(n.usable[i])
	parent := n.blocks[at]
	if parent.Prefix != p {
		m.remove(n, parent.Prefix)
	}
	for _, rest := range carve(parent.Prefix, p) {
		b := parent
		b.Prefix, b.Ver = rest, parent.Ver+1
		m.put(b)
	}
	lineage := slices.DeleteFunc(slices.Clone(parent.Lineage), func(id state.NodeID) bool { return id == m.self })
	lineage = append(lineage, m.self)
	lineage = lineage[max(0, len(lineage)-lineageMax):]
	b := state.Block{
		Node: m.self, Network: n.id, Prefix: p, Root: parent.Root, Sealed: parent.Sealed,
		Ver: parent.Ver + 1, Kind: state.Offer, To: to, ToEpoch: msg.epoch, Lineage: lineage,
	}
	m.put(b)
	m.out.Sync = true
	m.send(to, &message{kind: msgGive, network: n.id, seq: msg.seq, block: b})
}

// onGive takes in an offer before the view has it.
func (m *Machine) onGive(n *network, from state.NodeID, msg *message) {
	b := msg.block
	b.Node = from
	if b.Network != n.id || b.Kind != state.Offer || b.To != m.self || len(n.given) >= givenMax {
		return
	}
	n.given = append(n.given, b)
	n.stale = true
}

func (m *Machine) onRefuse(n *network, from state.NodeID, msg *message) {
	for _, r := range n.claims {
		if r.seq == msg.seq && r.to == from {
			if msg.why != refuseLater {
				r.until = m.now + claimPause
			}
			return
		}
	}
	if n.ask.seq == msg.seq && n.ask.to == from {
		n.ask.heard = true
		if msg.why != refuseLater {
			n.ask.refused = append(n.ask.refused, from)
			n.ask.resting = n.ask.resting || msg.why == refuseResting
			n.ask.told = cmp.Or(n.ask.told, msg.text)
			n.ask.until = m.now
		}
		return
	}
	i := slices.IndexFunc(n.wants, func(w *want) bool { return w.ask.seq == msg.seq && w.ask.to == from })
	if i < 0 {
		return
	}
	w := n.wants[i]
	w.ask.heard = true
	switch msg.why {
	case refuseUsed:
		m.answer(w, nil, m.inUse(n, w.wish.Addr, msg.text, from))
	case refuseResting:
		m.answer(w, nil, state.Refuse(state.ErrAddressInUse, "address %s of %s was given back by %s on %s less than a minute ago; wait for that, or choose another",
			w.wish.Addr, n.view.Name, msg.text, m.name(from)))
	default:
		return // it is on its way to another owner, or the view is behind: asked again
	}
	n.wants = slices.Delete(n.wants, i, i+1)
}

// takeOffers is step T, for all offers that are known.
func (m *Machine) takeOffers(n *network) {
	m.fresh(n)
	for _, o := range n.others {
		if m.mayTake(n, o) {
			m.take(n, o)
		}
	}
	if len(n.given) > 0 {
		n.given, n.stale = nil, true
	}
	m.fresh(n)
}

// mayTake is the guard of step T. An offer to an epoch since which the log is whole is to this node:
// a highest version that was held then is known now.
func (m *Machine) mayTake(n *network, o *state.Block) bool {
	if !m.offered(n, o) {
		return false
	}
	if giver(o) != o.Node {
		return false
	}
	if _, ok := m.knows(o.Node); !ok && !m.without(guardGrantor) {
		return false
	}
	return o.Ver > n.high(o.Prefix, o.Root)
}

// offered reports whether a block is an offer to this node, under the root that won.
func (m *Machine) offered(n *network, o *state.Block) bool {
	return o.Kind == state.Offer && o.To == m.self && o.ToEpoch >= m.born && o.Root == n.root
}

func (m *Machine) take(n *network, o *state.Block) {
	b := state.Block{
		Network: n.id, Prefix: o.Prefix, Root: o.Root, Sealed: o.Sealed && o.Root.Creator == m.self, Ver: o.Ver,
		Lineage: slices.Clone(o.Lineage), State: state.Pending,
	}
	if !m.heirsKnown(&b) || m.vouched(o.Node) {
		b.State = state.Usable
	}
	m.put(b)
	m.out.Sync = true
	urgent := n.ask.urgent
	n.ask = request{urgent: urgent}
}

// giver is who gave a block away, the last of its lineage; 0 if nobody did.
func giver(b *state.Block) state.NodeID {
	if len(b.Lineage) == 0 {
		return 0
	}
	return b.Lineage[len(b.Lineage)-1]
}

// third returns the nodes that answer and are neither this one nor a block's grantor.
func (m *Machine) third(grantor state.NodeID) []state.NodeID {
	return slices.DeleteFunc(slices.Clone(m.alive), func(id state.NodeID) bool { return id == grantor || m.isLost(id) })
}

// otherKnown reports whether any node but this one and the grantor is known, answering or not.
func (m *Machine) otherKnown(grantor state.NodeID) bool {
	return slices.ContainsFunc(m.view.Nodes(), func(o *state.Node) bool {
		return o.ID != m.self && o.ID != grantor && !m.isLost(o.ID)
	})
}

// confirm is step W: a taken block is used once another node than the grantor has stored that this
// node exists, now or before: whoever inherits from the grantor then asks this node too. Where nobody
// else is known, or named to inherit, nobody can.
func (m *Machine) confirm(n *network) {
	n.vouches = slices.DeleteFunc(n.vouches, func(v vouch) bool {
		i, ok := n.find(v.prefix)
		return !ok || n.blocks[i].State != state.Pending
	})
	var pending []state.Block
	for i := range n.blocks {
		if b := &n.blocks[i]; b.State == state.Pending && n.holds(b) {
			pending = append(pending, *b)
		}
	}
	for _, b := range pending {
		i := slices.IndexFunc(n.vouches, func(v vouch) bool { return v.prefix == b.Prefix })
		if i < 0 {
			i = len(n.vouches)
			n.vouches = append(n.vouches, vouch{prefix: b.Prefix})
		}
		v := &n.vouches[i]
		grantor := giver(&b)
		if !m.heirsKnown(&b) || m.vouched(grantor) {
			b.State = state.Usable
			m.put(b)
			continue
		}
		third := rank(n.id, m.third(grantor))
		if len(third) == 0 {
			continue
		}
		if m.now >= v.until {
			m.send(third[v.tries%len(third)], &message{kind: msgWitness, network: n.id, block: b})
			v.until = m.now + backoff(v.tries)
			v.tries++
		}
		m.wake(v.until)
	}
	m.fresh(n)
}

// onWitness stores another node's block and that it exists, and says so when that is synced.
func (m *Machine) onWitness(n *network, from state.NodeID, msg *message) {
	b := msg.block
	b.Node = from
	if _, ok := m.knows(from); !ok || b.Network != n.id || b.Kind != state.Own || !n.sound(b.Prefix) {
		return
	}
	outdated := func(o *state.Block) bool {
		return o.Root == b.Root && o.Ver > b.Ver && o.Prefix.Overlaps(b.Prefix)
	}
	if slices.ContainsFunc(n.others, outdated) || slices.ContainsFunc(n.blocks, func(o state.Block) bool { return outdated(&o) }) {
		return
	}
	old, ok := m.witnessed[witnessKey{n.id, from, b.Prefix}]
	if !ok || old.Root != b.Root || old.Ver != b.Ver {
		m.write(entry{kind: entWitness, node: from, block: b})
		m.out.Sync = true
	}
	m.send(from, &message{kind: msgStored, network: n.id, block: b})
}

// onStored takes in that another node has stored a block of this one.
func (m *Machine) onStored(n *network, from state.NodeID, msg *message) {
	i, ok := n.find(msg.block.Prefix)
	if !ok {
		return
	}
	b := n.blocks[i]
	if b.State != state.Pending || !n.holds(&b) || b.Ver != msg.block.Ver || b.Root != msg.block.Root ||
		giver(&b) == from || m.isLost(from) {
		return
	}
	m.onMet(from, &message{epoch: m.born}) // who stored the block stored its owner
	b.State = state.Usable
	m.put(b)
}
