package gossip

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// node is a machine with its document.
type node struct {
	id  state.NodeID
	doc *state.Doc
	m   *Machine
}

func newNode(id state.NodeID, seed uint64) *node {
	doc := state.NewDoc(id, 1, crdt.Actor(id)<<8|1)
	return &node{id, doc, New(Config{Self: id, Doc: doc, Seed: seed, Flat: 0})}
}

// world is nodes and what is under way between them, driven by one seed.
type world struct {
	t     testing.TB
	rand  *rand.Rand
	now   time.Duration
	nodes []*node
	queue events
	order int

	loss, double float64
	cut          func(a, b state.NodeID) bool
	packets      int
	bytes        int
	streams      int
}

type event struct {
	at    time.Duration
	order int
	to    int
	ev    Event
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].at, q[j].at), cmp.Compare(q[i].order, q[j].order)) < 0
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func newWorld(t testing.TB, n int, seed uint64) *world {
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 9)), cut: func(a, b state.NodeID) bool { return false }}
	for i := range n {
		w.nodes = append(w.nodes, newNode(state.NodeID(mix(uint64(i)+seed*1000)), seed+uint64(i)))
	}
	return w
}

func (w *world) at(d time.Duration, to int, ev Event) {
	w.order++
	heap.Push(&w.queue, event{w.now + d, w.order, to, ev})
}

func (w *world) index(id state.NodeID) int {
	return slices.IndexFunc(w.nodes, func(n *node) bool { return n.id == id })
}

// members tells every node whom it can reach now.
func (w *world) members() {
	for i, n := range w.nodes {
		var alive []state.NodeID
		for _, o := range w.nodes {
			if o != n && !w.cut(n.id, o.id) {
				alive = append(alive, o.id)
			}
		}
		w.step(i, Members{alive})
	}
}

func (w *world) step(i int, ev Event) {
	n := w.nodes[i]
	for _, a := range n.m.Step(w.now, ev) {
		switch a := a.(type) {
		case Send:
			if len(a.Body) > PacketMax {
				w.t.Fatalf("packet of %d bytes", len(a.Body))
			}
			w.packets++
			w.bytes += len(a.Body)
			w.carry(n.id, a.To, a.Body, w.loss)
		case Stream:
			w.streams++
			w.carry(n.id, a.To, a.Body, 0)
		}
	}
}

func (w *world) carry(from, to state.NodeID, body []byte, loss float64) {
	copies := 1
	if w.rand.Float64() < w.double {
		copies = 2
	}
	for range copies {
		if w.cut(from, to) || w.rand.Float64() < loss {
			continue
		}
		w.at(time.Duration(200+w.rand.IntN(3000))*time.Microsecond, w.index(to), Packet{from, body})
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for {
		next, who := end, -1
		for i, n := range w.nodes {
			if at := n.m.Next(); at != 0 && at < next {
				next, who = at, i
			}
		}
		if len(w.queue) > 0 && w.queue[0].at <= next {
			e := heap.Pop(&w.queue).(event)
			w.now = max(w.now, e.at)
			w.step(e.to, e.ev)
			continue
		}
		if who < 0 {
			w.now = end
			return
		}
		w.now = max(w.now, next)
		w.step(who, Tick{})
		if at := w.nodes[who].m.Next(); at != 0 && at <= w.now {
			w.t.Fatalf("node %d still wants a tick at %s after one at %s", who, at, w.now)
		}
	}
}

func (w *world) apply(i int, cs ...state.Change) {
	out, err := w.nodes[i].doc.Apply(cs...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.step(i, Local{out})
}

func (w *world) introduce(i int) {
	w.apply(i, state.PutNode{Node: state.Node{
		Name: fmt.Sprintf("h%d", i), Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), GossipPort: 17946}})
}

func (w *world) create(i, k int) {
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k), 0, 0}), 16)
	w.apply(i, state.CreateNetwork{Def: state.Definition{Name: fmt.Sprintf("n%d", k), Subnet: p}, At: int64(k), Force: true})
}

func (w *world) equal() bool {
	for _, n := range w.nodes {
		if n.doc.Digest() != w.nodes[0].doc.Digest() {
			return false
		}
	}
	return true
}

// within runs until all documents are equal.
func (w *world) within(d time.Duration) time.Duration {
	w.t.Helper()
	began := w.now
	for !w.equal() {
		if w.now-began > d {
			w.t.Fatalf("documents still differ %s later", w.now-began)
		}
		w.run(time.Millisecond)
	}
	return w.now - began
}

