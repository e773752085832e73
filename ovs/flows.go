package ovs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"meshnet/ovs/flow"
	"meshnet/ovs/openflow"
	"meshnet/plan"
	"meshnet/state"
)

const (
	// readEvery is how often all flows are read back, though nothing says that they changed.
	readEvery = 5 * time.Minute
	// countEvery is how often flows are counted: what others remove or add shows by their number. The
	// switch goes through all of them, so that many are counted less often.
	countEvery  = time.Second
	countMany   = 20_000
	countRarely = 5
)

// held is what the switch is known to hold: the flows of a plan, on one connection.
type held struct {
	conn     *ofConn
	host     *plan.Host
	count    int
	read     time.Time
	doubtful bool // somebody else may have changed them
}

// knows reports whether the flows are known, so that only what changed in the plan is to be told.
func (s *Switch) knows(conn *ofConn, h *plan.Host) bool {
	k := s.held
	return k.conn == conn && !k.doubtful && !conn.Touched() && k.host != nil && k.host.Transport == h.Transport && time.Since(k.read) < readEvery
}

// flows makes the flows of the bridge those of the plan.
func (a *apply) flows(ctx context.Context) {
	conn, err := a.s.openflow(ctx)
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	known := a.s.knows(conn, a.plan)
	var add, remove []flow.Flow
	if known {
		add, remove = changes(a.s.held.host, a.plan)
	} else {
		have, err := conn.Flows(ctx)
		if err != nil {
			a.errs = append(a.errs, err)
			return
		}
		add, remove = flow.Diff(have, compile(a.plan))
		a.s.held = held{conn: conn, read: time.Now()}
	}
	a.s.held.doubtful = true
	if err := conn.Change(ctx, add, remove); err != nil {
		a.errs = append(a.errs, err)
		return
	}
	a.s.held.host, a.s.held.count, a.s.held.doubtful = a.plan, count(a.plan), false
	a.steps = append(a.steps, flowSteps(a.plan, add, remove)...)
	a.announce(ctx, conn)
}

// compile returns all flows of a plan.
func compile(h *plan.Host) []flow.Flow {
	all := flow.Base(h)
	for _, n := range h.Networks {
		all = append(all, flow.Compile(n, h)...)
	}
	return all
}

// changes returns what to add to and remove from the flows of one plan to make them those of another
// of the same transport. A network that is the same pointer in both is not looked at.
func changes(was, is *plan.Host) (add, remove []flow.Flow) {
	if !slices.Equal(was.Tunnels, is.Tunnels) {
		add, remove = flow.Diff(flow.Base(was), flow.Base(is))
	}
	for id, n := range is.Networks {
		old := was.Networks[id]
		switch {
		case old == n:
		case old == nil:
			add = append(add, flow.Compile(n, is)...)
		default:
			a, r := flow.Change(old, n, is)
			add, remove = append(add, a...), append(remove, r...)
		}
	}
	for id, old := range was.Networks {
		if is.Networks[id] == nil {
			remove = append(remove, flow.Compile(old, was)...)
		}
	}
	return add, without(remove, add)
}

// without leaves out what is added too: a port's number may go from one network to another, and a
// bundle removes first.
func without(remove, add []flow.Flow) []flow.Flow {
	if len(remove) == 0 || len(add) == 0 {
		return remove
	}
	kept, _ := flow.Diff(nil, add) // sorted
	return slices.DeleteFunc(remove, func(f flow.Flow) bool {
		_, found := slices.BinarySearchFunc(kept, f, flow.Compare)
		return found
	})
}

// count returns how many flows a plan has.
func count(h *plan.Host) int {
	n := flow.CountBase(h)
	for _, net := range h.Networks {
		n += flow.Count(net, h)
	}
	return n
}

// recount tells of drift when the number of our flows is another than we left.
func (s *Switch) recount(ctx context.Context, tick int) {
	if !s.applying.TryLock() {
		return // an Apply is under way
	}
	defer s.applying.Unlock()
	k := &s.held
	if k.conn == nil || ended(k.conn.Done()) || k.doubtful || k.count > countMany && tick%countRarely != 0 {
		return
	}
	n, err := k.conn.Count(ctx)
	if err == nil && n == k.count {
		return
	}
	k.doubtful = true
	s.drifted()
}

