package ipam

import (
	"cmp"
	"slices"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

const (
	// quarantineDefault is how long the addresses of a node that was given up rest.
	quarantineDefault = 10 * time.Minute
	// metByWanted is how many other nodes should have stored that this one exists: two would do, of
	// which one may be the giver of a block.
	metByWanted = 3
)

// guard names a rule of the protocol that a test switches off, to see what it is for.
type guard uint8

const (
	guardAcks      guard = 1 << iota // E4: all that were ever met say that they stored who was given up
	guardAllLost                     // E4: they stored all of them, not only the holder
	guardKnowledge                   // E4: they tell all they know
	guardGrantor                     // T: the grantor was not given up
	guardHighest                     // E1: the highest known record counts
	guardWitness                     // W: a third node knows the taker
)

// without reports whether a test switched a guard off.
func (m *Machine) without(g guard) bool { return m.off&g != 0 }

// loss is that a node was given up for good.
type loss struct {
	epoch crdt.Epoch // up to which
	heir  state.NodeID
	name  string // what people called it
	heard time.Duration
}

// isLost reports whether a node was given up and is not known in a later epoch.
func (m *Machine) isLost(id state.NodeID) bool {
	l, ok := m.lost[id]
	return ok && l.epoch >= m.met[id]
}

// fenced reports whether this node itself was given up and has not begun a later epoch: it does nothing
// until then.
func (m *Machine) fenced() bool {
	l, ok := m.lost[m.self]
	return ok && l.epoch >= m.epoch
}

// forget is step X: it is stored, with what this node knows of the lost one's blocks, before anything
// else is said.
func (m *Machine) forget(l state.Forget) {
	was, known := m.lost[l.Node]
	now := loss{epoch: max(was.epoch, l.Epoch), heir: was.heir, name: was.name, heard: m.now}
	if l.Heir != 0 && (was.heir == 0 || l.Heir < was.heir) {
		now.heir = l.Heir
	}
	if known && now.epoch == was.epoch && now.heir == was.heir {
		return
	}
	switch {
	case l.Node == m.self:
		if now.epoch >= m.born && m.epoch > now.epoch { // the document did not drop them
			for _, id := range m.order {
				for i := range m.nets[id].blocks {
					m.out.Changes = append(m.out.Changes, state.RemoveBlock{Network: id, Prefix: m.nets[id].blocks[i].Prefix})
				}
			}
		}
	case now.epoch > was.epoch:
		now.name = m.inventory(l.Node, now)
	}
	m.write(entry{kind: entForget, node: l.Node, epoch: now.epoch, heir: now.heir, name: now.name})
	m.out.Sync = true
}

// inventory stores what is known of the blocks of a node that was given up, before the view drops
// them, and returns what people called it.
func (m *Machine) inventory(id state.NodeID, l loss) (name string) {
	name = l.name
	if m.view == nil {
		return name
	}
	if node, ok := m.view.Node(id); ok {
		name = cmp.Or(node.Name, name)
		if node.Epoch > l.epoch {
			return name // a later life
		}
	}
	for _, nid := range m.order {
		n := m.nets[nid]
		for _, b := range n.rivals {
			if b.Node == id {
				m.inventoryOne(n, *b)
			}
		}
		for key, b := range m.witnessed {
			if key.node == id && key.network == nid && n.view != nil && n.sound(b.Prefix) {
				b.Node = id
				m.inventoryOne(n, b)
			}
		}
	}
	return name
}

func (m *Machine) inventoryOne(n *network, b state.Block) {
	i, ok := n.findEstate(b)
	if ok && !outranks(&b, &n.estate[i]) {
		return
	}
	m.write(entry{kind: entEstate, node: b.Node, block: b})
}

// replayForget makes a loss so. Of this node's own blocks nothing is left; what was held is kept as a
// highest version, and the addresses of its containers are asked for anew.
func (m *Machine) replayForget(e *entry) {
	was := m.lost[e.node]
	m.lost[e.node] = loss{epoch: e.epoch, heir: e.heir, name: cmp.Or(e.name, was.name), heard: m.now}
	m.lossMark++
	if e.node == m.self && e.epoch >= m.born {
		m.born = e.epoch + 1
		clear(m.metBy)
		for _, n := range m.nets {
			for _, b := range n.blocks {
				n.bequeath(b) // nobody else may know the last of it
			}
			n.blocks = nil
		}
	}
	for _, n := range m.nets {
		n.stale = true
	}
}

// losses returns who was given up, in the order of node ids.
func (m *Machine) losses() []state.Forget {
	out := make([]state.Forget, 0, len(m.lost))
	for _, id := range sortedNodes(m.lost) {
		l := m.lost[id]
		out = append(out, state.Forget{Node: id, Epoch: l.epoch, Heir: l.heir})
	}
	return out
}

// meet notes that a node exists, in an epoch: who inherits must have heard all that were ever met.
func (m *Machine) meet(id state.NodeID, e crdt.Epoch) {
	if id == m.self || id == 0 {
		return
	}
	l, lost := m.lost[id]
	if !lost || e <= l.epoch {
		e = 0
	}
	if was, ok := m.met[id]; ok && e <= was {
		return
	}
	m.write(entry{kind: entMet, node: id, epoch: e})
	for _, nid := range m.order {
		m.nets[nid].stale = true
	}
}

// introduce has some others store that this node exists, so that it is asked before anybody inherits.
func (m *Machine) introduce() {
	if m.view == nil || m.fenced() {
		return
	}
	have := 0
	for id := range m.metBy {
		if !m.isLost(id) {
			have++
		}
	}
	if have >= metByWanted {
		return
	}
	var ask []state.NodeID
	for _, id := range m.alive {
		if _, ok := m.knows(id); ok && !m.metBy[id] {
			ask = append(ask, id)
		}
	}
	if len(ask) == 0 {
		return
	}
	if m.now >= m.meets.until {
		ask = rank(state.NetworkID(m.self), ask)
		for i := range min(metByWanted-have, len(ask)) {
			m.send(ask[(m.meets.tries+i)%len(ask)], &message{kind: msgMeet, epoch: m.epoch})
		}
		m.meets.until = m.now + backoff(m.meets.tries)
		m.meets.tries++
	}
	m.wake(m.meets.until)
}

// onMeet stores that a node exists, and says so when that is synced.
func (m *Machine) onMeet(from state.NodeID, msg *message) {
	if _, ok := m.knows(from); !ok && !m.answers(from) {
		return
	}
	m.meet(from, msg.epoch)
	m.out.Sync = true // it may have been met unsynced
	m.send(from, &message{kind: msgMet, epoch: msg.epoch})
}

// onMet takes in that another node has stored that this one exists, in this life.
func (m *Machine) onMet(from state.NodeID, msg *message) {
	if msg.epoch >= m.born && !m.metBy[from] {
		m.write(entry{kind: entMetBy, node: from})
	}
}

// vouched reports whether a node other than a block's grantor has stored that this one exists: whoever
// inherits from the grantor hears of this node by it.
func (m *Machine) vouched(grantor state.NodeID) bool {
	for id := range m.metBy {
		if id != grantor && !m.isLost(id) {
			return true
		}
	}
	return m.without(guardWitness)
}

// heirsKnown reports whether anybody but this node and a block's grantor may ever inherit the block.
func (m *Machine) heirsKnown(b *state.Block) bool {
	other := func(id state.NodeID) bool {
		return id != m.self && id != giver(b) && !m.isLost(id)
	}
	return slices.ContainsFunc(b.Lineage, other) || m.otherKnown(giver(b))
}