func TestConverge(t *testing.T) {
	for _, n := range []int{2, 5, 20, 40} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("n=%d/seed=%d", n, seed), func(t *testing.T) {
				w := newWorld(t, n, seed)
				w.loss, w.double = float64(seed)*0.05, 0.05
				for i := range n {
					w.introduce(i)
				}
				w.members()
				for k := range 20 {
					w.create(w.rand.IntN(n), k+20)
					w.run(time.Duration(w.rand.IntN(30)) * time.Millisecond)
				}
				w.within(10 * time.Second)
				// A cut, writes on both sides, and the heal.
				half := w.nodes[n/2].id
				w.cut = func(a, b state.NodeID) bool { return (a < half) != (b < half) }
				w.members()
				for k := range 10 {
					w.create(w.rand.IntN(n), k+60)
					w.run(20 * time.Millisecond)
				}
				w.run(2 * time.Second)
				w.cut = func(a, b state.NodeID) bool { return false }
				w.members()
				w.within(10 * time.Second)
			})
		}
	}
}

// TestPushIsEnough: without loss news is everywhere before any comparison of digests.
func TestPushIsEnough(t *testing.T) {
	for _, n := range []int{3, 16, 17, 60} {
		w := newWorld(t, n, 3)
		for i := range n {
			w.introduce(i)
		}
		w.members()
		w.run(5 * time.Second)
		if !w.equal() {
			t.Fatal("not equal at the start")
		}
		w.packets, w.bytes = 0, 0
		w.create(n/2, 77)
		took := w.within(19 * time.Millisecond)
		if n <= 16 && w.packets != n-1 {
			t.Errorf("n=%d: %d packets for a push to all, want %d", n, w.packets, n-1)
		}
		if w.packets > 6*n {
			t.Errorf("n=%d: %d packets", n, w.packets)
		}
		t.Logf("n=%d: %s, %d packets, %d bytes", n, took, w.packets, w.bytes)
	}
}

// TestHealIsFast: who meets again is equal within a few round trips.
func TestHealIsFast(t *testing.T) {
	w := newWorld(t, 10, 5)
	half := slices.SortedFunc(slices.Values(w.nodes), func(a, b *node) int { return cmp.Compare(a.id, b.id) })[5].id
	w.cut = func(a, b state.NodeID) bool { return (a < half) != (b < half) }
	for i := range w.nodes {
		w.introduce(i)
	}
	w.members()
	for k := range 10 {
		w.create(k, k+20)
	}
	w.run(3 * time.Second)
	w.cut = func(a, b state.NodeID) bool { return false }
	w.members()
	w.within(60 * time.Millisecond)
}

// TestGapIsPulled: an op that a push lost is asked for as soon as a later one shows the gap.
func TestGapIsPulled(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.introduce(0)
	w.introduce(1)
	w.members()
	w.run(5 * time.Second)
	w.create(0, 20)
	w.run(5 * time.Second)
	id := w.nodes[0].doc.View().Networks()[0].ID
	put := func(k byte, loss float64) {
		w.loss = loss
		w.apply(0, state.PutEndpoint{Endpoint: state.Endpoint{ID: state.EndpointID(k), Network: id, Container: fmt.Sprint("c", k),
			Addr: netip.AddrFrom4([4]byte{10, 20, 1, k}), IfName: "eth0", Alloc: 1, At: 1}})
		w.loss = 0
	}
	put(1, 1)
	if w.equal() {
		t.Fatal("the op was not lost")
	}
	w.nodes[0].m.soon = [len(soonDelays)]time.Duration{} // only the gap tells
	put(2, 0)
	for i := range w.nodes {
		w.nodes[i].m.idle = w.now + time.Hour
	}
	w.run(5 * time.Millisecond)
	if len(w.nodes[1].doc.Gaps()) == 0 {
		t.Fatal("no gap seen")
	}
	for i := range w.nodes {
		w.nodes[i].m.soon = [len(soonDelays)]time.Duration{}
	}
	w.within(45 * time.Millisecond)
}

