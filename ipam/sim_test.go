package ipam

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

var (
	simSeed  = flag.Uint64("seed", 0, "run this seed of the simulation only")
	simTrace = flag.Int("lines", 60, "how many lines of the simulation to print on failure")
	simSeeds = flag.Uint64("seeds", 200, "how many seeds of the simulation to run")
)

// kept is one line of a simulated node's log.
type kept struct {
	rec Record
	out state.Out
}

// host is a node of the simulation: what survives a crash, and what does not.
type host struct {
	id     state.NodeID
	side   int // of the partition
	log    []kept
	synced int
	epoch  crdt.Epoch
	// held is what containers on this host use: answers that were released and not freed. It
	// outlives the daemon but not the machine.
	held map[state.EndpointID]state.Endpoint

	dead bool // for good, as people say; it may come back
	lost bool // it was given up while it had addresses: another may have them

	up    bool
	doc   *state.Doc
	m     *Machine
	view  *state.View
	next  time.Duration
	wants map[state.EndpointID]state.Attach
	fails map[state.EndpointID]error
}

type event struct {
	at   time.Duration
	seq  int
	what func()
}

// world is a seeded run of several hosts.
type world struct {
	t       *testing.T
	seed    uint64
	r       *rand.Rand
	now     time.Duration
	hosts   []*host
	queue   []event
	seq     int
	loss    float64 // of messages, both ways to lose and to double
	crash   float64 // chance of a crash within a step
	nets    []state.NetworkID
	nextID  state.EndpointID
	trace   []string
	playing bool
	deaths  bool
}

func newWorld(t *testing.T, seed uint64, hosts int) *world {
	w := &world{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 1)), nextID: 1}
	for range hosts {
		h := &host{id: state.NodeID(w.r.Uint64() | 1), epoch: 1, held: map[state.EndpointID]state.Endpoint{}}
		h.doc = state.NewDoc(h.id, 1, crdt.Actor(w.r.Uint64()))
		w.hosts = append(w.hosts, h)
		w.boot(h)
		w.change(h, w.record(h))
	}
	w.members()
	return w
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%8.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fatal(format string, args ...any) {
	w.t.Helper()
	tail := w.trace[max(0, len(w.trace)-*simTrace):]
	for _, l := range tail {
		w.t.Log(l)
	}
	for _, h := range w.hosts {
		for _, id := range h.m.order {
			n := h.m.nets[id]
			w.t.Logf("%s %016x up %v epoch %d born %d root %v usable %v free %d allocs %d", w.name(h.id), uint64(id), h.up, h.epoch, h.m.born, n.root, n.usable, count(n.free), len(n.allocs))
			for _, b := range n.blocks {
				w.t.Logf("  %v ver %d kind %d state %d to %s/%d root %s %v", b.Prefix, b.Ver, b.Kind, b.State, w.name(b.To), b.ToEpoch, w.name(b.Root.Creator), b.Lineage)
			}
			for _, b := range n.estate {
				w.t.Logf("  estate %v of %s ver %d kind %d to %s %v", b.Prefix, w.name(b.Node), b.Ver, b.Kind, w.name(b.To), b.Lineage)
			}
			if q := n.inquiry; q != nil {
				w.t.Logf("  asks for %v; silent %v, told %v, highs %v", q.ranges, h.m.silentTo(q), n.told, q.highs)
			}
			for _, x := range n.highs {
				w.t.Logf("  high %v ver %d", x.prefix, x.ver)
			}
		}
	}
	w.t.Fatalf("seed %d: %s", w.seed, fmt.Sprintf(format, args...))
}

func (w *world) name(id state.NodeID) string {
	for i, h := range w.hosts {
		if h.id == id {
			return string(rune('a' + i))
		}
	}
	return "?"
}

func (w *world) after(d time.Duration, what func()) {
	w.seq++
	e := event{w.now + d, w.seq, what}
	i, _ := slices.BinarySearchFunc(w.queue, e, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.seq, b.seq))
	})
	w.queue = slices.Insert(w.queue, i, e)
}

