package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

const (
	// inquiryRanges bounds for how many ranges others are asked at once.
	inquiryRanges = 64
	// bequestDelay is how long after its time an heir is told of what it seems not to know.
	bequestDelay = 5 * time.Second
	// inquiryNodes bounds how many nodes are asked at once.
	inquiryNodes = 64
)

// orphan is a range of which the highest known record is of a node that was given up, or gives it to
// one.
type orphan struct {
	prefix netip.Prefix
	top    state.Block
	holder state.NodeID // who was given up
	past   bool         // the record is of that life
	heir   state.NodeID // 0: nobody is left to inherit
}

// inquiry is the question to all that were ever met: store who was given up, and tell all you know.
type inquiry struct {
	seq    uint64
	mark   uint64
	ranges []netip.Prefix
	acks   map[state.NodeID]bool
	highs  []high
	until  time.Duration
	tries  int
}

// outranks reports whether of two records of a range under one root a is the later one.
func outranks(a, b *state.Block) bool {
	if a.Ver != b.Ver {
		return a.Ver > b.Ver
	}
	if a.Kind != b.Kind {
		return a.Kind == state.Own
	}
	return a.Node < b.Node
}

func (n *network) findEstate(b state.Block) (int, bool) {
	return slices.BinarySearchFunc(n.estate, b, func(a, b state.Block) int {
		return cmp.Or(compare(a.Prefix, b.Prefix), cmp.Compare(a.Node, b.Node))
	})
}

// bequeath keeps a record of a node that was given up.
func (n *network) bequeath(b state.Block) {
	n.stale = true
	if i, ok := n.findEstate(b); ok {
		n.estate[i] = b
	} else {
		n.estate = slices.Insert(n.estate, i, b)
	}
}

// settle drops such a record.
func (n *network) settle(node state.NodeID, p netip.Prefix) {
	n.stale = true
	if i, ok := n.findEstate(state.Block{Node: node, Prefix: p}); ok {
		n.estate = slices.Delete(n.estate, i, i+1)
	}
}

// findOrphans is step E1: the ranges of which the highest record, over all maps, is of a node that was
// given up or an offer to one.
func (m *Machine) findOrphans(n *network) {
	n.orphans = nil
	if len(m.lost) == 0 || n.view == nil || !n.known {
		return
	}
	all := slices.Clone(n.rivals)
	for i := range n.blocks {
		all = append(all, &n.blocks[i])
	}
	for _, c := range all {
		holder := m.bereft(c)
		if holder == 0 || c.Root != n.root {
			continue
		}
		rest := []netip.Prefix{c.Prefix}
		for _, o := range all {
			if o != c && o.Root == c.Root && o.Prefix.Overlaps(c.Prefix) && outranks(o, c) && !m.without(guardHighest) {
				rest = subtract(rest, o.Prefix)
			}
		}
		for _, p := range rest {
			n.orphans = append(n.orphans, orphan{p, *c, holder, m.ofPast(c), m.heir(c, holder)})
		}
	}
	slices.SortStableFunc(n.orphans, func(a, b orphan) int { return compare(a.prefix, b.prefix) })
}

// bereft returns the node that was given up and had a record's range, or was to have it; 0: none.
func (m *Machine) bereft(b *state.Block) state.NodeID {
	past := m.ofPast(b)
	switch {
	case b.Kind == state.Own && past:
		return b.Node
	case b.Kind == state.Offer && past:
		return b.Node
	case b.Kind == state.Offer && m.lost[b.To].epoch >= max(b.ToEpoch, 1) && b.To != m.self:
		return b.To
	}
	return 0
}

// ofPast reports whether a record is of a life that was given up.
func (m *Machine) ofPast(b *state.Block) bool {
	n := m.nets[b.Network]
	i, ok := n.findEstate(*b)
	return ok && &n.estate[i] == b
}

// subtract returns prefixes without the addresses of another.
func subtract(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, l := range list {
		switch {
		case contains(p, l):
		case contains(l, p):
			out = append(out, carve(l, p)...)
		default:
			out = append(out, l)
		}
	}
	return out
}

// heir is step E2: the last node of the lineage that was not given up, or who a person named. One that
// came back counts: all that it must hear before it inherits learn by its question that it did.
func (m *Machine) heir(b *state.Block, holder state.NodeID) state.NodeID {
	for _, id := range slices.Backward(b.Lineage) {
		if id == m.self && !m.fenced() || id != m.self && !m.isLost(id) {
			return id
		}
	}
	return m.lost[holder].heir
}