// TestGapStays: what is known beyond an op that is lost for good comes to all, though no head says so.
func TestGapStays(t *testing.T) {
	w := newWorld(t, 4, 1)
	for i := range w.nodes {
		w.introduce(i)
	}
	w.members()
	w.within(5 * time.Second)
	gone := func(seq crdt.Seq) crdt.Op {
		return crdt.Op{Node: 99, Epoch: 1, Seq: seq, Key: fmt.Append(nil, "k", seq), Value: []byte{1}}
	}
	for _, n := range w.nodes {
		n.doc.Merge(state.In{Ops: []crdt.Op{gone(1)}})
	}
	w.nodes[0].doc.Merge(state.In{Ops: []crdt.Op{gone(3), gone(5)}})
	w.nodes[1].doc.Merge(state.In{Ops: []crdt.Op{gone(4)}})
	w.within(5 * time.Second)
}

// TestIdleIsCheap: equal documents cost one digest a second and node.
func TestIdleIsCheap(t *testing.T) {
	w := newWorld(t, 10, 2)
	for i := range w.nodes {
		w.introduce(i)
	}
	w.members()
	w.run(10 * time.Second)
	w.packets, w.bytes = 0, 0
	w.run(100 * time.Second)
	if perNode := w.packets / len(w.nodes); perNode < 80 || perNode > 130 {
		t.Errorf("%d packets a node in 100 s", perNode)
	}
	if w.bytes != w.packets*len(digestMsg{}.encode()) {
		t.Errorf("%d bytes in %d packets", w.bytes, w.packets)
	}
}

// TestLargeState: what does not fit into packets comes by streams, and more than one frame of it.
func TestLargeState(t *testing.T) {
	w := newWorld(t, 3, 4)
	for i := range w.nodes {
		w.introduce(i)
	}
	w.create(0, 20)
	id := w.nodes[0].doc.View().Networks()[0].ID
	for i := range 2 {
		if i == 1 {
			w.nodes[1].doc.Merge(state.Out{Shared: []crdt.Delta{w.nodes[0].doc.Shared()}})
		}
		var cs []state.Change
		for k := range 3000 {
			cs = append(cs, state.PutEndpoint{Endpoint: state.Endpoint{
				ID: state.EndpointID(mix(uint64(i*3000 + k))), Network: id, Container: fmt.Sprintf("container-%d-%d", i, k),
				Addr: netip.AddrFrom4([4]byte{10, 20, byte(i*16 + 1 + k>>8), byte(k)}), IfName: "eth0", Alloc: uint64(k), At: 1,
				Names: []string{"alias-of-some-length", "another-alias-of-some-length"},
			}})
		}
		w.apply(i, cs...)
	}
	for k := range 300 {
		w.apply(1, state.CreateNetwork{Def: state.Definition{Name: fmt.Sprintf("big%d", k),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(k), 0}), 24),
			Labels: []state.Label{{Key: "k", Value: string(make([]byte, 1000))}}}, At: 1, Force: true})
	}
	w.members()
	w.within(5 * time.Second)
	if w.streams == 0 {
		t.Error("no stream")
	}
}

func TestTrees(t *testing.T) {
	for _, n := range []int{2, 5, 6, 21, 100, 500} {
		ids := make([]state.NodeID, n)
		for i := range ids {
			ids[i] = state.NodeID(mix(uint64(i)))
		}
		slices.Sort(ids)
		origin := ids[n/3]
		seen := map[state.NodeID]int{}
		for _, self := range ids {
			others := slices.DeleteFunc(slices.Clone(ids), func(id state.NodeID) bool { return id == self })
			kids := children(self, origin, others)
			if len(kids) > trees*fanout {
				t.Errorf("n=%d: %d children", n, len(kids))
			}
			for _, k := range kids {
				if k == self || k == origin {
					t.Errorf("n=%d: %s sends to itself or the origin", n, self)
				}
				seen[k]++
			}
		}
		for _, id := range ids {
			if id != origin && (seen[id] == 0 || seen[id] > trees) {
				t.Errorf("n=%d: a member hears %d times", n, seen[id])
			}
		}
	}
}

// TestGreeters: the first by hash, the same whatever the order of the members.
func TestGreeters(t *testing.T) {
	ids := make([]state.NodeID, 100)
	for i := range ids {
		ids[i] = state.NodeID(mix(uint64(i)))
	}
	for _, who := range ids[:20] {
		others := slices.DeleteFunc(slices.Clone(ids), func(id state.NodeID) bool { return id == who })
		hash := func(id state.NodeID) uint64 { return mix(mix(uint64(who)) ^ uint64(id)) }
		want := slices.SortedFunc(slices.Values(others), func(a, b state.NodeID) int { return cmp.Compare(hash(a), hash(b)) })[:greetMax]
		slices.Reverse(others)
		if got := greeters(who, append(others, who), greetMax); !slices.Equal(got, want) {
			t.Errorf("greeters of %s: %v, want %v", who, got, want)
		}
	}
	if got := greeters(ids[0], ids[:2], greetMax); !slices.Equal(got, ids[1:2]) {
		t.Errorf("of two: %v", got)
	}
}

