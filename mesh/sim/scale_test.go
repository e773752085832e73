package sim

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/mesh/gossip"
	"meshnet/state"
)

var scaleFlag = flag.Int("scale", 0, "measure how fast this many hosts with fifty containers each see a write")

// library holds every op once for all replicas.
type library struct {
	ids   []state.NodeID // ascending
	index map[state.NodeID]int
	ops   [][]crdt.Op // of each node, by seq from 1
}

// replica is a document that knows only how far it knows each node's ops. The ops themselves are the
// library's: a thousand documents of fifty thousand endpoints each do not fit into a machine. It knows
// neither removals nor epochs.
type replica struct {
	lib   *library
	heads []crdt.Seq
	cloud map[int]map[crdt.Seq]bool
	sums  [32]uint64
}

func (l *library) replica() *replica {
	r := &replica{lib: l, heads: make([]crdt.Seq, len(l.ids)), cloud: map[int]map[crdt.Seq]bool{}}
	for i, ops := range l.ops {
		r.advance(i, crdt.Seq(len(ops)))
	}
	return r
}

func (r *replica) advance(i int, to crdt.Seq) {
	b := crdt.BucketOf(r.lib.ids[i])
	r.sums[b] ^= mix(uint64(r.lib.ids[i]) + uint64(r.heads[i]))
	r.heads[i] = to
	r.sums[b] ^= mix(uint64(r.lib.ids[i]) + uint64(to))
}

func (r *replica) Merge(in state.In) (out state.Out) {
	take := func(op crdt.Op) {
		i := r.lib.index[op.Node]
		if op.Seq <= r.heads[i] || r.cloud[i][op.Seq] {
			return
		}
		out.Ops = append(out.Ops, op)
		if op.Seq > r.heads[i]+1 {
			if r.cloud[i] == nil {
				r.cloud[i] = map[crdt.Seq]bool{}
			}
			r.cloud[i][op.Seq] = true
			return
		}
		to := op.Seq
		for r.cloud[i][to+1] {
			to++
			delete(r.cloud[i], to)
		}
		if len(r.cloud[i]) == 0 {
			delete(r.cloud, i)
		}
		r.advance(i, to)
	}
	for _, op := range in.Ops {
		take(op)
	}
	for _, p := range in.Patches {
		for _, op := range p.Ops {
			take(op)
		}
	}
	return out
}

func (r *replica) Digest() (d [16]byte) {
	var a, b uint64
	for i, s := range r.sums {
		a += mix(s + uint64(i))
		b ^= mix(s*31 + uint64(i))
	}
	binary.BigEndian.PutUint64(d[:], a)
	binary.BigEndian.PutUint64(d[8:], b)
	return d
}

func (r *replica) Buckets() ([32]uint64, uint64) { return r.sums, 0 }

func (r *replica) Heads(bucket int) (hs []crdt.Head) {
	for i, id := range r.lib.ids {
		if crdt.BucketOf(id) == bucket {
			hs = append(hs, crdt.Head{Node: id, Epoch: 1, Seq: r.heads[i]})
		}
	}
	return hs
}

func (r *replica) Gaps() (hs []crdt.Head) {
	for _, i := range slices.Sorted(maps.Keys(r.cloud)) {
		hs = append(hs, crdt.Head{Node: r.lib.ids[i], Epoch: 1, Seq: r.heads[i]})
	}
	return hs
}

func (r *replica) Missing(heads []crdt.Head, limit int) (out state.Out, more bool) {
	for _, h := range heads {
		i, ok := r.lib.index[h.Node]
		if ok && h.Seq < r.heads[i] {
			out.Patches = append(out.Patches, crdt.Patch{
				Node: h.Node, Epoch: 1, From: h.Seq, Head: r.heads[i], Ops: r.lib.ops[i][h.Seq:r.heads[i]],
			})
		}
	}
	return out, false
}

func (r *replica) Shared() crdt.Delta { return crdt.Delta{} }

