package ipam

import (
	"net/netip"
	"slices"
	"time"

	"meshnet/state"
)

const (
	// cooldown is how long an address that was given back is not given out again, so that nobody
	// still sends to it what was meant for its last holder.
	cooldown = 60 * time.Second
	// restingMax bounds how many of those are remembered, to be used last, beyond their cooldown.
	restingMax = 1024
	// wantsMax bounds how many wait for an address of one network.
	wantsMax = 4096
)

// want is a Want that was not answered yet.
type want struct {
	wish  state.Attach
	at    int64
	since time.Duration
	ask   request // for wish.Addr
}

func (m *Machine) want(ev Want) {
	w := &want{wish: ev.Wish, at: ev.At, since: m.now}
	n, ok := m.nets[ev.Wish.Network]
	if !ok || n.view == nil {
		m.answer(w, nil, state.Refuse(state.ErrNoNetwork, "no network %s; create it first", ev.Wish.Network))
		return
	}
	if err := ev.Wish.Check(); err != nil {
		m.answer(w, nil, err)
		return
	}
	if len(n.wants) >= wantsMax {
		m.answer(w, nil, state.Refuse(state.ErrNoAddress, "%d containers wait for an address of %s already; try again later", wantsMax, n.view.Name))
		return
	}
	n.wants = append(n.wants, w)
	if !n.ask.urgent {
		n.ask = request{} // what was asked ahead of need is asked again, now in need
	}
}

func (m *Machine) giveUp(id state.EndpointID) {
	for _, nid := range m.order {
		n := m.nets[nid]
		n.wants = slices.DeleteFunc(n.wants, func(w *want) bool { return w.wish.ID == id })
	}
}

// release is step F.
func (m *Machine) release(ev Free) {
	for _, id := range m.order {
		n := m.nets[id]
		for i := range n.allocs {
			// The number keeps a late release from taking the address of who has it now.
			if a := &n.allocs[i]; a.ID == ev.Endpoint && a.Alloc == ev.Alloc {
				m.write(entry{kind: entFree, network: n.id, id: a.ID, alloc: a.Alloc})
				if n.checked { // otherwise check will find it, if it is there
					m.out.Changes = append(m.out.Changes, state.RemoveEndpoint{ID: ev.Endpoint})
				}
				return
			}
		}
	}
}

func (m *Machine) answer(w *want, e *state.Endpoint, err error) {
	a := Answer{ID: w.wish.ID, Err: err}
	if e != nil {
		a.Endpoint, a.Addr, a.Alloc = e.ID, e.Addr, e.Alloc
	}
	m.out.Done = append(m.out.Done, a)
}

// serve answers what can be answered from own blocks, or must be refused.
func (m *Machine) serve(n *network) {
	waiting := n.wants[:0]
	for _, w := range n.wants {
		if !m.serveOne(n, w) {
			waiting = append(waiting, w)
		}
	}
	clear(n.wants[len(waiting):])
	n.wants = waiting
}

func (m *Machine) serveOne(n *network, w *want) bool {
	addr := w.wish.Addr
	if e, ok := n.held(w.wish.ID, w.wish.Container); ok {
		if addr.IsValid() && addr != e.Addr {
			m.answer(w, nil, state.Refuse(state.ErrInvalid, "%s has %s on %s already; detach it first", e.Container, e.Addr, n.view.Name))
		} else {
			m.answer(w, e, nil)
		}
		return true
	}
	if m.hesitates() {
		return false
	}
	if m.view.Killed(n.id, m.self) {
		m.answer(w, nil, state.Refuse(state.ErrNoNetwork, "network %s is being removed; create it again first", n.view.Name))
		return true
	}
	if addr.IsValid() {
		if err := m.refusal(n, w); err != nil {
			m.answer(w, nil, err)
			return true
		}
		if !slices.ContainsFunc(n.usable, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return false
		}
	} else {
		var ok bool
		if addr, ok = m.choose(n, w.wish.Container); !ok {
			return false
		}
	}
	m.allocate(n, w, addr)
	return true
}