// settle makes members of all, lets their documents become equal, and forgets what that cost.
func (w *world) settle() {
	for i := range w.nodes {
		w.introduce(i)
	}
	w.members()
	w.run(5 * time.Second)
	if !w.equal() {
		w.t.Fatal("not equal at the start")
	}
	w.packets, w.bytes, w.streams = 0, 0, 0
}

// TestOneDigestAfterNews: news that came everywhere costs each member one digest and wakes it once to
// send it, since the member before it on the ring has vouched by then.
func TestOneDigestAfterNews(t *testing.T) {
	w := newWorld(t, 20, 3)
	w.settle()
	for _, n := range w.nodes {
		n.m.idle = w.now + time.Hour
	}
	before := w.digests()
	w.create(7, 77)
	w.run(10 * time.Millisecond)
	planned := map[time.Duration]bool{}
	for _, n := range w.nodes {
		planned[n.m.soon[0]] = true
	}
	if len(planned) < len(w.nodes)/2 {
		t.Errorf("%d members compare at %d times", len(w.nodes), len(planned))
	}
	w.run(soonDelays[0] + soonSpread)
	for _, n := range w.nodes {
		if at := n.m.Next(); at != n.m.idle {
			t.Errorf("%s wants a tick in %s", n.id, at-w.now)
		}
	}
	w.run(time.Second)
	if got := w.digests() - before; got != 20 {
		t.Errorf("%d digests of 20 members", got)
	}
	if w.packets != 19+20 {
		t.Errorf("%d packets", w.packets)
	}
}

func (w *world) digests() (n uint64) {
	for _, n1 := range w.nodes {
		n += n1.m.Counters().Digests
	}
	return n
}

// TestRingFindsTheLoser: who lost the push gets it from the member before, some 20 ms later; where that
// one is silent, from the member after, some 60 ms later.
func TestRingFindsTheLoser(t *testing.T) {
	for _, silent := range []bool{false, true} {
		w := newWorld(t, 20, 11)
		w.settle()
		for _, n := range w.nodes {
			n.m.idle = w.now + time.Hour
		}
		slices.SortFunc(w.nodes, func(a, b *node) int { return cmp.Compare(a.id, b.id) })
		loser, before := w.nodes[9].id, w.nodes[8].id
		w.cut = func(a, b state.NodeID) bool { return b == loser || silent && (a == before || b == before) }
		w.create(0, 77)
		w.run(10 * time.Millisecond)
		w.cut = func(a, b state.NodeID) bool { return silent && (a == before || b == before) }
		has := func() bool { return len(w.nodes[9].doc.View().Networks()) == 1 }
		if has() {
			t.Fatal("the push was not lost")
		}
		limit := 32 * time.Millisecond
		if silent {
			limit = 72 * time.Millisecond
		}
		for w.now++; !has(); w.run(time.Millisecond) {
			if limit -= time.Millisecond; limit < 0 {
				t.Fatalf("silent %t: the loser still lacks it", silent)
			}
		}
	}
}

// TestBurst: own news right after own news waits for more of it; of one key only the last is sent,
// and closes those that were not.
func TestBurst(t *testing.T) {
	w := newWorld(t, 5, 1)
	w.settle()
	w.create(0, 20)
	w.run(5 * time.Second)
	id := w.nodes[0].doc.View().Networks()[0].ID
	for _, n := range w.nodes {
		n.m.idle = w.now + time.Hour
	}
	before := w.nodes[0].m.Counters()
	w.packets = 0
	for k := range 50 {
		w.apply(0, state.PutEndpoint{Endpoint: state.Endpoint{ID: 9, Network: id, Container: fmt.Sprint("c", k),
			Addr: netip.AddrFrom4([4]byte{10, 20, 1, 9}), IfName: "eth0", Alloc: 1, At: 1}})
	}
	w.within(10 * time.Millisecond)
	c := w.nodes[0].m.Counters()
	if pushed := c.Pushed - before.Pushed; pushed != 8 {
		t.Errorf("%d messages, want one now and one later to each of four", pushed)
	}
	if c.Coalesced-before.Coalesced < 45 || c.Held == before.Held {
		t.Errorf("%+v", c)
	}
	for _, n := range w.nodes {
		if e, ok := n.doc.View().Endpoint(9); !ok || e.Container != "c49" {
			t.Errorf("%s has %+v", n.id, e)
		}
		if len(n.doc.Gaps()) != 0 {
			t.Errorf("%s has gaps: what was not sent was not closed", n.id)
		}
	}
}

