package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshnet/state"
)

// actKind is what an operator or fate does.
type actKind uint8

const (
	actCreate actKind = iota
	actRemove
	actAttach
	actAttachAt // a chosen address
	actBurst    // several containers at once
	actDetach
	actKill  // the daemon
	actPower // the machine
	actFault // a crash within the next commit
	actLost  // the disk: it comes back as a new node
	actImage // of the disk
	actRollback
	actSplit
	actOneWay
	actFlap
	actJoin
	actClock
	actLie
	actForgetDead
	actForgetLiving // a wrong operator
	actExtra
	acts
)

var actNames = [...]string{"create", "rm", "attach", "attach --ip", "attach many", "detach", "kill", "power off", "crash in commit",
	"lose disk", "image disk", "roll disk back", "split", "one-way cut", "flap", "join", "clock", "lie", "rmpeer dead", "rmpeer living", "later version"}

// act is one of them. What it is done to follows from pick.
type act struct {
	at   time.Duration
	kind actKind
	pick uint64
	skip bool
}

// chaos is all that a schedule depends on: it follows from the seed and the number of hosts.
type chaos struct {
	seed    uint64
	nodes   int
	mild    bool
	loss    float64
	double  float64
	delay   time.Duration // the longest
	slow    int           // slot; -1: none
	late    []time.Duration
	skew    []time.Duration
	drift   []float64
	flat    int
	newer   int // slot that runs a later version; -1: none
	version string
	subnet  netip.Prefix // of default
	subnets []string
	names   int
	end     time.Duration
	acts    []act
	plain   []string // what was made plain of this, by name
}

// weights is how often what is done, in a mild schedule and in a wild one.
var weights = [acts]struct{ mild, wild int }{
	actCreate: {5, 5}, actRemove: {2, 3}, actAttach: {40, 30}, actAttachAt: {5, 5}, actBurst: {2, 2}, actDetach: {24, 18},
	actKill: {2, 3}, actPower: {0, 2}, actFault: {1, 5}, actLost: {0, 1}, actImage: {0, 2}, actRollback: {0, 2},
	actSplit: {2, 5}, actOneWay: {0, 3}, actFlap: {0, 2}, actJoin: {3, 6}, actClock: {0, 2}, actLie: {0, 2},
	actForgetDead: {0, 1}, actForgetLiving: {0, 1}, actExtra: {1, 2},
}

// newChaos draws a schedule. Half of all seeds are mild, and how much happens differs by a factor of
// ten: where everything always fails nothing ever happens.
func newChaos(seed uint64, nodes int) chaos {
	d := dice(mix(seed))
	c := chaos{seed: seed, nodes: nodes, slow: -1, newer: -1, version: "dev"}
	c.mild = d.chance(0.5)
	c.loss = [...]float64{0, 0, 0.01, 0.05, 0.3}[d.below(5)]
	c.double = [...]float64{0, 0.01, 0.1}[d.below(3)]
	c.delay = [...]time.Duration{300 * time.Microsecond, 2 * time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}[d.below(4)]
	if c.mild {
		c.loss = min(c.loss, 0.05)
		c.delay = min(c.delay, 20*time.Millisecond)
	}
	c.late, c.skew, c.drift = make([]time.Duration, nodes), make([]time.Duration, nodes), make([]float64, nodes)
	if !c.mild {
		for i := range nodes {
			c.skew[i] = d.span(-time.Hour, time.Hour)
			c.drift[i] = float64(d.below(200)-100) / 1000
			if d.chance(0.1) {
				c.late[i] = d.span(0, 15*time.Second)
			}
		}
		if d.chance(0.2) {
			c.slow = d.below(nodes)
		}
	}
	if d.chance(0.25) {
		c.newer = d.below(nodes)
	}
	if d.chance(0.25) {
		c.flat = 2 // trees also in a small mesh
	}
	if d.chance(0.4) {
		c.subnet = netip.MustParsePrefix("10.1.0.0/24")
	}
	c.names = 1 + d.below(3)
	c.subnets = [][]string{
		{"10.7.0.0/29", "10.8.0.0/28"}, {"10.7.0.0/28", "10.7.0.0/29"}, {"10.7.0.0/24"}, {"10.7.0.0/16", "10.8.0.0/27"},
	}[d.below(4)]
	n := 30
	for d.chance(0.35) && n < 300 {
		n = n * 3 / 2
	}
	gap := d.span(20*time.Millisecond, 400*time.Millisecond)
	at := time.Second
	if d.chance(0.5) {
		at = 4 * time.Second
	}
	c.acts = append(c.acts, act{at: at, kind: actCreate, pick: d.next()})
	weights := c.weigh(&d)
	total := 0
	for _, w := range weights {
		total += w
	}
	for range n {
		at += d.span(0, 2*gap)
		x := d.below(total)
		for k, w := range weights {
			if x -= w; x < 0 {
				c.acts = append(c.acts, act{at: at, kind: actKind(k), pick: d.next()})
				break
			}
		}
	}
	c.end = at + d.span(0, 2*time.Second)
	return c
}