// inherit is step E: this node takes what falls to it, when all guards hold.
func (m *Machine) inherit(n *network) {
	var mine []orphan
	for _, o := range n.orphans {
		if o.heir == m.self {
			mine = append(mine, o)
		}
	}
	for _, o := range mine {
		if o.top.Kind == state.Offer {
			m.meet(o.top.To, 0) // it may have taken it
		}
	}
	m.tellHeirs(n)
	if len(mine) == 0 {
		n.inquiry = nil
		m.forgetTold(n)
		return
	}
	q := n.inquiry
	if q == nil || q.mark != m.lossMark && !m.keepAcks(q) || q.done(m) && !q.covers(mine[0].prefix) {
		q = m.inquire(n, mine)
	}
	m.question(n, q)
	if !q.done(m) {
		return
	}
	for _, o := range mine {
		switch due := m.due(&o); {
		case !q.covers(o.prefix):
		case m.now < due:
			m.wake(due)
		case m.outdated(n, q, &o):
		default:
			m.succeedTo(n, &o)
		}
	}
	m.fresh(n)
}

// tellHeirs tells those that are to inherit of what this node knows and they, some time after they
// should have, have not: who never heard of a record asks nobody for it.
func (m *Machine) tellHeirs(n *network) {
	late := false
	msgs := map[state.NodeID]*message{}
	for i := range n.orphans {
		o := &n.orphans[i]
		due := m.due(o) + bequestDelay
		switch {
		case o.heir == 0 || o.heir == m.self:
		case m.now < due:
			m.wake(due)
		case o.past && m.answers(o.heir):
			late = true
			msg := msgs[o.heir]
			if msg == nil {
				msg = &message{kind: msgTestify, network: n.id, losses: m.losses()}
				msgs[o.heir] = msg
			}
			if len(msg.records) < inquiryRanges {
				msg.records = append(msg.records, o.top)
				msg.past = append(msg.past, true)
			}
		}
	}
	if !late {
		return
	}
	if m.now >= n.bequests.until {
		for _, id := range sortedNodes(msgs) {
			m.send(id, msgs[id])
		}
		n.bequests.until = m.now + bequestDelay
	}
	m.wake(n.bequests.until)
}

// keepAcks takes over the answers of those that are met later; where more nodes were given up all are
// asked again.
func (m *Machine) keepAcks(q *inquiry) bool {
	if m.without(guardAllLost) {
		q.mark = m.lossMark
	}
	return m.without(guardAllLost)
}

// forgetTold drops what others said of living nodes; the view has it, or will not.
func (m *Machine) forgetTold(n *network) {
	if len(n.told) > 0 {
		n.told, n.stale = nil, true
		m.fresh(n)
	}
}

// inquire begins to ask for the first ranges.
func (m *Machine) inquire(n *network, mine []orphan) *inquiry {
	m.seq++
	q := &inquiry{seq: m.seq, mark: m.lossMark, acks: map[state.NodeID]bool{}}
	for _, o := range mine[:min(len(mine), inquiryRanges)] {
		q.ranges = append(q.ranges, o.prefix)
	}
	n.inquiry = q
	return q
}

func (q *inquiry) covers(p netip.Prefix) bool {
	return slices.ContainsFunc(q.ranges, func(r netip.Prefix) bool { return contains(r, p) })
}