// run lets time pass until t.
func (w *world) run(until time.Duration) {
	for {
		at := until + 1
		if len(w.queue) > 0 {
			at = w.queue[0].at
		}
		var tick *host
		for _, h := range w.hosts {
			if h.up && h.next != 0 && h.next < at {
				at, tick = h.next, h
			}
		}
		if at > until {
			w.now = until
			return
		}
		w.now = max(w.now, at)
		if tick != nil {
			tick.next = 0
			w.step(tick, Tick{})
			if tick.next != 0 && tick.next <= w.now {
				w.fatal("%s wants a tick at %v, now", w.name(tick.id), tick.next)
			}
			continue
		}
		e := w.queue[0]
		w.queue = w.queue[1:]
		e.what()
	}
}

// deliver does what arrives at a host after a delay, or twice, or never.
func (w *world) deliver(from, to *host, what func()) {
	for range 2 {
		if w.r.Float64() >= w.loss {
			delay := time.Duration(w.r.Int64N(int64(20 * time.Millisecond)))
			if w.r.Float64() < w.loss {
				delay *= 50
			}
			w.after(delay, func() {
				if to.up && from.side == to.side {
					what()
				}
			})
		}
		if w.r.Float64() >= w.loss {
			return
		}
	}
}

func (w *world) tell(h *host, out state.Out) {
	if out.Empty() {
		return
	}
	for _, to := range w.hosts {
		if to != h {
			w.deliver(h, to, func() { w.merge(to, out) })
		}
	}
}

func (w *world) merge(h *host, in state.In) {
	news := h.doc.Merge(in)
	w.outlive(h)
	if _, ok := h.doc.Doubt(); ok {
		h.epoch = max(h.epoch, h.doc.Epoch())
		if e, _ := h.doc.Doubt(); e > h.epoch {
			h.epoch = e
		}
		h.epoch++
		out := h.doc.Renew(h.epoch, crdt.Actor(w.r.Uint64()))
		h.log = append(h.log, kept{out: out})
		h.synced = len(h.log)
		w.tell(h, out)
	}
	if !news.Empty() {
		w.look(h)
	}
}

// outlive begins a new life of a host that hears that it was given up.
func (w *world) outlive(h *host) {
	e, ok := h.doc.View().Forgotten(h.id)
	if !ok || e < h.doc.Epoch() || !h.up {
		return
	}
	w.note("%s hears that it was given up", w.name(h.id))
	h.lost = h.lost || len(h.held) > 0
	w.look(h) // it fences
	h.epoch = max(h.epoch, h.doc.Epoch(), e) + 1
	out := h.doc.Renew(h.epoch, crdt.Actor(w.r.Uint64()))
	h.log = append(h.log, kept{out: out})
	h.synced = len(h.log)
	w.tell(h, out)
	w.change(h, w.record(h))
}

func (w *world) record(h *host) state.Change {
	i := slices.Index(w.hosts, h)
	return state.PutNode{Node: state.Node{
		ID: h.id, Name: string(rune('a' + i)), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), MTU: 1500,
	}}
}

// look steps a host's machine with its view, until it changes nothing.
func (w *world) look(h *host) {
	if v := h.doc.View(); h.up && v != h.view {
		h.view = v
		w.step(h, Saw{v})
	}
}

// change applies a change that is not the machine's.
func (w *world) change(h *host, cs ...state.Change) {
	out, err := h.doc.Apply(cs...)
	if err != nil {
		w.fatal("%s: %v", w.name(h.id), err)
	}
	h.log = append(h.log, kept{out: out})
	h.synced = len(h.log)
	w.tell(h, out)
	w.look(h)
}