// weigh draws how often what is done. A wild schedule leaves some kinds out and has others often, so
// that between them what is rare meets what else is rare (swarm testing: Groce et al. 2012).
func (c *chaos) weigh(d *dice) (out [acts]int) {
	for k, w := range weights {
		switch {
		case c.mild:
			out[k] = w.mild
		case actKind(k) == actAttach || actKind(k) == actDetach:
			out[k] = w.wild
		default:
			out[k] = w.wild * [...]int{0, 1, 1, 5}[d.below(4)]
		}
	}
	return out
}

// String is the schedule for people.
func (c *chaos) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, mild %v, loss %v, doubled %v, delays to %v, slow %d, late %v, skew %v, drift %v, flat %d, later version %d, default %v, subnets %v, names %d, heal at %.3f s\n",
		c.nodes, c.mild, c.loss, c.double, c.delay, c.slow, c.late, c.skew, c.drift, c.flat, c.newer, c.subnet, c.subnets, c.names, c.end.Seconds())
	for i, a := range c.acts {
		if !a.skip {
			fmt.Fprintf(&b, "  act %d at %.3f s: %s (%x)\n", i, a.at.Seconds(), actNames[a.kind], a.pick)
		}
	}
	return b.String()
}

// act does it.
func (w *world) act(a act) {
	pick := dice(a.pick)
	h := w.hosts[pick.below(len(w.hosts))]
	w.note("-- %s %s", actNames[a.kind], h.name)
	switch a.kind {
	case actCreate, actRemove, actAttach, actAttachAt, actBurst, actDetach, actForgetDead, actForgetLiving:
		if h.up {
			w.operate(a.kind, h, &pick)
			if h.up {
				h.commit()
			}
		}
	case actKill, actPower:
		if h.up {
			h.stop(a.kind == actPower, pick.next(), pick.span(10*time.Millisecond, 3*time.Second))
		}
	case actFault:
		h.fault = fault{1 + point(pick.below(int(points))), pick.chance(0.5), pick.span(10*time.Millisecond, 3*time.Second), pick.next()}
	case actLost:
		w.loseDisk(h, pick.span(10*time.Millisecond, 3*time.Second))
	case actImage:
		if h.up {
			image := h.disk
			image.recs = slices.Clip(image.recs)
			h.image = &image
		}
	case actRollback:
		w.rollBack(h, &pick)
	case actSplit, actOneWay, actFlap, actJoin:
		w.part(a.kind, h, &pick)
	case actClock:
		h.skew += pick.span(-time.Hour, time.Hour)
	case actLie:
		w.lie(h, &pick)
	case actExtra:
		if w.c.newer >= 0 {
			if n := w.hosts[w.c.newer]; n.up {
				n.extra(pick.next())
				n.commit()
			}
		}
	}
}

