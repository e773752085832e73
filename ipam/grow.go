package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

const (
	retryMin = 200 * time.Millisecond
	retryMax = 5 * time.Second
	// aheadPause is how long a node does not ask ahead of need again after all refused.
	aheadPause = 60 * time.Second
	// firstSpread is over how long the nodes spread that ask for their first block of a new network.
	firstSpread = time.Second
	// firstBits is the largest first block.
	firstBits = 26
	// viewPatience is how long a container waits for the view to hold what would help it.
	viewPatience = time.Second
	// answerPatience is how long it waits for nodes that answer, silentPatience for nodes that are said
	// to be there and do not.
	answerPatience, silentPatience = 5 * time.Second, 1700 * time.Millisecond
	// roomFor is for how many addresses a member a subnet must have room that members ask for a
	// block before they need one.
	roomFor = 8
)

// request is a request for addresses, to one owner after the other.
type request struct {
	urgent   bool
	seq      uint64
	to       state.NodeID
	until    time.Duration // nothing is done before
	tries    int
	refused  []state.NodeID
	resting  bool   // somebody has addresses in their cooldown
	told     string // why an owner that refused has nothing to give
	hopeless bool   // nobody is there to be asked, or all refused
	heard    bool   // somebody answered that it cannot say yet
}

func backoff(tries int) time.Duration {
	if tries > 5 {
		return retryMax
	}
	return min(retryMin<<tries, retryMax)
}

// seek asks the next of some owners, if it is time to. It reports whether there is hope.
func (m *Machine) seek(n *network, r *request, owners []state.NodeID, exact netip.Addr) bool {
	if m.now < r.until {
		m.wake(r.until)
		return !r.hopeless
	}
	owners = slices.DeleteFunc(owners, func(id state.NodeID) bool { return slices.Contains(r.refused, id) })
	r.hopeless = len(owners) == 0
	if r.hopeless {
		if len(r.refused) > 0 {
			r.refused = nil
			r.until = m.now + backoff(r.tries)
			r.tries++
			m.wake(r.until)
		}
		return false
	}
	m.ask(n, r, owners[r.tries%len(owners)], exact, false)
	return true
}

// seekExact asks an owner for one address, if it is time to.
func (m *Machine) seekExact(n *network, r *request, owner state.NodeID, a netip.Addr, held bool) {
	if m.now < r.until {
		m.wake(r.until)
		return
	}
	m.ask(n, r, owner, a, held)
}

func (m *Machine) ask(n *network, r *request, owner state.NodeID, exact netip.Addr, held bool) {
	m.seq++
	r.seq, r.to = m.seq, owner
	r.until = m.now + backoff(r.tries)
	r.tries++
	m.wake(r.until)
	born := m.born
	if m.spent(n, owner) {
		born = m.epoch + 1 // none of its open offers
	}
	m.send(owner, &message{
		kind: msgAsk, network: n.id, seq: r.seq, epoch: m.epoch, born: born,
		urgent: r.urgent, bits: m.share(n), exact: exact, held: held,
	})
}

// spent reports whether an offer of an owner to this node is one that it took before, and dropped with
// the network, which came back. The owner never saw that it was taken, and would make it again for ever.
func (m *Machine) spent(n *network, owner state.NodeID) bool {
	return slices.ContainsFunc(n.others, func(o *state.Block) bool {
		return o.Node == owner && m.offered(n, o) && o.Ver <= n.high(o.Prefix, o.Root) &&
			!slices.ContainsFunc(n.blocks, func(b state.Block) bool { return b.Prefix.Overlaps(o.Prefix) })
	})
}

// share is the length of the block to ask for: a quarter of a fair share first, then as much as is
// owned already.
func (m *Machine) share(n *network) uint8 {
	d := &n.view.Def
	bits := 32
	if own := m.owned(n); own > 0 {
		bits = 32 - log2(own) - 1
	} else if fair := size(d.Subnet) / (4 * uint64(m.members())); fair > 0 {
		bits = max(32-log2(fair), firstBits)
	}
	return uint8(max(bits, d.Subnet.Bits(), int(d.BlockBits)))
}