// step is the shell of a machine.
func (w *world) step(h *host, ev Event) {
	if !h.up {
		return
	}
	eff := h.m.Step(w.now, ev)
	h.next = eff.Next
	if len(eff.Log) > 1 {
		w.fatal("%d records in one step", len(eff.Log))
	}
	for _, rec := range eff.Log {
		h.log = append(h.log, kept{rec: rec})
	}
	for i := range h.m.entries {
		switch e := &h.m.entries[i]; e.kind {
		case entPut:
			w.note("%s: puts %v ver %d kind %d state %d to %s/%d (%T)", w.name(h.id), e.block.Prefix, e.block.Ver, e.block.Kind, e.block.State, w.name(e.block.To), e.block.ToEpoch, ev)
		case entRemove:
			w.note("%s: removes %v (%T)", w.name(h.id), e.prefix, ev)
		case entDrop:
			w.note("%s: drops %016x (%T)", w.name(h.id), uint64(e.network), ev)
		}
	}
	crash := w.r.Float64() < w.crash && (len(eff.Log) > 0 || len(eff.Send) > 0)
	if crash && w.r.IntN(2) == 0 {
		w.down(h, w.r.IntN(2) == 0)
		return
	}
	var out state.Out
	var err error
	if len(eff.Changes) > 0 {
		out, err = h.doc.Apply(eff.Changes...)
	}
	if err != nil {
		w.fatal("%s after %T: %v; %+v", w.name(h.id), ev, err, eff.Changes)
	}
	if !out.Empty() {
		h.log = append(h.log, kept{out: out})
	}
	if eff.Sync {
		h.synced = len(h.log)
	}
	w.tell(h, out)
	if crash {
		w.down(h, w.r.IntN(2) == 0)
		return
	}
	for _, e := range eff.Send {
		for _, to := range w.hosts {
			if to.id == e.To {
				w.deliver(h, to, func() { w.step(to, Msg{h.id, e.Body}) })
			}
		}
	}
	for _, a := range eff.Done {
		w.done(h, a)
	}
	w.look(h)
}

func (w *world) done(h *host, a Answer) {
	wish, ok := h.wants[a.ID]
	if !ok {
		w.fatal("%s: an answer to %v, who did not ask", w.name(h.id), a.ID)
	}
	delete(h.wants, a.ID)
	if a.Err != nil {
		w.note("%s: %s: %v", w.name(h.id), wish.Container, a.Err)
		h.fails[a.ID] = a.Err
		return
	}
	w.note("%s: %s has %s", w.name(h.id), wish.Container, a.Addr)
	h.held[a.Endpoint] = state.Endpoint{ID: a.Endpoint, Network: wish.Network, Addr: a.Addr, Alloc: a.Alloc, Container: wish.Container}
	w.unique(h, wish.Network, a.Addr, a.Endpoint)
}

// unique is the invariant: no address is held by two under one root.
func (w *world) unique(h *host, net state.NetworkID, addr netip.Addr, id state.EndpointID) {
	for _, o := range w.hosts {
		for _, e := range o.held {
			if e.Network == net && e.Addr == addr && (e.ID != id || o != h) && w.roots(net) < 2 && !o.dead && !o.lost && !h.lost {
				w.fatal("%s on %016x is held by %s and %s", addr, uint64(net), w.name(h.id), w.name(o.id))
			}
		}
	}
}

// roots is how many roots of a network any host knows.
func (w *world) roots(net state.NetworkID) int {
	seen := map[state.Root]bool{}
	for _, h := range w.hosts {
		if n, ok := h.m.nets[net]; ok {
			for _, b := range n.blocks {
				seen[b.Root] = true
			}
			for _, o := range n.highs {
				seen[o.root] = true
			}
		}
	}
	return len(seen)
}

// down crashes a host's daemon, or, with power, the whole host: what was not synced is then lost.
func (w *world) down(h *host, power bool) {
	h.up, h.view, h.next = false, nil, 0
	if power {
		h.log = h.log[:h.synced+w.r.IntN(len(h.log)-h.synced+1)]
		h.synced = len(h.log)
		clear(h.held)
		h.epoch++
	}
	w.note("%s down, power %v", w.name(h.id), power)
	w.after(time.Duration(w.r.Int64N(int64(3*time.Second))), func() { w.restart(h, power) })
	w.members()
}