// scale is a mesh of replicas with the real gossip between them.
type scale struct {
	lib   *library
	docs  []*replica
	ms    []*gossip.Machine
	down  []bool // silently: all others take it for alive
	dice  dice
	now   time.Duration
	queue queue
	wake  []time.Duration // a tree of the earliest: wake[n+i] is host i's
	seq   uint64
	loss  float64

	packets, bytes int
	left           map[crdt.Head]int // of a write: who has not seen it
	began          map[crdt.Head]time.Duration
	took           []time.Duration
}

const (
	scaleContainers = 50
	scaleWrites     = 400
	scaleWriters    = 40
)

func newScale(n int, seed uint64) *scale {
	s := &scale{
		lib: &library{index: map[state.NodeID]int{}}, dice: dice(seed), loss: 0.01, wake: make([]time.Duration, 2*n), down: make([]bool, n),
		left: map[crdt.Head]int{}, began: map[crdt.Head]time.Duration{},
	}
	for range n {
		s.lib.ids = append(s.lib.ids, state.NodeID(s.dice.next()))
	}
	slices.Sort(s.lib.ids)
	for i, id := range s.lib.ids {
		s.lib.index[id] = i
	}
	s.lib.ops = make([][]crdt.Op, n)
	return s
}

// fill has every host write itself and its containers, as a document does.
func (s *scale) fill() error {
	first := state.NewDoc(s.lib.ids[0], 1, 1)
	made, err := first.Apply(state.CreateNetwork{Def: state.Definition{Name: "web", Subnet: netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		return err
	}
	net := first.View().Networks()[0].ID
	for i, id := range s.lib.ids {
		d := state.NewDoc(id, 1, crdt.Actor(i+2))
		d.Merge(made)
		cs := []state.Change{state.PutNode{Node: state.Node{Name: fmt.Sprint("host", i), Addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}}}
		for k := range scaleContainers {
			cs = append(cs, state.PutEndpoint{Endpoint: state.Endpoint{
				ID: state.EndpointID(i*1000 + k + 1), Network: net, Container: fmt.Sprint("container", k), IfName: "eth1",
				Addr: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(k + 1)}),
			}})
		}
		out, err := d.Apply(cs...)
		if err != nil {
			return err
		}
		s.lib.ops[i] = out.Ops
	}
	return nil
}

// set says when a host is woken.
func (s *scale) set(i int, at time.Duration) {
	n := len(s.docs)
	for i, s.wake[n+i] = n+i, at; i > 1; i /= 2 {
		a, b := s.wake[i&^1], s.wake[i|1]
		if a == 0 || b != 0 && b < a {
			a = b
		}
		s.wake[i/2] = a
	}
}

func (s *scale) earliest() int {
	i := 1
	for i < len(s.docs) {
		if i *= 2; s.wake[i] != s.wake[i/2] {
			i++
		}
	}
	return i - len(s.docs)
}

func (s *scale) step(i int, ev gossip.Event) {
	for _, a := range s.ms[i].Step(s.now, ev) {
		switch a := a.(type) {
		case gossip.Send:
			s.carry(i, a.To, a.Body, s.loss)
		case gossip.Stream:
			s.carry(i, a.To, a.Body, 0)
		case gossip.News:
			for _, op := range a.Out.Ops {
				s.seen(crdt.Head{Node: op.Node, Epoch: 1, Seq: op.Seq})
			}
		}
	}
	s.set(i, s.ms[i].Next())
}

func (s *scale) seen(h crdt.Head) {
	if s.left[h]--; s.left[h] == 0 {
		s.took = append(s.took, s.now-s.began[h])
		delete(s.left, h)
	}
}

// carry delivers after a log-normal delay with a median of 0.25 ms.
func (s *scale) carry(from int, to state.NodeID, body []byte, loss float64) {
	s.packets++
	s.bytes += len(body)
	slot := s.lib.index[to]
	if s.down[slot] || s.dice.chance(loss) {
		return
	}
	u, v := float64(s.dice.next()>>11+1)/(1<<53), float64(s.dice.next()>>11)/(1<<53)
	normal := math.Sqrt(-2*math.Log(u)) * math.Cos(2*math.Pi*v)
	s.seq++
	s.queue.push(event{at: s.now + time.Duration(250e3*math.Exp(0.5*normal)), seq: s.seq, host: int32(slot),
		letter: letter{from: s.lib.ids[from], body: body}})
}