// allocate is step A. Its guards are in what is usable, in choose and in refusal.
func (m *Machine) allocate(n *network, w *want, a netip.Addr) {
	mac := w.wish.MAC
	if mac == (state.MAC{}) {
		mac = state.MACOf(a)
	}
	names := slices.Clone(w.wish.Names)
	slices.Sort(names)
	e := state.Endpoint{
		ID: w.wish.ID, Node: m.self, Network: n.id, Container: w.wish.Container,
		Addr: a, MAC: mac, IfName: w.wish.IfName, Names: slices.Compact(names), Publish: w.wish.Publish,
		Alloc: m.lastAlloc + 1, At: w.at,
	}
	m.write(entry{kind: entAlloc, endpoint: e})
	m.out.Changes = append(m.out.Changes, state.PutEndpoint{Endpoint: e})
	m.answer(w, &e, nil)
}

// hesitates reports whether this node does not trust its log yet. It was stopped for a while: others may
// have given it up and inherited what it had.
func (m *Machine) hesitates() bool { return m.resumed && !m.settled && len(m.met) > 0 }

// choose picks an address of the own blocks for a container: the one it had a moment ago, or one that
// was not given out before, from this node's place in the subnet on, or else that which was given back
// first and has rested.
func (m *Machine) choose(n *network, container string) (netip.Addr, bool) {
	for _, r := range n.resting {
		if r.container == container && n.mine(r.addr) && !m.foreign(n, r.addr) {
			return r.addr, true
		}
	}
	from := n.place(m.self)
	for range count(n.free) {
		a, ok := pick(n.free, from)
		if !ok {
			break
		}
		if !m.foreign(n, address(a)) {
			return address(a), true
		}
		from = a + 1
	}
	for _, r := range n.resting {
		if r.until <= m.now && n.mine(r.addr) && !m.foreign(n, r.addr) {
			return r.addr, true
		}
	}
	return netip.Addr{}, false
}

// mine reports whether an address is in a block that may be allocated from.
func (n *network) mine(a netip.Addr) bool {
	return slices.ContainsFunc(n.usable, func(p netip.Prefix) bool { return p.Contains(a) })
}

// foreign reports whether another node shows an endpoint under an address of this node: it was given
// out under a root that lost.
func (m *Machine) foreign(n *network, a netip.Addr) bool {
	e, ok := n.view.At(a)
	return ok && e.Node != m.self
}

// place is where in a subnet a node looks first, at a multiple of 16: nodes that never heard of each
// other begin apart.
func (n *network) place(node state.NodeID) uint32 {
	s := n.view.Def.Subnet
	return spanOf(s).lo + uint32(mix(uint64(n.id), uint64(node))%size(s))&^15
}

// spare is how many addresses could be given out now.
func (m *Machine) spare(n *network) uint64 {
	c := count(n.free)
	for _, r := range n.resting {
		if r.until <= m.now && n.mine(r.addr) {
			c++
		}
	}
	return c
}

// rested forgets what was given back longest ago, where there is much of it.
func (m *Machine) rested(n *network) {
	for len(n.resting) > restingMax && n.resting[0].until <= m.now {
		n.resting = slices.Delete(n.resting, 0, 1)
		n.stale = true
	}
}

// refusal says why a wanted address cannot be had, from anybody; nil if it may be.
func (m *Machine) refusal(n *network, w *want) error {
	a := w.wish.Addr
	if !a.Is4() || !n.view.Def.Subnet.Contains(a) {
		return state.Refuse(state.ErrInvalid, "address %s is not in %s; choose one of %s", a, n.view.Name, n.view.Def.Subnet)
	}
	if !n.view.Def.Allocatable(a) {
		return state.Refuse(state.ErrAddressInUse, "address %s of %s is reserved; choose another", a, n.view.Name)
	}
	if i, ok := n.allocation(a); ok {
		return m.inUse(n, a, n.allocs[i].Container, m.self)
	}
	if e, ok := n.view.At(a); ok && e.Node != m.self {
		return m.inUse(n, a, e.Container, e.Node)
	}
	for _, r := range n.resting {
		if r.addr == a && r.until > m.now && r.container != w.wish.Container {
			return state.Refuse(state.ErrAddressInUse, "address %s of %s was given back by %s less than a minute ago; wait %s",
				a, n.view.Name, r.container, (r.until - m.now).Round(time.Second))
		}
	}
	return nil
}