// members is how many nodes are known, this one included.
func (m *Machine) members() int {
	c := len(m.view.Nodes())
	if _, ok := m.view.Node(m.self); !ok {
		c++
	}
	return c
}

// owned is how many addresses this node owns under the root that won, usable yet or not.
func (m *Machine) owned(n *network) uint64 {
	var c uint64
	for i := range n.blocks {
		if n.holds(&n.blocks[i]) {
			c += size(n.blocks[i].Prefix)
		}
	}
	return c
}

// pending reports whether a block was taken and waits for its witness.
func (n *network) pending() bool {
	return slices.ContainsFunc(n.blocks, func(b state.Block) bool { return b.State == state.Pending && n.holds(&b) })
}

// owner is another node with blocks and how many free addresses the view shows in them.
type owner struct {
	node state.NodeID
	free int64
}

// owners returns the nodes with usable blocks, the one with most free first.
func (m *Machine) owners(n *network) []owner {
	free := map[state.NodeID]int64{}
	var theirs []*state.Block
	reserved := n.reserved()
	for _, b := range n.others {
		if b.Kind == state.Own && b.State == state.Usable && b.Root == n.root {
			theirs = append(theirs, b)
			free[b.Node] += int64(count(gaps([]netip.Prefix{b.Prefix}, reserved)))
		}
	}
	// Both are in the order of addresses. An endpoint may have an address of another node's block.
	last := 0
	for e := range n.view.Endpoints() {
		for last < len(theirs) && theirs[last].Prefix.Addr().Compare(e.Addr) <= 0 {
			last++
		}
		if last > 0 && theirs[last-1].Prefix.Contains(e.Addr) {
			free[theirs[last-1].Node]--
		}
	}
	out := make([]owner, 0, len(free))
	for _, id := range sortedNodes(free) {
		out = append(out, owner{id, free[id]})
	}
	slices.SortStableFunc(out, func(a, b owner) int { return cmp.Compare(b.free, a.free) })
	return out
}

func (m *Machine) answers(id state.NodeID) bool {
	_, ok := slices.BinarySearch(m.alive, id)
	return ok
}

// grow asks for more addresses where containers wait for one or few are left.
func (m *Machine) grow(n *network) {
	if m.hesitates() {
		for _, w := range n.wants {
			w.since = m.now
		}
		return
	}
	waiting := n.wants[:0]
	general := false
	for _, w := range n.wants {
		if !w.wish.Addr.IsValid() {
			general = true
			waiting = append(waiting, w)
		} else if err := m.pursue(n, w); err != nil {
			m.answer(w, nil, err)
		} else {
			waiting = append(waiting, w)
		}
	}
	clear(n.wants[len(waiting):])
	n.wants = waiting
	switch {
	case general:
		m.press(n)
	case !n.pending():
		m.ahead(n)
	}
}

// press asks for the containers that wait for any address, and ends the wait of those that wait in
// vain.
func (m *Machine) press(n *network) {
	n.ask.urgent = true
	hope := true
	if !n.pending() {
		var ask []state.NodeID
		for _, o := range m.owners(n) {
			if o.free > 0 && m.answers(o.node) {
				ask = append(ask, o.node)
			}
		}
		hope = n.known && m.seek(n, &n.ask, ask, netip.Addr{})
	}
	patience, err := m.despair(n, hope)
	waiting := n.wants[:0]
	for _, w := range n.wants {
		switch {
		case w.wish.Addr.IsValid():
			waiting = append(waiting, w)
		case m.now-w.since >= patience:
			m.answer(w, nil, err)
		default:
			m.wake(w.since + patience)
			waiting = append(waiting, w)
		}
	}
	clear(n.wants[len(waiting):])
	n.wants = waiting
	if !slices.ContainsFunc(n.wants, func(w *want) bool { return !w.wish.Addr.IsValid() }) {
		n.ask = request{}
	}
}

