package sim

import (
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"meshnet/crdt"
	"meshnet/mesh/gossip"
	"meshnet/state"
)

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) over x plus its increment.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// dice is a stream of numbers of its own, so that what is left out of a schedule does not change
// what else happens.
type dice uint64

func (d *dice) next() uint64 {
	*d += 0x9e3779b97f4a7c15
	return mix(uint64(*d))
}

func (d *dice) below(n int) int { return int(d.next() % uint64(n)) }

// chance is true with probability p.
func (d *dice) chance(p float64) bool { return p > 0 && float64(d.next()>>11)/(1<<53) < p }

// span is between two durations, short ones as likely as long ones.
func (d *dice) span(from, to time.Duration) time.Duration {
	if to <= from {
		return from
	}
	return from + time.Duration(d.next()%uint64(to-from))
}

// channel tells what a letter is.
type channel uint8

const (
	chanGossip channel = iota
	chanIPAM
)

// letter is a message on its way.
type letter struct {
	from, to state.NodeID
	channel  channel
	stream   bool
	body     []byte
}

// eventKind tells what happens.
type eventKind uint8

const (
	evLetter  eventKind = iota
	evAct               // acts[arg]
	evStart             // of the daemon of a host
	evMembers           // a host hears who answers
	evGiveUp            // the wait for an endpoint's address
	evFlap              // of the links of flaps[arg]
)

type event struct {
	at   time.Duration
	seq  uint64
	kind eventKind
	host int32  // slot
	life uint32 // of the sender of a letter, else of the host
	arg  uint64
	letter
}

// queue is a heap of events by (at, seq).
type queue []event