func (w *world) restart(h *host, power bool) {
	h.doc = state.NewDoc(h.id, 1, crdt.Actor(w.r.Uint64()))
	for _, k := range h.log {
		h.doc.Restore(k.out)
	}
	h.synced = len(h.log)
	if h.dead {
		return
	}
	w.note("%s up", w.name(h.id))
	var out state.Out
	if power {
		h.epoch = max(h.epoch, h.doc.Epoch()+1)
		out = h.doc.Renew(h.epoch, crdt.Actor(w.r.Uint64()))
		h.log = append(h.log, kept{out: out})
		h.synced = len(h.log)
	}
	w.boot(h)
	// What the log holds is in use again: containers that outlived the daemon, or start again.
	for _, id := range h.m.order {
		for _, e := range h.m.nets[id].allocs {
			h.held[e.ID] = e
		}
	}
	for id, e := range h.held {
		if i, ok := h.m.network(e.Network).allocation(e.Addr); !ok || h.m.network(e.Network).allocs[i].ID != id {
			w.fatal("%s: %s of %s was answered and is not in the log", w.name(h.id), e.Addr, e.Container)
		}
		w.unique(h, e.Network, e.Addr, e.ID)
	}
	w.tell(h, out)
	w.outlive(h)
	w.look(h)
	w.members()
	w.after(time.Second, func() { w.step(h, Settled{int64(w.now / time.Second)}) })
}

func (w *world) boot(h *host) {
	var recs []Record
	for _, k := range h.log {
		if k.rec != nil {
			recs = append(recs, k.rec)
		}
	}
	h.up, h.wants, h.fails = true, map[state.EndpointID]state.Attach{}, map[state.EndpointID]error{}
	h.m = New(Config{Self: h.id, Epoch: h.doc.Epoch(), Records: recs, Quarantine: 5 * time.Second})
}

// members tells every host, after a while, who answers.
func (w *world) members() {
	for _, h := range w.hosts {
		w.after(time.Duration(w.r.Int64N(int64(500*time.Millisecond))), func() {
			w.step(h, Members{w.reach(h)})
		})
	}
}

func (w *world) reach(h *host) []state.NodeID {
	var ids []state.NodeID
	for _, o := range w.hosts {
		if o != h && o.up && o.side == h.side {
			ids = append(ids, o.id)
		}
	}
	return ids
}

// gossip lets hosts compare what they know, each with another, again and again.
func (w *world) gossip() {
	for _, h := range w.hosts {
		o := w.hosts[w.r.IntN(len(w.hosts))]
		if h.up && o.up && o != h && h.side == o.side {
			w.pull(h, o)
		}
	}
	every := 300 * time.Millisecond
	if !w.playing {
		every = 2 * time.Second
	}
	w.after(every, w.gossip)
}

func (w *world) pull(h, from *host) {
	if h.doc.Digest() == from.doc.Digest() {
		return
	}
	for b := range crdt.Buckets {
		heads := h.doc.Heads(b)
		for _, o := range from.doc.Heads(b) {
			if !slices.ContainsFunc(heads, func(x crdt.Head) bool { return x.Node == o.Node }) {
				heads = append(heads, crdt.Head{Node: o.Node})
			}
		}
		out, _ := from.doc.Missing(heads, 1<<20)
		w.merge(h, out)
	}
	w.merge(h, state.Out{Shared: []crdt.Delta{from.doc.Shared()}})
}