// Count returns how many flows of the bridge bear our mark.
func (c *ofConn) Count(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	end, err := c.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("count flows: %w", err)
	}
	defer end()
	r := &request{answer: func(_ openflow.Header, m openflow.Message) (bool, error) {
		switch m := m.(type) {
		case openflow.FlowCountReply:
			n = int(m.Flows)
			return true, nil
		case openflow.Error:
			return true, m
		}
		return true, fmt.Errorf("unexpected %T", m)
	}}
	c.expect(r, 1)
	err = c.send(r.first, openflow.FlowCountRequest{Cookie: flow.BaseCookie, CookieMask: flow.CookieMask})
	if err == nil {
		err = c.wait(ctx, r)
	}
	if err != nil {
		c.forget(r)
		return 0, fmt.Errorf("count flows: %w", err)
	}
	return n, nil
}

// announceMax bounds the members that are announced at once: more come only when a mesh is joined.
const announceMax = 64

// announce tells the local members of each network who has an address now, where that is new: one of
// them may remember who had it before. What is told is an ARP answer that nobody asked for (RFC 5227,
// section 3); it does not leave the host.
func (a *apply) announce(ctx context.Context, conn *ofConn) {
	shown := a.s.announced
	a.s.announced = a.plan
	if shown == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	end, err := conn.begin(ctx)
	if err != nil {
		return // the connection ended; the next one reads everything
	}
	defer end()
	left := announceMax
	for id, n := range a.plan.Networks {
		old := shown.Networks[id]
		if old == nil || old == n || len(old.Ports) == 0 {
			continue
		}
		for _, m := range arrivals(old, n) {
			if left--; left < 0 {
				return
			}
			if err := conn.send(conn.nextXID(), announcement(n, m)); err != nil {
				return
			}
		}
	}
}

// arrival is an address and who has it now.
type arrival struct {
	addr netip.Addr
	mac  state.MAC
}

// arrivals returns the addresses of a network that changed hands or are new.
func arrivals(old, n *plan.Network) (all []arrival) {
	before := make(map[netip.Addr]state.MAC, len(old.Ports))
	gone, came := n.Since(old)
	for _, r := range gone {
		before[r.Addr] = r.MAC
	}
	for _, p := range old.Ports {
		before[p.Addr] = p.MAC
	}
	for _, r := range came {
		if before[r.Addr] != r.MAC {
			all = append(all, arrival{r.Addr, r.MAC})
		}
	}
	for _, p := range n.Ports {
		if before[p.Addr] != p.MAC {
			all = append(all, arrival{p.Addr, p.MAC})
		}
	}
	return all
}

// announcement is an ARP answer to all local members of a network but the one it is about.
func announcement(n *plan.Network, m arrival) openflow.PacketOut {
	addr := m.addr.As4()
	b := make([]byte, 60)
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(b[6:], m.mac[:])
	copy(b[12:], []byte{0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2})
	copy(b[22:], m.mac[:])
	copy(b[28:], addr[:])
	copy(b[32:], m.mac[:])
	copy(b[38:], addr[:])
	p := openflow.PacketOut{Data: b}
	for _, port := range n.Ports {
		if port.Addr != m.addr {
			p.Actions = append(p.Actions, flow.Output{Port: port.OFPort})
		}
	}
	return p
}

func (c *ofConn) nextXID() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.xid++
	return c.xid
}

// flowSteps tells how many flows came and went, one step a network, by cookie.
func flowSteps(h *plan.Host, add, remove []flow.Flow) []plan.Step {
	names := map[uint64]string{flow.BaseCookie: "of the bridge"}
	for id, n := range h.Networks {
		names[flow.Cookie(id)] = "of network " + n.Name
	}
	plus, minus := map[string]int{}, map[string]int{}
	count := func(counts map[string]int, flows []flow.Flow) {
		for _, f := range flows {
			name, ok := names[f.Cookie]
			if !ok {
				name = "of networks that are no longer here"
			}
			plus[name] += 0 // so that it is a key
			counts[name]++
		}
	}
	count(plus, add)
	count(minus, remove)
	var steps []plan.Step
	for _, name := range slices.Sorted(maps.Keys(plus)) {
		steps = append(steps, plan.Step{Op: "flows", What: fmt.Sprintf("+%d -%d %s", plus[name], minus[name], name)})
	}
	return steps
}