// operate is what people do.
func (w *world) operate(kind actKind, h *host, pick *dice) {
	h.refresh()
	nets := h.view.Networks()
	if kind == actCreate {
		h.create(state.Create{
			Name: string(rune('n' + pick.below(w.c.names))), Subnet: netip.MustParsePrefix(w.c.subnets[pick.below(len(w.c.subnets))]),
			Force: pick.chance(0.7),
		})
		return
	}
	if kind == actForgetDead || kind == actForgetLiving {
		w.forget(kind, h, pick)
		return
	}
	if kind == actDetach {
		ids := sortedKeys(h.wishes)
		for id := range h.wants {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		if len(ids) > 0 {
			h.detach(ids[pick.below(len(ids))])
		}
		return
	}
	if len(nets) == 0 {
		return
	}
	n := nets[pick.below(len(nets))]
	switch kind {
	case actRemove:
		h.remove(n.ID, pick.chance(0.5))
	case actAttach:
		w.attach(h, n, pick, netip.Addr{})
	case actAttachAt:
		bits := n.Def.Subnet.Addr().As4()
		bits[3] += byte(pick.below(1 << min(8, 32-n.Def.Subnet.Bits())))
		w.attach(h, n, pick, netip.AddrFrom4(bits))
	case actBurst:
		for range 2 + pick.below(6) {
			w.attach(h, n, pick, netip.Addr{})
		}
	}
}

func (w *world) attach(h *host, n *state.Network, pick *dice, addr netip.Addr) {
	id := h.attach(state.Attach{
		ID: state.EndpointID(pick.next() | 1), Network: n.ID, Container: fmt.Sprintf("c%d", pick.below(24)), Addr: addr,
	})
	if id != 0 && pick.chance(0.3) {
		w.after(pick.span(0, 5*time.Second), event{kind: evGiveUp, host: int32(h.slot), life: h.life, arg: uint64(id)})
	}
}

func (w *world) forget(kind actKind, h *host, pick *dice) {
	if kind == actForgetDead {
		if len(w.dead) > 0 {
			d := w.dead[pick.below(len(w.dead))]
			h.forget(d.id, d.epoch)
		}
		return
	}
	o := w.hosts[pick.below(len(w.hosts))]
	if n, ok := h.view.Node(o.id); ok && o != h {
		if w.excuse == "" {
			w.excuse = fmt.Sprintf("rmpeer of the living %s", o.name)
		}
		w.wronged = true
		h.forget(o.id, n.Epoch)
	}
}

func (w *world) loseDisk(h *host, down time.Duration) {
	if h.disk.fresh {
		return // it never ran
	}
	w.note("%s loses its disk", h.name)
	w.dead = append(w.dead, departed{h.id, h.disk.epoch + 1, h.slot})
	h.releaseAll()
	n := w.newHost(h.slot, uint64(len(w.dead)))
	n.life = h.life + 1
	n.kernel, n.skew = h.kernel+1, h.skew
	h.up = false
	w.hosts[h.slot] = n
	w.wake[h.slot] = 0
	w.after(down, event{kind: evStart, host: int32(h.slot), life: n.life})
	w.members(2 * time.Second)
}

// rollBack restores an image of a host's disk, of before.
func (w *world) rollBack(h *host, pick *dice) {
	if h.image == nil {
		return
	}
	if w.excuse == "" {
		w.excuse = fmt.Sprintf("the disk of %s was rolled back", h.name)
	}
	// Else the state directory alone is put back, under a daemon that was stopped.
	power := pick.chance(0.5) || !*resumedFlag
	if h.up {
		h.stop(power, pick.next(), pick.span(10*time.Millisecond, 3*time.Second))
	} else if power {
		h.kernel++
	}
	h.releaseAll()
	h.heads = nil
	h.disk = *h.image
	h.disk.recs = slices.Clip(h.disk.recs)
}

// part cuts links or joins them again.
func (w *world) part(kind actKind, h *host, pick *dice) {
	n := len(w.hosts)
	sides := pick.next()
	switch kind {
	case actSplit:
		for i := range n {
			for j := range n {
				w.cut[i*n+j] = side(sides, i) != side(sides, j)
			}
		}
	case actOneWay:
		for j := range n {
			if j != h.slot && side(sides, j) {
				w.cut[h.slot*n+j] = true
			}
		}
	case actJoin:
		clear(w.cut)
	case actFlap:
		f := flap{until: w.now + pick.span(time.Second, 8*time.Second), every: pick.span(50*time.Millisecond, time.Second)}
		for j := range n {
			if j != h.slot && side(sides, j) {
				f.links = append(f.links, h.slot*n+j)
				if pick.chance(0.7) {
					f.links = append(f.links, j*n+h.slot)
				}
			}
		}
		w.flaps = append(w.flaps, f)
		w.flap(len(w.flaps) - 1)
		return
	}
	w.members([...]time.Duration{300 * time.Millisecond, 3 * time.Second}[pick.below(2)])
}

func side(bits uint64, i int) bool { return mix(bits+uint64(i/64))>>(i%64)&1 == 1 }

// lie tells a host that some answer who do not, and that some do not who do.
func (w *world) lie(h *host, pick *dice) {
	if !h.up {
		return
	}
	var alive []state.NodeID
	for _, o := range w.hosts {
		if o != h && pick.chance(0.5) {
			alive = append(alive, o.id)
		}
	}
	if len(w.dead) > 0 && pick.chance(0.5) {
		alive = append(alive, w.dead[pick.below(len(w.dead))].id)
	}
	if pick.chance(0.2) {
		alive = append(alive, state.NodeID(pick.next()))
	}
	slices.Sort(alive)
	alive = slices.Compact(alive)
	w.note("%s is told that %s answer", h.name, w.names(alive))
	h.meet(alive)
	h.commit()
	w.after(pick.span(time.Second, 6*time.Second), event{kind: evMembers, host: int32(h.slot)})
}