func (w *world) create(h *host, name, subnet string, founded bool) {
	def, err := state.Create{Name: name, Subnet: netip.MustParsePrefix(subnet)}.Definition(nil)
	if err != nil {
		w.fatal("%v", err)
	}
	w.change(h, state.CreateNetwork{Def: def, At: 1, Force: true})
	if id := def.ID(); founded {
		w.step(h, Founded{id, int64(w.now / time.Second)})
		w.nets = append(w.nets, id)
	} else if !slices.Contains(w.nets, id) {
		w.nets = append(w.nets, id)
	}
}

func (w *world) want(h *host, net state.NetworkID, addr netip.Addr) state.EndpointID {
	if !h.up {
		return 0
	}
	if _, ok := h.view.Network(net); !ok {
		return 0
	}
	id := w.nextID
	w.nextID++
	wish := state.Attach{ID: id, Network: net, Container: fmt.Sprintf("c%d", id), Addr: addr}
	h.wants[id] = wish
	w.step(h, Want{Wish: wish, At: int64(w.now / time.Second)})
	return id
}

func (w *world) free(h *host) {
	ids := make([]state.EndpointID, 0, len(h.held))
	for id := range h.held {
		ids = append(ids, id)
	}
	if !h.up || len(ids) == 0 {
		return
	}
	slices.Sort(ids)
	e := h.held[ids[w.r.IntN(len(ids))]]
	delete(h.held, e.ID)
	w.note("%s: %s gives back %s", w.name(h.id), e.Container, e.Addr)
	w.step(h, Free{e.ID, e.Alloc})
}

// play does something to the world.
func (w *world) play() {
	if !w.playing {
		return
	}
	h := w.hosts[w.r.IntN(len(w.hosts))]
	net := w.nets[w.r.IntN(len(w.nets))]
	switch x := w.r.IntN(100); {
	case x < 50:
		w.want(h, net, netip.Addr{})
	case x < 60:
		if n, ok := w.hosts[0].doc.View().Network(net); ok {
			s := n.Def.Subnet
			w.want(h, net, address(spanOf(s).lo+w.r.Uint32N(uint32(size(s)))))
		}
	case x < 85:
		w.free(h)
	case x < 90:
		for _, o := range w.hosts {
			o.side = w.r.IntN(2)
		}
		w.note("split %v", sides(w.hosts))
		w.members()
	case x < 96:
		w.join()
	case x < 97:
		w.bury(h)
	case h.up:
		w.down(h, w.r.IntN(2) == 0)
	}
	w.after(time.Duration(w.r.Int64N(int64(400*time.Millisecond))), w.play)
}

// bury ends a host for good and has one that lives give it up; in half of all cases it comes back later
// with the disk it had.
func (w *world) bury(h *host) {
	living := w.hosts[w.r.IntN(len(w.hosts))]
	down := slices.ContainsFunc(w.hosts, func(o *host) bool { return o.dead })
	if down || !h.up || !living.up || living == h || !w.deaths {
		return
	}
	w.note("%s dies for good", w.name(h.id))
	h.up, h.view, h.next, h.dead = false, nil, 0, true
	h.lost = h.lost || len(h.held) > 0
	w.members()
	w.after(time.Second, func() {
		if living.up && !living.dead {
			w.expel(living, h)
		} else {
			w.rise(h)
		}
	})
}

func (w *world) expel(by, h *host) {
	node, ok := by.doc.View().Node(h.id)
	if !ok || by.m.fenced() {
		w.rise(h)
		return
	}
	w.note("%s: rmpeer %s", w.name(by.id), w.name(h.id))
	w.change(by, state.Forget{Node: h.id, Epoch: node.Epoch})
	w.after(time.Duration(3+w.r.IntN(15))*time.Second, func() { w.rise(h) })
}

// rise brings a dead host back.
func (w *world) rise(h *host) {
	h.dead = false
	w.restart(h, false)
}

func sides(hosts []*host) (out []int) {
	for _, h := range hosts {
		out = append(out, h.side)
	}
	return out
}

func (w *world) join() {
	for _, h := range w.hosts {
		h.side = 0
	}
	w.members()
}