// despair returns how long a container waits for any address, and the error that it is then told.
func (m *Machine) despair(n *network, hope bool) (time.Duration, error) {
	var away []state.NodeID
	var free int64
	for _, o := range m.owners(n) {
		if o.free > 0 && !slices.Contains(n.ask.refused, o.node) && (hope || !m.answers(o.node)) {
			away = append(away, o.node)
			free += o.free
		}
	}
	switch {
	case n.pending():
		return answerPatience, m.unconfirmed(n)
	case !n.known:
		return answerPatience, state.Refuse(state.ErrNoAddress, "no owner of the addresses of %s is known, %s would be the first; wait for it, or create the network again",
			n.view.Name, m.name(n.view.Created.Creator))
	case hope && free > 0 && n.ask.heard:
		return answerPatience, m.silent(free, away)
	case hope && free > 0:
		return silentPatience, m.silent(free, away)
	case free > 0:
		return viewPatience, m.silent(free, away)
	case m.resting(n) > 0:
		return viewPatience, m.inQuarantine(n)
	case n.ask.told != "":
		return viewPatience, state.Refuse(state.ErrNoAddress, "%s", n.ask.told)
	}
	var used uint64
	for _, u := range m.uses(n) {
		used += u.count
	}
	if used >= n.capacity() {
		return 0, m.exhausted(n, false)
	}
	return viewPatience, m.exhausted(n, n.ask.resting || len(n.resting) > 0)
}

// ahead asks for addresses before a container needs them.
func (m *Machine) ahead(n *network) {
	if !n.known {
		return
	}
	if n.ask.urgent {
		n.ask = request{} // nobody waits any more
	}
	switch own := m.owned(n); {
	case own == 0:
		if size(n.view.Def.Subnet) < roomFor*uint64(m.members()) {
			return
		}
		due := n.learnt + time.Duration(mix(uint64(m.self), uint64(n.id))%uint64(firstSpread))
		if m.now < due {
			m.wake(due)
			return
		}
	case !m.low(n, m.spare(n)):
		n.ask = request{}
		return
	}
	var ask []state.NodeID
	for _, o := range m.owners(n) {
		if o.free >= 2*lowMark && m.answers(o.node) {
			ask = append(ask, o.node)
		}
	}
	tried := len(n.ask.refused) > 0
	if !m.seek(n, &n.ask, ask, netip.Addr{}) && tried {
		n.ask.until = m.now + aheadPause
	}
}

// lowMark is how many addresses a node wants to have spare, and at least a quarter of its own.
const lowMark = 2

func (m *Machine) low(n *network, spare uint64) bool {
	return spare < lowMark || spare*4 < count(gaps(n.usable, n.reserved()))
}

// pursue asks for the one address a container wants. It returns the error of a wait in vain.
func (m *Machine) pursue(n *network, w *want) error {
	a, waited := w.wish.Addr, m.now-w.since
	id, known := m.ownerOf(n, a)
	var err error
	patience := answerPatience
	switch {
	case !known && m.orphan(n, a) != nil:
		err, patience = m.inQuarantine(n), viewPatience
	case !known:
		err = state.Refuse(state.ErrNoAddress, "no owner of address %s of %s is known; wait for the node that created it", a, n.view.Name)
	case id == m.self:
		err = m.unconfirmed(n)
	default:
		err = state.Refuse(state.ErrNoAddress, "address %s of %s belongs to %s, which does not answer; wait for it, or choose another", a, n.view.Name, m.name(id))
		w.ask.urgent = true
		if !w.ask.heard {
			patience = silentPatience
		}
		if !m.answers(id) {
			patience = viewPatience
		} else {
			m.seek(n, &w.ask, []state.NodeID{id}, a)
		}
	}
	if waited >= patience {
		return err
	}
	m.wake(w.since + patience)
	return nil
}

// ownerOf returns who owns an address, or is being given it.
func (m *Machine) ownerOf(n *network, a netip.Addr) (state.NodeID, bool) {
	b, ok := n.view.Top(a)
	switch {
	case !ok:
		return 0, false
	case b.Kind == state.Offer:
		return b.To, true
	}
	return b.Node, true
}