// TestRates: with its rates used up a machine holds own news, drops the rest, counts, and all comes
// by digests.
func TestRates(t *testing.T) {
	w := newWorld(t, 6, 4)
	w.settle()
	m := w.nodes[0].m
	m.pushes = bucket{rate: 100, burst: 10, at: w.now}
	w.create(0, 20)
	if m.held.Empty() {
		t.Fatal("pushed beyond the rate")
	}
	w.run(time.Millisecond)
	if at := m.Next(); m.held.Empty() || at <= w.now || at > w.now+51*time.Millisecond {
		t.Errorf("next tick in %s, want one when five tokens are there", at-w.now)
	}
	w.within(100 * time.Millisecond)

	m.pushes = bucket{rate: 0.001, burst: 1, at: w.now}
	for range 2*heldMax + 2 {
		m.tell(state.Out{Ops: []crdt.Op{{Node: w.nodes[0].id, Epoch: 1, Seq: 1 << 30, Key: fmt.Append(nil, m.count.Held), Value: []byte{1}}}})
	}
	if c := m.Counters(); !m.held.Empty() && len(m.held.Ops) > heldMax || c.Dropped < heldMax {
		t.Errorf("%d held, %+v", len(m.held.Ops), c)
	}
	m.held = state.Out{}

	w.nodes[1].m.compares = bucket{at: w.now}
	w.nodes[1].m.Step(w.now, Packet{w.nodes[2].id, digestMsg{}.encode()})
	if c := w.nodes[1].m.Counters(); c.Dropped != 1 || c.Differing == 0 {
		t.Errorf("%+v", c)
	}
}

// BenchmarkSpread compares ways and sizes, with and without loss: run it as
// go test ./mesh/gossip -run ^$ -bench Spread -benchtime 200x
// Each iteration is a write in a mesh of n; of lossy ones a hundredth of the packets is lost and 2 % of
// the members do not answer though nobody knows yet. p99 is in virtual time, 0.2 to 3.2 ms a hop;
// sending takes none.
func BenchmarkSpread(b *testing.B) {
	for _, n := range []int{10, 25, 50, 64, 100, 250} {
		for _, way := range []struct {
			name string
			flat int
		}{{"all", 1000}, {"trees", 1}} {
			for _, loss := range []float64{0, 0.01} {
				b.Run(fmt.Sprintf("n=%d/%s/loss=%g", n, way.name, loss), func(b *testing.B) { spread(b, n, way.flat, loss) })
			}
		}
	}
}

func spread(b *testing.B, n, flat int, loss float64) {
	w := newWorld(b, n, 7)
	for _, nd := range w.nodes {
		nd.m.flat = flat
	}
	w.settle()
	silent := map[state.NodeID]bool{}
	if loss > 0 {
		for i := range (n + 49) / 50 {
			silent[w.nodes[i].id] = true
		}
	}
	w.loss = loss
	w.cut = func(a, b state.NodeID) bool { return silent[a] || silent[b] }
	var took []time.Duration
	for k := 0; b.Loop(); k++ {
		writer := len(silent) + w.rand.IntN(n-len(silent))
		w.apply(writer, state.PutNode{Node: state.Node{Name: fmt.Sprint("again", k), Addr: netip.AddrFrom4([4]byte{10, 0, 0, 1}), GossipPort: 1}})
		began := w.now
		want := w.nodes[writer].doc.Digest()
		for slices.ContainsFunc(w.nodes, func(n *node) bool { return !silent[n.id] && n.doc.Digest() != want }) {
			w.run(200 * time.Microsecond)
		}
		took = append(took, w.now-began)
		w.run(300 * time.Millisecond)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
	b.ReportMetric(float64(w.packets)/float64(len(took)), "packets/op")
	b.ReportMetric(float64(w.bytes)/float64(len(took)), "B/op-sent")
}