func (q queue) before(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h.before(i, up) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() event {
	h := *q
	top, n := h[0], len(h)-1
	h[0] = h[n]
	h[n] = event{}
	h = h[:n]
	*q = h
	for i := 0; ; {
		kid := 2*i + 1
		if kid >= n {
			return top
		}
		if kid+1 < n && h.before(kid+1, kid) {
			kid++
		}
		if !h.before(kid, i) {
			return top
		}
		h[i], h[kid] = h[kid], h[i]
		i = kid
	}
}

// world is one schedule: hosts, what is under way between them, and the faults.
type world struct {
	c     chaos
	now   time.Duration
	hosts []*host
	slots map[state.NodeID]int // of the nodes that are or were
	dead  []departed           // identities that were lost with their disk

	queue queue
	seq   uint64
	wake  []time.Duration // when a host's machines want a tick, by slot; 0: never
	links []dice          // from slot * n + to slot
	cut   []bool          // likewise
	flaps []flap
	calm  bool // all faults are over

	holds   map[place][]*holding
	began   map[crdt.Head]time.Duration // when a later epoch of a host did
	ref     *reference                  // of the state from the heal on; nil before
	local   time.Duration
	removed map[state.NetworkID]bool // once, by anybody
	excuse  string                   // why an address may be there twice
	wronged bool                     // a node that lives was declared gone
	rests   map[place]time.Duration  // when an address was given back
	tracing bool
	trace   []string

	events, letters, changes uint64
}

// departed is an identity that nobody has any more.
type departed struct {
	id    state.NodeID
	epoch crdt.Epoch
	slot  int
}

type flap struct {
	links []int
	until time.Duration
	every time.Duration
}

// failure is what a schedule failed with.
type failure struct {
	what  string
	at    time.Duration
	trace []string
	stack string
}

func (f *failure) Error() string { return fmt.Sprintf("at %.3f s: %s", f.at.Seconds(), f.what) }

func (w *world) fatal(format string, args ...any) {
	panic(&failure{what: fmt.Sprintf(format, args...), at: w.now})
}

func (w *world) note(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%8.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// run plays a schedule and returns how it failed, or nil.
func run(c chaos, tracing bool) (w *world, fail *failure) {
	w = newWorld(c, tracing)
	defer func() {
		switch p := recover().(type) {
		case nil:
			return
		case *failure:
			fail = p
		default:
			fail = &failure{what: fmt.Sprint("panic: ", p), at: w.now, stack: string(debug.Stack())}
		}
		if tracing {
			w.describe()
		}
		fail.trace = w.trace
	}()
	w.play()
	return w, nil
}

func newWorld(c chaos, tracing bool) *world {
	n := c.nodes
	w := &world{
		c: c, tracing: tracing, slots: make(map[state.NodeID]int, n),
		wake: make([]time.Duration, n), links: make([]dice, n*n), cut: make([]bool, n*n),
		holds: map[place][]*holding{}, began: map[crdt.Head]time.Duration{}, removed: map[state.NetworkID]bool{},
	}
	for i := range w.links {
		w.links[i] = dice(mix(c.seed ^ mix(uint64(i)+77)))
	}
	for i := range n {
		w.hosts = append(w.hosts, w.newHost(i, 0))
	}
	return w
}

// play does all that a schedule holds, heals, and checks what must then be so.
func (w *world) play() {
	for i, h := range w.hosts {
		w.after(h.dice.span(0, 300*time.Millisecond)+w.c.late[i], event{kind: evStart, host: int32(i), life: h.life})
	}
	for i, a := range w.c.acts {
		if !a.skip {
			w.push(event{at: a.at, kind: evAct, arg: uint64(i)})
		}
	}
	w.until(w.c.end)
	w.heal()
	w.settle()
	w.checkEnd()
	if w.excuse == "" {
		w.probe()
	}
}

func (w *world) push(e event) {
	w.seq++
	e.seq = w.seq
	w.queue.push(e)
}

func (w *world) after(d time.Duration, e event) {
	e.at = w.now + d
	w.push(e)
}

// until lets time pass.
func (w *world) until(end time.Duration) {
	for {
		at, who := end+1, -1
		for i, t := range w.wake {
			if t != 0 && t < at {
				at, who = t, i
			}
		}
		if len(w.queue) > 0 && w.queue[0].at <= at {
			if w.queue[0].at > end {
				break
			}
			e := w.queue.pop()
			w.now = max(w.now, e.at)
			w.events++
			w.happen(&e)
			continue
		}
		if who < 0 {
			break
		}
		w.now = max(w.now, at)
		w.events++
		w.wake[who] = 0
		w.hosts[who].tick()
		if t := w.wake[who]; t != 0 && t <= w.now {
			w.fatal("%s wants a tick at %v, after one at %v", w.hosts[who].name, t, w.now)
		}
	}
	w.now = end
}

func (w *world) happen(e *event) {
	switch e.kind {
	case evLetter:
		w.deliver(e)
	case evAct:
		w.act(w.c.acts[e.arg])
	case evStart:
		if h := w.hosts[e.host]; h.life == e.life && !h.up {
			h.boot()
		}
	case evMembers:
		w.tellMembers(w.hosts[e.host])
	case evGiveUp:
		if h := w.hosts[e.host]; h.life == e.life && h.up {
			h.giveUp(state.EndpointID(e.arg))
		}
	case evFlap:
		w.flap(int(e.arg))
	}
}

// send puts a letter on its way: late, twice, or not at all.
func (w *world) send(h *host, l letter) {
	w.letters++
	if !l.stream && len(l.body) > gossip.PacketMax && l.channel == chanGossip {
		w.fatal("%s sends a packet of %d bytes", h.name, len(l.body))
	}
	slot, ok := w.slots[l.to]
	if !ok || w.hosts[slot].id != l.to {
		return // nobody of that name
	}
	d := &w.links[h.slot*w.c.nodes+slot]
	loss, double, most := w.c.loss, w.c.double, w.c.delay
	if w.calm {
		loss, double, most = 0, 0, min(most, 20*time.Millisecond)
	}
	for {
		if l.stream || !d.chance(loss) {
			lag := d.span(200*time.Microsecond, most)
			if l.stream {
				lag *= 3
			}
			if !w.calm && (w.c.slow == h.slot || w.c.slow == slot) {
				lag += d.span(0, 300*time.Millisecond)
			}
			w.after(lag, event{kind: evLetter, host: int32(slot), life: h.life, letter: l})
		}
		if !d.chance(double) {
			return
		}
	}
}

func (w *world) deliver(e *event) {
	to := w.hosts[e.host]
	from := w.slots[e.from]
	if !to.up || to.id != e.to || w.cut[from*w.c.nodes+int(e.host)] {
		return
	}
	to.receive(e.from, e.channel, e.body)
	to.commit()
}

// members has every host hear in a while who answers.
func (w *world) members(soon time.Duration) {
	for i, h := range w.hosts {
		w.after(h.dice.span(soon/8, soon), event{kind: evMembers, host: int32(i)})
	}
}

// sees reports whether a host takes another for alive: what fails in one direction only some notice.
func (w *world) sees(a, b *host) bool {
	there, back := w.cut[a.slot*w.c.nodes+b.slot], w.cut[b.slot*w.c.nodes+a.slot]
	return b.up && !there && (!back || mix(w.c.seed+uint64(a.slot))&1 == 0)
}

func (w *world) tellMembers(h *host) {
	if !h.up {
		return
	}
	var alive []state.NodeID
	for _, o := range w.hosts {
		if o != h && w.sees(h, o) {
			alive = append(alive, o.id)
		}
	}
	slices.Sort(alive)
	if !slices.Equal(alive, h.alive) {
		w.note("%s sees %s", h.name, w.names(alive))
		h.meet(alive)
		h.commit()
	}
	// memberlist's ping acks carry half a digest.
	if len(alive) > 0 && h.up {
		if o := w.hosts[w.slots[alive[h.dice.below(len(alive))]]]; o.up {
			d := o.doc.Digest()
			h.act(h.gossip.Step(h.now(), gossip.Hint{From: o.id, Digest: [8]byte(d[:8])}))
			h.commit()
		}
	}
}

func (w *world) flap(i int) {
	f := &w.flaps[i]
	if w.calm || w.now > f.until {
		for _, l := range f.links {
			w.cut[l] = false
		}
		w.members(time.Second)
		return
	}
	for _, l := range f.links {
		w.cut[l] = !w.cut[l]
	}
	if f.every > 500*time.Millisecond {
		w.members(time.Second)
	}
	w.after(f.every, event{kind: evFlap, arg: uint64(i)})
}

// heal ends all faults: every host runs, reaches all others and knows that it does.
func (w *world) heal() {
	w.note("heal")
	w.calm = true
	clear(w.cut)
	for _, h := range w.hosts {
		h.fault = fault{}
	}
	// What a former life sent and nobody got yet is lost: what was said is what somebody holds.
	kept := w.queue[:0]
	for _, e := range w.queue {
		stays := e.kind == evGiveUp || e.kind == evFlap
		if e.kind == evLetter {
			from := w.hosts[w.slots[e.from]]
			stays = from.id == e.from && from.up && from.life == e.life
			e.at = min(e.at, w.now+200*time.Millisecond)
		}
		if stays {
			kept = append(kept, e)
		}
	}
	all := slices.Clone(kept)
	w.queue = w.queue[:0]
	for _, e := range all {
		w.queue.push(e)
	}
	for _, h := range w.hosts {
		if !h.up {
			h.boot()
		}
	}
	for _, h := range w.hosts {
		w.noteDead(h)
	}
	w.ref = newReference(w.hosts)
	for _, h := range w.hosts {
		w.tellMembers(h)
	}
	w.local = w.now
}

// settle waits until all have had the time to become equal: five seconds after the heal and after the
// last change that follows from it.
func (w *world) settle() {
	healed := w.now
	const patience = 5 * time.Second
	for end := w.now + patience; ; {
		w.until(end)
		if end > healed+2*time.Minute {
			w.fatal("changes go on two minutes after the heal")
		}
		if slices.ContainsFunc(w.hosts, func(h *host) bool { return h.follow != 0 }) {
			end += time.Millisecond // what follows from the last news may be a change
			continue
		}
		if w.agreed() {
			return
		}
		if w.local+patience <= end {
			w.differ()
		}
		end = w.local + patience
	}
}

func (w *world) agreed() bool {
	for _, h := range w.hosts {
		if h.doc.Digest() != w.hosts[0].doc.Digest() {
			return false
		}
	}
	return true
}

func (w *world) differ() {
	var out []string
	for _, h := range w.hosts {
		line := h.name + ":"
		patches, _ := dump(h.doc)
		for _, p := range patches {
			line += fmt.Sprintf(" %s %d/%d", w.name(p.Node), p.Epoch, p.Head)
			if len(p.Cloud) > 0 || p.Whole > p.Head {
				line += fmt.Sprintf("%v of %d", p.Cloud, p.Whole)
			}
		}
		_, shared := h.doc.Buckets()
		out = append(out, fmt.Sprintf("%s shared %x", line, shared))
	}
	w.fatal("digests differ five seconds after the last change:\n%s", strings.Join(out, "\n"))
}

func (w *world) name(id state.NodeID) string {
	for _, h := range w.hosts {
		if h.id == id {
			return h.name
		}
	}
	for i, d := range w.dead {
		if d.id == id {
			return fmt.Sprintf("dead%d", i)
		}
	}
	return id.String()
}

func (w *world) names(ids []state.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, w.name(id))
	}
	return "[" + strings.Join(out, " ") + "]"
}

