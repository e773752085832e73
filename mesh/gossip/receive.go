package gossip

import (
	"iter"
	"slices"

	"meshnet/crdt"
	"meshnet/state"
)

// receive acts on a message.
func (m *Machine) receive(from state.NodeID, b []byte) {
	if from == m.self || from == 0 {
		m.count.Malformed++
		return
	}
	k, b, err := open(b)
	if err == errVersion {
		m.count.Unknown++
		return
	}
	if err == nil {
		switch k {
		case kindPush:
			err = m.onPush(from, b)
		case kindDigest:
			err = m.onDigest(from, b)
		case kindBuckets:
			err = m.onBuckets(from, b)
		case kindHeads:
			err = m.onHeads(from, b)
		case kindWant:
			err = m.onWant(from, b)
		case kindAnswer:
			err = m.onAnswer(from, b)
		default:
			m.count.Unknown++
		}
	}
	if err != nil {
		m.count.Malformed++
	}
}

// onPush takes in news and passes on what was news here too, which ends every loop.
func (m *Machine) onPush(from state.NodeID, b []byte) error {
	origin, b, err := decodePush(b)
	if err != nil {
		return err
	}
	news, err := m.merge(b)
	if err == nil && !news.Empty() {
		m.pass(origin, from, news)
	}
	return err
}

// merge takes in encoded state and plans what follows from it.
func (m *Machine) merge(b []byte) (news state.Out, err error) {
	in, err := state.Decode(b)
	if err != nil {
		return state.Out{}, err
	}
	news = m.doc.Merge(in)
	if !news.Empty() {
		m.acts = append(m.acts, News{news})
		m.planSoon()
	}
	if m.gap == 0 && len(m.doc.Gaps()) > 0 {
		m.gap, m.gapDelay = m.now+gapDelay, gapDelay
	}
	return news, nil
}

func (m *Machine) onDigest(from state.NodeID, b []byte) error {
	d, err := decodeDigest(b)
	if err != nil {
		return err
	}
	if d.digest == m.doc.Digest() {
		delete(m.greet, from)
		if len(m.members) > 0 && from == m.neighbour(-1) {
			m.vouched()
		}
		m.acts = append(m.acts, Agreed{from})
		if d.flags&flagReply != 0 {
			m.sendDigest(from, 0)
		}
		return nil
	}
	m.count.Differing++
	if !m.compares.take(m.now, 1) {
		m.count.Dropped++
		return nil
	}
	// Where all heads fit into a packet they save a round trip.
	nodes, shared := m.doc.Buckets()
	h := headsMsg{allBuckets, shared, nil}
	for i := range buckets {
		h.heads = append(h.heads, m.doc.Heads(i)...)
	}
	sortHeads(h.heads)
	if body := h.encode(); len(body) <= PacketMax {
		m.send(from, body)
		return nil
	}
	m.send(from, bucketsMsg{nodes, shared}.encode())
	return nil
}

func (m *Machine) onBuckets(from state.NodeID, b []byte) error {
	theirs, err := decodeBuckets(b)
	if err != nil {
		return err
	}
	nodes, shared := m.doc.Buckets()
	h := headsMsg{0, shared, nil}
	for i := range buckets {
		if nodes[i] == theirs.nodes[i] {
			continue
		}
		// Buckets that do not fit any more wait for the next comparison.
		hs := m.doc.Heads(i)
		if h.mask != 0 && len(h.heads)+len(hs) > StreamMax/24 {
			break
		}
		h.mask |= 1 << i
		h.heads = append(h.heads, hs...)
	}
	sortHeads(h.heads)
	if h.mask != 0 || shared != theirs.shared {
		m.send(from, h.encode())
	}
	return nil
}

