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
	t     *testing.T
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

func newWorld(t *testing.T, n int, seed uint64) *world {
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