// calm ends all faults and lets what is under way end, cooldowns too.
func (w *world) calm() {
	w.loss, w.crash = 0, 0
	w.playing = false
	w.join()
	w.run(w.now + 90*time.Second)
	for _, h := range w.hosts {
		if h.doc.Digest() != w.hosts[0].doc.Digest() {
			w.fatal("%s and a differ", w.name(h.id))
		}
		if len(h.wants) > 0 {
			w.fatal("%s: %d wants were not answered", w.name(h.id), len(h.wants))
		}
	}
	w.settled()
}

// settled wants each address that a container has to be shown for it or for another, who has a claim, and
// all that is free to have an owner.
func (w *world) settled() {
	v := w.hosts[0].doc.View()
	for _, h := range w.hosts {
		for _, e := range h.held {
			n, ok := v.Network(e.Network)
			if !ok {
				w.fatal("%s is gone", e.Network)
			}
			shown, ok := n.At(e.Addr)
			if !ok {
				w.fatal("%s: %s of %s is shown for nobody", w.name(h.id), e.Addr, e.Container)
			}
			if shown.Node != h.id && !h.lost && w.roots(e.Network) < 2 {
				w.fatal("%s: %s of %s is shown for %s", w.name(h.id), e.Addr, e.Container, w.name(shown.Node))
			}
		}
		for _, q := range h.m.Quarantined() {
			w.fatal("%s: %s of %s is still quarantined: %+v", w.name(h.id), q.Prefix, q.Name, q)
		}
	}
}

func simulate(t *testing.T, seed uint64) {
	w := newWorld(t, seed, 2+int(seed%4))
	w.loss = []float64{0, 0.05, 0.3}[w.r.IntN(3)]
	w.crash = []float64{0, 0.002, 0.02}[w.r.IntN(3)]
	w.deaths = w.r.IntN(2) == 0
	w.after(0, w.gossip)
	w.run(2 * time.Second)
	subnets := []string{"10.7.0.0/29", "10.7.0.0/28", "10.7.0.0/24", "10.7.0.0/16"}
	w.create(w.hosts[0], "blue", subnets[w.r.IntN(len(subnets))], true)
	if w.r.IntN(2) == 0 {
		for _, h := range w.hosts {
			w.create(h, Default, "10.8.0.0/27", false)
		}
	}
	for _, h := range w.hosts {
		w.after(0, func() { w.step(h, Settled{int64(w.now / time.Second)}) })
	}
	w.playing = true
	w.after(time.Second, w.play)
	w.run(w.now + 20*time.Second)
	w.calm()
	w.fill()
}

// fill lets every host want addresses until there are none: whoever asks gets one while there is one.
func (w *world) fill() {
	for _, net := range w.nets {
		n, _ := w.hosts[0].doc.View().Network(net)
		if w.roots(net) > 1 || size(n.Def.Subnet) > 32 {
			continue
		}
		capacity := int(w.hosts[0].m.nets[net].capacity())
		for round := 0; ; round++ {
			addrs := map[netip.Addr]bool{} // two may have one, after a loss
			for _, h := range w.hosts {
				for _, e := range h.held {
					if e.Network == net {
						addrs[e.Addr] = true
					}
				}
			}
			held := len(addrs)
			h := w.hosts[w.r.IntN(len(w.hosts))]
			id := w.want(h, net, netip.Addr{})
			w.run(w.now + 8*time.Second)
			_, got := h.held[id]
			if held < capacity && !got {
				w.fatal("%s got none of %s with %d of %d held: %v", w.name(h.id), n.Def.Subnet, held, capacity, h.fails[id])
			}
			if held == capacity {
				if got || h.fails[id] == nil {
					w.fatal("%s got an address where there is none", w.name(h.id))
				}
				break
			}
		}
	}
}

func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		simulate(t, *simSeed)
		return
	}
	for seed := range *simSeeds {
		simulate(t, seed+1)
	}
}