// onHeads sends what the other lacks and asks for what this node lacks.
func (m *Machine) onHeads(from state.NodeID, b []byte) error {
	theirs, err := decodeHeadsMsg(b)
	if err != nil {
		return err
	}
	_, shared := m.doc.Buckets()
	others := map[crdt.Node][]crdt.Head{}
	for hs := range byNode(theirs.heads) {
		others[hs[0].Node] = hs
	}
	// Where heads are equal what lies beyond a gap may still differ, and if its writer is gone the gap
	// stays.
	gapped := map[crdt.Node]bool{}
	for _, g := range m.doc.Gaps() {
		gapped[g.Node] = true
	}
	var lack, want []crdt.Head
	for i := range buckets {
		if theirs.mask&(1<<i) == 0 {
			continue
		}
		for mine := range byNode(m.doc.Heads(i)) {
			node := mine[0].Node
			other := others[node]
			delete(others, node)
			if ahead(mine, other) || gapped[node] {
				lack = appendOrZero(lack, node, other)
			}
			if ahead(other, mine) {
				want = append(want, mine...)
			}
		}
	}
	for node := range others {
		want = append(want, crdt.Head{Node: node})
	}
	sortHeads(lack)
	sortHeads(want)
	var flags byte
	if theirs.shared != shared {
		flags = flagShared
	}
	m.answer(from, wantMsg{flags, lack})
	if len(want) > 0 || flags != 0 {
		m.send(from, wantMsg{flags, want}.encode())
	}
	return nil
}

// byNode yields the heads of one node after the other's; they are in the order of nodes.
func byNode(hs []crdt.Head) iter.Seq[[]crdt.Head] {
	return func(yield func([]crdt.Head) bool) {
		for len(hs) > 0 {
			n := 1
			for n < len(hs) && hs[n].Node == hs[0].Node {
				n++
			}
			if !yield(hs[:n]) {
				return
			}
			hs = hs[n:]
		}
	}
}

// ahead reports whether a, the heads of one node, says more than b. While an epoch is incomplete a
// node has a head for it beside that of the epoch before.
func ahead(a, b []crdt.Head) bool {
	for _, h := range a {
		if len(b) > 0 && b[0].Epoch > h.Epoch {
			continue // given up there for a later epoch
		}
		if !slices.ContainsFunc(b, func(t crdt.Head) bool { return t.Epoch == h.Epoch && t.Seq >= h.Seq }) {
			return true
		}
	}
	return false
}

// appendOrZero appends the heads of a node, of one that has none the head before all.
func appendOrZero(to []crdt.Head, node crdt.Node, hs []crdt.Head) []crdt.Head {
	if len(hs) == 0 {
		return append(to, crdt.Head{Node: node})
	}
	return append(to, hs...)
}

func (m *Machine) onWant(from state.NodeID, b []byte) error {
	want, err := decodeWant(b)
	if err != nil {
		return err
	}
	m.answer(from, want)
	return nil
}

// answer sends what a want asks for, as packets where few suffice.
func (m *Machine) answer(to state.NodeID, want wantMsg) {
	var out state.Out
	var flags byte
	if len(want.heads) > 0 {
		var more bool
		out, more = m.doc.Missing(want.heads, StreamMax-3)
		if more {
			flags = flagMore
		}
	}
	if want.flags&flagShared != 0 {
		out.Shared = append(out.Shared, m.doc.Shared())
	}
	if out.Empty() {
		return
	}
	parts := state.Encode(out, PacketMax-3)
	if len(parts) > answerPackets {
		parts = state.Encode(out, StreamMax-3)
	}
	for i, p := range parts {
		if !m.answers.take(m.now, float64(len(p))) {
			m.count.Dropped++
			continue
		}
		var f byte
		if i == len(parts)-1 {
			f = flags
		}
		m.count.Answers++
		m.send(to, encodeAnswer(f, p))
	}
}

// onAnswer takes in what was pulled. It is not passed on: who else lacks it compares digests.
func (m *Machine) onAnswer(from state.NodeID, b []byte) error {
	flags, b, err := decodeAnswer(b)
	if err != nil {
		return err
	}
	news, err := m.merge(b)
	if err != nil || news.Empty() {
		return err
	}
	if _, greeting := m.greet[from]; greeting || flags&flagMore != 0 {
		m.sendDigest(from, flagReply)
	}
	return nil
}