// noteDead adds to the trace what a host holds of the identities that are gone.
func (w *world) noteDead(h *host) {
	if !w.tracing || len(w.dead) == 0 {
		return
	}
	patches, _ := dump(h.doc)
	for _, p := range patches {
		if slot := w.slots[p.Node]; w.hosts[slot].id == p.Node {
			continue
		}
		line := fmt.Sprintf("%s holds of %s: %d/%d%v of %d", h.name, w.name(p.Node), p.Epoch, p.Head, p.Cloud, p.Whole)
		for _, op := range p.Ops {
			line += fmt.Sprintf(" %d:%s", op.Seq, op.Key)
			if op.Value == nil {
				line += "-"
			}
		}
		w.note("%s", line)
	}
}

// describe adds to the trace what the hosts hold.
func (w *world) describe() {
	for i, h := range w.hosts {
		w.noteDead(h)
		w.note("%s %s up %v epoch %d doubtful %v settled %v alive %s wants %d", h.name, h.id, h.up, h.disk.epoch, h.doubtful, h.settled, w.names(h.alive), len(h.wants))
		if h.view == nil || i > 0 && h.view.Digest() == w.hosts[0].view.Digest() {
			continue
		}
		for _, n := range h.view.Networks() {
			w.note("  %s %s %s removed %v vni %d", n.Name, n.ID, n.Def.Subnet, n.Removed, n.VNI)
			for _, b := range n.Blocks() {
				w.note("    %-18s ver %d %s kind %d state %d to %s/%d root %s@%d sealed %v lineage %s", b.Prefix, b.Ver, w.name(b.Node), b.Kind, b.State,
					w.name(b.To), b.ToEpoch, w.name(b.Root.Creator), b.Root.At, b.Sealed, w.names(b.Lineage))
			}
			for e := range n.Claims() {
				w.note("    %-18s %s of %s", e.Addr, e.Container, w.name(e.Node))
			}
		}
	}
}

// place is an address of a network.
type place struct {
	network state.NetworkID
	addr    netip.Addr
}

// holding is an address that a host's container has.
type holding struct {
	host *host
	id   state.EndpointID
	root state.Root // when it was allocated
	// epoch is the host's, when it was.
	epoch crdt.Epoch
	// since is from when on.
	since time.Duration
}