func (s *scale) run(until time.Duration) {
	for {
		tick, letters := s.wake[1], len(s.queue) > 0
		if letters && (tick == 0 || s.queue[0].at <= tick) && s.queue[0].at <= until {
			e := s.queue.pop()
			s.now = e.at
			s.step(int(e.host), gossip.Packet{From: e.from, Body: e.body})
		} else if tick != 0 && tick <= until && !(letters && s.queue[0].at < tick) {
			s.now = max(s.now, tick)
			s.step(s.earliest(), gossip.Tick{})
		} else {
			s.now = until
			return
		}
	}
}

// write has a host write its node record again.
func (s *scale) write(i int) {
	r := s.docs[i]
	op := s.lib.ops[i][0]
	op.Seq = crdt.Seq(len(s.lib.ops[i]) + 1)
	op.Closes = []crdt.Seq{op.Seq - 1}
	s.lib.ops[i] = append(s.lib.ops[i], op)
	r.advance(i, op.Seq)
	h := crdt.Head{Node: op.Node, Epoch: 1, Seq: op.Seq}
	s.began[h] = s.now
	for _, down := range s.down {
		if !down {
			s.left[h]++
		}
	}
	s.left[h]-- // itself
	s.step(i, gossip.Local{Out: state.Out{Ops: []crdt.Op{op}}})
}

// TestScale measures the budget: a write among a thousand hosts with fifty thousand containers, 1 % of
// packets lost and 2 % of the members silently down, is seen by all within 100 ms, p99.
func TestScale(t *testing.T) {
	n := *scaleFlag
	if n == 0 {
		n = 120 // the same thing, small
	}
	s := newScale(n, *fromFlag)
	if err := s.fill(); err != nil {
		t.Fatal(err)
	}
	for i, id := range s.lib.ids {
		s.docs = append(s.docs, s.lib.replica())
		s.ms = append(s.ms, gossip.New(gossip.Config{Self: id, Doc: s.docs[i], Seed: s.dice.next()}))
	}
	for i := range n {
		s.step(i, gossip.Members{Alive: s.lib.ids})
	}
	s.run(10 * time.Second)
	for range n / 50 {
		i := s.dice.below(n)
		s.down[i] = true
	}
	writers := make([]int, 0, scaleWriters)
	for len(writers) < scaleWriters {
		if i := s.dice.below(n); !s.down[i] {
			writers = append(writers, i)
		}
	}
	// A host that is down does nothing either.
	for i, down := range s.down {
		if down {
			s.ms[i] = gossip.New(gossip.Config{Self: s.lib.ids[i], Doc: s.docs[i]})
			s.set(i, 0)
		}
	}
	s.packets, s.bytes = 0, 0
	began := s.now
	for k := range scaleWrites {
		s.write(writers[k%len(writers)])
		s.run(s.now + s.dice.span(0, 100*time.Millisecond))
	}
	busy := s.now - began
	packets, bytes := s.packets, s.bytes
	s.run(s.now + 10*time.Second)
	if len(s.left) > 0 {
		t.Fatalf("%d of %d writes are not everywhere 10 s after the last", len(s.left), scaleWrites)
	}
	slices.Sort(s.took)
	at := func(q float64) time.Duration {
		return s.took[int(q*float64(len(s.took)-1))].Round(10 * time.Microsecond)
	}
	t.Logf("%d hosts, %d containers, %d writes: seen by all p50 %v, p90 %v, p99 %v, max %v; %d packets and %d bytes a write, %.0f B/s a host",
		n, n*scaleContainers, len(s.took), at(0.5), at(0.9), at(0.99), at(1), packets/scaleWrites, bytes/scaleWrites, float64(bytes)/busy.Seconds()/float64(n))
	if p99 := at(0.99); p99 > 100*time.Millisecond {
		t.Errorf("p99 is %v, want at most 100ms", p99)
	}
}