// silentTo returns who has not answered, of all that were ever met and not given up: step E4.
func (m *Machine) silentTo(q *inquiry) (ids []state.NodeID) {
	for _, id := range sortedNodes(m.met) {
		if !q.acks[id] && !m.isLost(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (q *inquiry) done(m *Machine) bool { return m.without(guardAcks) || len(m.silentTo(q)) == 0 }

// question asks those that have not answered and are there.
func (m *Machine) question(n *network, q *inquiry) {
	ask := slices.DeleteFunc(m.silentTo(q), func(id state.NodeID) bool { return !m.answers(id) })
	if len(ask) == 0 {
		return
	}
	if m.now >= q.until {
		msg := message{kind: msgInquire, network: n.id, seq: q.seq, epoch: m.epoch, losses: m.losses(), ranges: q.ranges}
		if m.without(guardAllLost) {
			msg.losses = m.lossesOf(n, q)
		}
		for _, id := range ask[:min(len(ask), inquiryNodes)] {
			m.send(id, &msg)
		}
		q.until = m.now + backoff(q.tries)
		q.tries++
	}
	m.wake(q.until)
}

// lossesOf returns the losses of the holders asked about alone, which is not enough.
func (m *Machine) lossesOf(n *network, q *inquiry) []state.Forget {
	return slices.DeleteFunc(m.losses(), func(l state.Forget) bool {
		return !slices.ContainsFunc(n.orphans, func(o orphan) bool { return o.holder == l.Node && q.covers(o.prefix) })
	})
}

// due is step E3: when the quarantine ends, counted from the newest loss concerned.
func (m *Machine) due(o *orphan) time.Duration {
	last := m.lost[o.holder].heard
	for _, id := range o.top.Lineage {
		if l, lost := m.lost[id]; lost {
			last = max(last, l.heard)
		}
	}
	return last + m.quarantine
}

// outdated is step E5: somebody held the range in a later version than the highest known record's.
func (m *Machine) outdated(n *network, q *inquiry, o *orphan) bool {
	return n.high(o.prefix, o.top.Root) > o.top.Ver || slices.ContainsFunc(q.highs, func(h high) bool {
		return h.root == o.top.Root && h.ver > o.top.Ver && h.prefix.Overlaps(o.prefix)
	})
}

// succeedTo makes this node the owner of an orphan.
func (m *Machine) succeedTo(n *network, o *orphan) {
	if o.top.Node == m.self && !o.past { // the offer to the lost node is taken back
		if _, ok := n.find(o.top.Prefix); ok && o.top.Prefix != o.prefix {
			m.remove(n, o.top.Prefix)
		}
	}
	lineage := o.top.Lineage
	if i := slices.Index(lineage, m.self); i >= 0 {
		lineage = lineage[:i]
	} else {
		lineage = nil
	}
	m.put(state.Block{
		Network: n.id, Prefix: o.prefix, Root: o.top.Root, Sealed: o.top.Root.Creator == m.self, Ver: o.top.Ver + 2,
		Lineage: slices.Clone(lineage),
	})
	m.out.Sync = true
}

// onInquire stores who was given up, before it is said that it is, and tells all this node knows of
// the ranges.
func (m *Machine) onInquire(from state.NodeID, msg *message) {
	for _, l := range msg.losses {
		m.forget(l)
	}
	m.meet(from, msg.epoch)
	answer := message{kind: msgTestify, network: msg.network, seq: msg.seq, losses: m.losses()}
	if m.without(guardAllLost) {
		answer.losses = msg.losses
	}
	for _, id := range sortedNodes(m.met) {
		answer.met = append(answer.met, known{id, m.met[id]})
	}
	n, ok := m.nets[msg.network]
	if ok && n.view != nil {
		m.fresh(n)
		m.testify(n, msg, &answer)
	}
	m.send(from, &answer)
}

func (m *Machine) testify(n *network, msg, answer *message) {
	concerned := func(p netip.Prefix) bool { return slices.ContainsFunc(msg.ranges, p.Overlaps) }
	tell := func(b state.Block, past bool) {
		if concerned(b.Prefix) {
			answer.records = append(answer.records, b)
			answer.past = append(answer.past, past)
		}
	}
	for i := range n.blocks {
		tell(n.blocks[i], false)
	}
	for _, b := range n.rivals {
		tell(*b, m.ofPast(b))
	}
	for key, b := range m.witnessed {
		if key.network == n.id {
			b.Node = key.node
			tell(b, false)
		}
	}
	for _, h := range n.highs {
		if concerned(h.prefix) {
			answer.highs = append(answer.highs, h)
		}
	}
}

// onTestify takes in what another node knows. Where it knows of more losses or nodes all are asked
// again.
func (m *Machine) onTestify(n *network, from state.NodeID, msg *message) {
	q := n.inquiry
	if msg.seq != 0 && (q == nil || q.seq != msg.seq) {
		return
	}
	for _, l := range msg.losses {
		m.forget(l)
	}
	if msg.seq == 0 { // nobody asked: it is about what this node is to inherit
		for i, b := range msg.records {
			if _, lost := m.lost[b.Node]; lost && msg.past[i] && b.Network == n.id && n.sound(b.Prefix) {
				m.inventoryOne(n, b)
			}
		}
		return
	}
	for _, k := range msg.met {
		m.meet(k.node, k.epoch)
	}
	for i, b := range msg.records {
		if b.Network == n.id && n.sound(b.Prefix) && b.Node != m.self && !m.without(guardKnowledge) {
			m.hear(n, b, msg.past[i])
		}
	}
	q.acks[from] = true
	q.highs = append(q.highs, msg.highs...)
	n.stale = true
}

// hear keeps what another node says of a third one's block; past: in a life that was given up.
func (m *Machine) hear(n *network, b state.Block, past bool) {
	if _, lost := m.lost[b.Node]; past && lost || m.isLost(b.Node) {
		m.inventoryOne(n, b)
		return
	}
	i, ok := slices.BinarySearchFunc(n.told, b, func(a, b state.Block) int {
		return cmp.Or(compare(a.Prefix, b.Prefix), cmp.Compare(a.Node, b.Node))
	})
	switch {
	case !ok:
		n.told = slices.Insert(n.told, i, b)
	case outranks(&b, &n.told[i]):
		n.told[i] = b
	}
}

// discard drops records of nodes that were given up where later owners are known for all of it.
func (m *Machine) discard(n *network) {
	for _, b := range slices.Clone(n.estate) {
		if slices.ContainsFunc(n.orphans, func(o orphan) bool { return o.top.Node == b.Node && o.top.Prefix == b.Prefix }) || b.Root != n.root {
			continue
		}
		rest := []netip.Prefix{b.Prefix}
		over := func(o *state.Block) {
			if o.Root == b.Root && o.Ver > b.Ver && o.Prefix.Overlaps(b.Prefix) {
				rest = subtract(rest, o.Prefix)
			}
		}
		for _, o := range n.others {
			over(o)
		}
		for i := range n.blocks {
			over(&n.blocks[i])
		}
		if len(rest) == 0 {
			m.write(entry{kind: entSettled, network: n.id, node: b.Node, prefix: b.Prefix})
		}
	}
}
