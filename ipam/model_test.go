package ipam

import (
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// The model checker explores the machines' own code, one address among a few nodes: ownership is per
// address. Any map entry may reach any node from any other that knows it, at any time, old ones too;
// nodes crash and lose all that was not synced, die, are given up once dead by an operator on any node.
// The invariant: no two nodes that live and are not fenced may allocate the address under one root.

var (
	modelOn    = flag.Bool("model", false, "exhaust the bounded space of three nodes, and walk longer")
	modelWalks = flag.Duration("walks", 2*time.Second, "how long to walk at random in each setting")
)

// modelAddr is the one address, owned by node 1 at first.
var (
	modelAddr   = netip.MustParsePrefix("10.7.0.4/32")
	modelRoot   = state.Root{Creator: 1, At: 1}
	modelSubnet = netip.MustParsePrefix("10.7.0.0/29")
)

const modelMax = 5

// cell is an entry of a node's map, as somebody knows it: nothing, or a block, or that it was removed.
type cell struct {
	seq   uint8
	block *state.Block
}

// member is one node.
type member struct {
	m      *Machine
	synced *Machine // what of it survives a crash
	know   [modelMax]cell
	dead   bool
}

// universe is one state of the model.
type universe struct {
	rules   *rules
	members [modelMax]*member
	flying  [modelMax][modelMax][]byte // a testimony of the second for the first
	sent    []gift
	offers  int
	crashes int
	deaths  int
}

// gift is the message of an offer, which may arrive at any time, and again.
type gift struct {
	from, to int
	body     []byte
}

// rules bound a run.
type rules struct {
	nodes                   int
	offers, crashes, deaths int
	late                    bool // the last node is known to the first alone
	known                   bool // all others have stored that all others exist
	off                     guard
	scene                   []string // how it begins
	highLost                bool     // the highest version is not durable
	metLost                 bool     // nor who was met
	views                   [modelMax][1 << modelMax]*state.View
	network                 *state.Network
}

func (r *rules) prepare() {
	docs := make([]state.Out, r.nodes)
	for i := range r.nodes {
		d := state.NewDoc(state.NodeID(i+1), 1, crdt.Actor(i+1))
		out, err := d.Apply(state.PutNode{Node: state.Node{Name: string(rune('a' + i)), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}})
		if err != nil {
			panic(err)
		}
		docs[i] = out
	}
	for self := range r.nodes {
		for mask := range 1 << r.nodes {
			if mask&(1<<self) == 0 {
				continue
			}
			d := state.NewDoc(99, 1, 99)
			for i := range r.nodes {
				if mask&(1<<i) != 0 {
					d.Merge(docs[i])
				}
			}
			r.views[self][mask] = d.View()
		}
	}
	r.network = &state.Network{ID: 1, Name: "blue", Def: state.Definition{Name: "blue", Subnet: modelSubnet}}
}

func newUniverse(r *rules) *universe {
	u := &universe{rules: r}
	for i := range r.nodes {
		m := New(Config{Self: state.NodeID(i + 1), Epoch: 1})
		m.quarantine, m.off, m.born, m.started, m.now = 0, r.off, 1, true, time.Second
		n := m.network(1)
		n.view, n.checked, n.defined = r.network, true, true
		for j := range r.nodes {
			if last := r.nodes - 1; r.late && i != j && (i == last || j == last) && i != 0 && j != 0 {
				continue
			}
			if i != j {
				m.met[state.NodeID(j+1)] = 0
				if r.known {
					m.metBy[state.NodeID(j+1)] = true
				}
			}
		}
		u.members[i] = &member{m: m}
	}
	m := u.members[0].m
	var heirs []state.NodeID
	for i := r.nodes - 1; i > 0; i-- {
		if i != r.nodes-1 || !r.late {
			heirs = append(heirs, state.NodeID(i+1))
		}
	}
	m.replay(&entry{kind: entPut, block: state.Block{Network: 1, Prefix: modelAddr, Root: modelRoot, Sealed: true, Ver: 1, Lineage: heirs}})
	for i := range r.nodes {
		u.act(i, func() {})
		u.members[i].synced = cloneMachine(u.members[i].m)
	}
	for _, what := range r.scene {
		all := u.steps()
		all[slices.IndexFunc(all, func(s step) bool { return s.what == what })].do(u)
	}
	return u
}

func (u *universe) clone() *universe {
	c := *u
	for i := range u.rules.nodes {
		m := *u.members[i]
		c.members[i] = &m // machines are copied before they are written to
	}
	return &c
}

func cloneMachine(m *Machine) *Machine {
	c := *m
	c.met, c.metBy, c.lost = maps.Clone(m.met), maps.Clone(m.metBy), maps.Clone(m.lost)
	c.witnessed = maps.Clone(m.witnessed)
	c.order = slices.Clone(m.order)
	n := *m.nets[1]
	n.blocks, n.highs, n.estate = slices.Clone(n.blocks), slices.Clone(n.highs), slices.Clone(n.estate)
	n.told, n.given = slices.Clone(n.told), slices.Clone(n.given)
	n.heard, n.others, n.rivals, n.orphans, n.usable, n.beaten, n.free = nil, nil, nil, nil, nil, nil, nil
	n.vouches = slices.Clone(n.vouches)
	n.ask.refused = nil
	n.idle, n.claims = nil, nil
	if n.inquiry != nil {
		q := *n.inquiry
		q.acks, q.ranges, q.highs = maps.Clone(q.acks), slices.Clone(q.ranges), slices.Clone(q.highs)
		n.inquiry = &q
	}
	n.stale = true
	c.nets = map[state.NetworkID]*network{1: &n}
	c.out, c.entries = Effects{}, nil
	return &c
}

// mask returns which nodes a member knows.
func (u *universe) mask(i int) int {
	mask := 1 << i
	m := u.members[i].m
	for id := range m.met {
		if !m.isLost(id) {
			mask |= 1 << (id - 1)
		}
	}
	return mask
}

// act does something on a member as Step does, with all that it knows, and keeps what it changed.
func (u *universe) act(i int, f func()) Effects {
	mem := u.members[i]
	mem.m = cloneMachine(mem.m)
	m := mem.m
	m.out, m.entries = Effects{}, nil
	n := m.nets[1]
	see := func() {
		m.view = u.rules.views[i][u.mask(i)]
		n.heard = n.heard[:0]
		for j := range u.rules.nodes {
			if b := mem.know[j].block; b != nil && j != i && !m.isLost(state.NodeID(j+1)) {
				n.heard = append(n.heard, b)
			}
		}
		n.stale = true
	}
	was := slices.Clone(n.blocks)
	see()
	m.fresh(n)
	f()
	for was := -1; was != len(m.entries); {
		was = len(m.entries)
		see()
		m.work(n)
	}
	m.out.Log = nil
	u.publish(i, was)
	if m.out.Sync || mem.synced == nil {
		mem.synced = m
	}
	return m.out
}

// publish makes what changed of a member's map a new entry.
func (u *universe) publish(i int, was []state.Block) {
	mem := u.members[i]
	now := mem.m.nets[1].blocks
	if slices.EqualFunc(was, now, func(a, b state.Block) bool { return a.Prefix == b.Prefix && same(&a, &b) }) && mem.know[i].seq > 0 {
		return
	}
	c := cell{seq: mem.know[i].seq + 1}
	for k := range now {
		if now[k].Prefix == modelAddr {
			b := now[k]
			c.block = &b
		}
	}
	mem.know[i] = c
}

// step is an action that is possible now.
type step struct {
	kind string
	what string
	do   func(u *universe)
}

func id(i int) state.NodeID { return state.NodeID(i + 1) }

func (u *universe) live(i int) bool { return !u.members[i].dead }

// steps lists what may happen.
func (u *universe) steps() (out []step) {
	r := u.rules
	add := func(do func(u *universe), format string, args ...any) {
		out = append(out, step{format, fmt.Sprintf(format, args...), do})
	}
	for k, g := range u.sent {
		if u.live(g.to) {
			add(func(u *universe) {
				u.act(g.to, func() { u.members[g.to].m.receive(Msg{id(g.from), g.body}) })
			}, "%d gets offer %d of %d", g.to, k, g.from)
		}
	}
	for i := range r.nodes {
		if !u.live(i) {
			continue
		}
		m := u.members[i].m
		if u.crashes < r.crashes {
			add(func(u *universe) { u.crash(i) }, "%d crashes", i)
		}
		if u.deaths < r.deaths {
			add(func(u *universe) { u.deaths++; u.members[i].dead = true }, "%d dies", i)
		}
		for j := range r.nodes {
			if j == i {
				continue
			}
			if !u.live(j) && !m.isLost(id(j)) {
				if _, met := m.met[id(j)]; met {
					add(func(u *universe) { u.act(i, func() { u.members[i].m.forget(state.Forget{Node: id(j), Epoch: 1}) }) }, "%d: rmpeer %d", i, j)
				}
			}
			u.between(add, i, j)
		}
	}
	return out
}

// between lists what may happen that takes j, to i, both being there but for old messages of j.
func (u *universe) between(add func(func(*universe), string, ...any), i, j int) {
	me, other := u.members[i], u.members[j]
	for k := range u.rules.nodes {
		if k != i && other.know[k].seq > me.know[k].seq && !me.m.isLost(id(k)) && (k == j || u.live(j)) {
			add(func(u *universe) { u.deliver(i, j, k) }, "%d hears of %d's map from %d", i, k, j)
		}
	}
	if !u.live(j) {
		return
	}
	for l := range other.m.lost {
		if _, known := me.m.lost[l]; !known && l != id(i) {
			add(func(u *universe) {
				u.meet(i, j)
				u.act(i, func() { u.members[i].m.forget(state.Forget{Node: l, Epoch: 1}) })
			}, "%d hears from %d that %d is gone", i, j, l-1)
		}
	}
	if _, known := me.m.met[id(j)]; !known {
		add(func(u *universe) { u.meet(i, j); u.act(i, func() {}) }, "%d meets %d", i, j)
		return
	}
	if n := me.m.nets[1]; len(n.usable) > 0 && u.offers < u.rules.offers {
		add(func(u *universe) {
			u.offers++
			ask := message{kind: msgAsk, network: 1, seq: 1, epoch: 1, born: 1, urgent: true, bits: 32}
			out := u.act(i, func() { u.members[i].m.receive(Msg{id(j), ask.encode()}) })
			for _, e := range out.Send {
				if e.To == id(j) && messageKind(e.Body[1]) == msgGive {
					u.sent = append(slices.Clone(u.sent), gift{i, j, e.Body})
				}
			}
		}, "%d offers to %d", i, j)
	}
	if me.m.nets[1].pending() && !me.m.metBy[id(j)] {
		add(func(u *universe) { u.witness(i, j) }, "%d has %d as its witness", i, j)
	}
	if q := me.m.nets[1].inquiry; q != nil && !q.acks[id(j)] && u.flying[i][j] == nil {
		add(func(u *universe) { u.testify(i, j) }, "%d answers what %d asks of all", j, i)
	}
	if u.flying[i][j] != nil {
		add(func(u *universe) {
			body := u.flying[i][j]
			u.flying[i][j] = nil
			u.act(i, func() { u.members[i].m.receive(Msg{id(j), body}) })
		}, "%d gets the answer of %d", i, j)
	}
}

// meet lets i know j.
func (u *universe) meet(i, j int) {
	if _, known := u.members[i].m.met[id(j)]; !known {
		u.act(i, func() { u.members[i].m.meet(id(j), 0) })
	}
}

func (u *universe) deliver(i, j, k int) {
	u.meet(i, j)
	u.meet(i, k)
	u.members[i].know[k] = u.members[j].know[k]
	u.act(i, func() {})
}

// witness has j store i's block and that i exists.
func (u *universe) witness(i, j int) {
	n := u.members[i].m.nets[1]
	k, ok := n.find(modelAddr)
	if !ok {
		return
	}
	msg := message{kind: msgWitness, network: 1, block: n.blocks[k]}
	u.meet(j, i)
	out := u.act(j, func() { u.members[j].m.receive(Msg{id(i), msg.encode()}) })
	for _, e := range out.Send {
		if e.To == id(i) && messageKind(e.Body[1]) == msgStored {
			u.act(i, func() { u.members[i].m.receive(Msg{id(j), e.Body}) })
		}
	}
}

// testify has j answer i's inquiry.
func (u *universe) testify(i, j int) {
	m := u.members[i].m
	n := m.nets[1]
	msg := message{kind: msgInquire, network: 1, epoch: 1, seq: n.inquiry.seq, losses: m.losses(), ranges: n.inquiry.ranges}
	if m.without(guardAllLost) {
		msg.losses = m.lossesOf(n, n.inquiry)
	}
	u.meet(j, i)
	out := u.act(j, func() { u.members[j].m.receive(Msg{id(i), msg.encode()}) })
	for _, e := range out.Send {
		if e.To == id(i) && messageKind(e.Body[1]) == msgTestify {
			u.flying[i][j] = e.Body
		}
	}
}

// crash loses all that was not synced.
func (u *universe) crash(i int) {
	u.crashes++
	mem := u.members[i]
	was := mem.m
	m := cloneMachine(mem.synced)
	n := m.nets[1]
	n.told, n.given, n.inquiry, n.ask, n.vouches = nil, nil, nil, request{}, nil
	if u.rules.highLost {
		n.highs = nil
		for _, b := range n.blocks {
			n.raise(high{b.Prefix, b.Root, b.Ver})
		}
	}
	if u.rules.metLost {
		for id := range m.met {
			if _, named := m.lost[id]; !named && id != 1 {
				delete(m.met, id)
			}
		}
	}
	m.seq = was.seq
	mem.m = m
	own := mem.know[i].seq
	mem.know = [modelMax]cell{}
	for k := range u.rules.nodes {
		u.flying[i][k] = nil
	}
	mem.know[i].seq = own // a later epoch
	u.act(i, func() {})
	if mem.know[i].seq == own { // its map is written anew
		mem.know[i].seq++
		if k, ok := mem.m.nets[1].find(modelAddr); ok {
			b := mem.m.nets[1].blocks[k]
			mem.know[i].block = &b
		}
	}
	mem.synced = mem.m
}

// broken says which two nodes may both allocate the address.
func (u *universe) broken() string {
	var who []int
	for i := range u.rules.nodes {
		m := u.members[i].m
		if u.live(i) && !m.fenced() && len(m.nets[1].usable) > 0 {
			who = append(who, i)
		}
	}
	if len(who) < 2 {
		return ""
	}
	return fmt.Sprintf("%v may all allocate the address", who)
}

var modelHash = maphash.MakeSeed()

// key hashes what matters of a state.
func (u *universe) key() uint64 {
	w := make(writer, 0, 512)
	w.byte(byte(u.offers<<4 | u.crashes<<2 | u.deaths))
	for _, g := range u.sent {
		msg, _ := decodeMessage(g.body)
		w.byte(byte(g.from<<4 | g.to))
		w.brief(&msg.block)
	}
	for i := range u.rules.nodes {
		mem := u.members[i]
		w.flag(mem.dead)
		if mem.dead {
			// What it knew of others is gone; its own entry may still arrive.
			w.cell(mem.know[i], u.rank(i, mem.know[i].seq))
			continue
		}
		w.machine(mem.m)
		if mem.synced == mem.m {
			w.byte(1)
		} else {
			w.byte(0)
			w.machine(mem.synced)
		}
		for j := range u.rules.nodes {
			w.cell(mem.know[j], u.rank(j, mem.know[j].seq))
			q := mem.m.nets[1].inquiry
			if b := u.flying[i][j]; b != nil && q != nil {
				msg, _ := decodeMessage(b)
				w.flag(msg.seq == q.seq)
				if msg.seq == q.seq {
					msg.seq = 0
					w = append(w, msg.encode()...)
				}
			}
		}
	}
	return maphash.Bytes(modelHash, w)
}

// rank is which of the entries of a node's map that anybody knows one is: only their order matters.
func (u *universe) rank(i int, seq uint8) byte {
	var below [256 / 8]byte
	n := byte(0)
	for j := range u.rules.nodes {
		s := u.members[j].know[i].seq
		if u.members[j].dead && j != i || s >= seq || below[s/8]&(1<<(s%8)) != 0 {
			continue
		}
		below[s/8] |= 1 << (s % 8)
		n++
	}
	return n
}

func (w *writer) cell(c cell, rank byte) {
	w.byte(rank)
	if c.block == nil {
		w.byte(0)
		return
	}
	w.byte(1)
	w.brief(c.block)
}

// brief appends a block as short as the model allows.
func (w *writer) brief(b *state.Block) {
	w.byte(byte(b.Node))
	w.byte(byte(b.Prefix.Bits()))
	w.byte(byte(b.Ver))
	w.byte(byte(b.Kind)<<1 | byte(b.State))
	w.byte(byte(b.To))
	w.byte(byte(len(b.Lineage)))
	for _, id := range b.Lineage {
		w.byte(byte(id))
	}
}

func (w *writer) machine(m *Machine) {
	n := m.nets[1]
	var met, by byte
	for id := range m.met {
		met |= 1 << id
	}
	for id := range m.metBy {
		by |= 1 << id
	}
	var lost byte
	for id := range m.lost {
		lost |= 1 << id
	}
	w.byte(met)
	w.byte(by)
	w.byte(lost)
	for _, list := range [][]state.Block{n.blocks, n.estate, n.told} {
		w.byte(byte(len(list)))
		for i := range list {
			w.brief(&list[i])
		}
	}
	w.byte(byte(n.high(modelAddr, modelRoot)))
	var seen []string
	for k, b := range m.witnessed {
		x := writer{byte(k.node)}
		x.brief(&b)
		seen = append(seen, string(x))
	}
	slices.Sort(seen)
	for _, s := range seen {
		*w = append(*w, s...)
	}
	w.byte(255)
	if q := n.inquiry; q != nil {
		var acks, high byte
		for id := range q.acks {
			acks |= 1 << id
		}
		for _, h := range q.highs {
			high = max(high, byte(h.ver))
		}
		w.byte(acks)
		w.byte(high)
		w.flag(q.mark == m.lossMark)
	}
}

// exhaust visits every state that can be reached, and returns how many there are.
func exhaust(t *testing.T, r *rules, limit int) (states int, whole bool) {
	r.prepare()
	seen := map[uint64]struct{}{}
	type frame struct {
		u     *universe
		steps []step
		what  string
	}
	first := newUniverse(r)
	stack := []frame{{first, first.steps(), ""}}
	seen[first.key()] = struct{}{}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.steps) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		s := top.steps[0]
		top.steps = top.steps[1:]
		u := top.u.clone()
		s.do(u)
		k := u.key()
		if _, old := seen[k]; old {
			continue
		}
		seen[k] = struct{}{}
		if why := u.broken(); why != "" {
			var path []string
			for _, f := range stack[1:] {
				path = append(path, f.what)
			}
			t.Fatalf("%s:\n%s", why, strings.Join(shorten(r, append(path, s.what)), "\n"))
		}
		if len(seen) >= limit {
			return len(seen), false
		}
		stack = append(stack, frame{u, u.steps(), s.what})
	}
	return len(seen), true
}

// walk goes at random until the time is over, and returns how many steps it made and the story of a
// violation, if it met one.
func walk(r *rules, seed uint64, long time.Duration) (steps int, story []string) {
	r.prepare()
	rnd := rand.New(rand.NewPCG(seed, 7))
	began := time.Now()
	for time.Since(began) < long {
		u := newUniverse(r)
		var path []string
		// Each walk likes some kinds of steps more than others, and cuts what it likes: without that
		// nothing is ever missed for long.
		cut := rnd.Uint64()
		weights := map[string]float64{}
		for range 40 {
			all := u.steps()
			if len(all) == 0 {
				break
			}
			if rnd.IntN(8) == 0 {
				cut = rnd.Uint64()
			}
			s := choose(rnd, weights, all)
			if h := maphash.String(modelHash, s.what); h%3 == 0 && (cut>>(h%61))&1 == 0 {
				continue
			}
			s.do(u)
			steps++
			path = append(path, s.what)
			if u.broken() != "" {
				return steps, shorten(r, path)
			}
		}
	}
	return steps, nil
}

// choose draws a step by the weights of their kinds, which it draws first.
func choose(rnd *rand.Rand, weights map[string]float64, all []step) step {
	sum := 0.0
	for _, s := range all {
		if _, ok := weights[s.kind]; !ok {
			weights[s.kind] = [...]float64{0.01, 0.1, 1, 4}[rnd.IntN(4)]
		}
		sum += weights[s.kind]
	}
	x := rnd.Float64() * sum
	for _, s := range all {
		if x -= weights[s.kind]; x < 0 {
			return s
		}
	}
	return all[len(all)-1]
}

// shorten drops steps from a story as long as it still ends badly.
func shorten(r *rules, path []string) []string {
	for i := 0; i < len(path); {
		less := slices.Delete(slices.Clone(path), i, i+1)
		if n, bad := replayStory(r, less); bad {
			path, i = less[:n], 0
		} else {
			i++
		}
	}
	return path
}

func replayStory(r *rules, path []string) (n int, bad bool) {
	u := newUniverse(r)
	for i, what := range path {
		all := u.steps()
		k := slices.IndexFunc(all, func(s step) bool { return s.what == what })
		if k < 0 {
			return 0, false
		}
		all[k].do(u)
		if u.broken() != "" {
			return i + 1, true
		}
	}
	return 0, false
}

// TestModelSmall exhausts a small space and walks a little, in each ordinary run.
func TestModelSmall(t *testing.T) {
	states, whole := exhaust(t, &rules{nodes: 3, offers: 1, deaths: 1, known: true}, 1<<22)
	if !whole {
		t.Fatal("not exhausted")
	}
	t.Logf("3 nodes, 1 offer, 1 death: %d states", states)
	for _, r := range walks() {
		if steps, story := walk(&r, 1, *modelWalks/4); story != nil {
			t.Fatalf("after %d steps:\n%s", steps, strings.Join(story, "\n"))
		}
	}
}

func walks() []rules {
	return []rules{
		{nodes: 4, offers: 3, crashes: 1, deaths: 2, known: true},
		{nodes: 3, offers: 3, crashes: 2, deaths: 1, late: true},
		{nodes: 4, offers: 3, crashes: 1, deaths: 2},
		{nodes: 4, offers: 3, crashes: 2, deaths: 1, late: true},
		{nodes: 5, offers: 4, crashes: 2, deaths: 2},
	}
}

// mutations are the guards of which each is needed, and what to look in for the story without it.
var mutations = []struct {
	name  string
	rules rules
}{
	{"E4: all ever met say that they stored it", rules{nodes: 3, offers: 1, deaths: 1, off: guardAcks}},
	{"E4: they stored all that were given up, not the holder alone", rules{nodes: 4, offers: 2, deaths: 2, known: true, off: guardAllLost,
		scene: []string{"1 hears of 0's map from 0", "0 offers to 3", "3 gets offer 0 of 0", "3 offers to 2"}}},
	{"E4: they tell all they know", rules{nodes: 4, offers: 3, deaths: 1, off: guardKnowledge}},
	{"T: the grantor was not given up", rules{nodes: 3, offers: 1, deaths: 1, off: guardGrantor}},
	{"the highest version ever held is durable", rules{nodes: 3, offers: 3, crashes: 1, highLost: true,
		scene: []string{"0 offers to 1", "1 gets offer 0 of 0", "1 has 2 as its witness", "1 offers to 0", "0 gets offer 1 of 1"}}},
	{"E1: the highest known record counts", rules{nodes: 4, offers: 3, deaths: 2, off: guardHighest}},
	{"W: a third node stored that the taker exists", rules{nodes: 3, offers: 1, deaths: 1, late: true, off: guardWitness}},
	{"W: and remembers it after a crash", rules{nodes: 3, offers: 1, deaths: 1, crashes: 1, late: true, metLost: true,
		scene: []string{"1 hears of 0's map from 0", "0 offers to 2", "2 hears of 0's map from 0"}}},
}

// TestModelGuards wants a story for each guard that is switched off.
func TestModelGuards(t *testing.T) {
	if !*modelOn {
		t.Skip("runs with -model: make model")
	}
	for _, c := range mutations {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			steps, story := walk(&c.rules, 2, time.Minute)
			if story == nil {
				t.Fatalf("no violation without it in %d steps", steps)
			}
			t.Logf("without it, after %d steps and %v:\n    %s", steps, time.Since(began).Round(time.Millisecond), strings.Join(story, "\n    "))
		})
	}
}

// TestModel exhausts three nodes and walks long: make model.
func TestModel(t *testing.T) {
	if !*modelOn {
		t.Skip("runs with -model: make model")
	}
	for _, r := range []rules{
		{nodes: 3, offers: 1, deaths: 1, crashes: 1},
		{nodes: 3, offers: 1, deaths: 1, late: true},
		{nodes: 3, offers: 2, deaths: 1, known: true},
	} {
		began := time.Now()
		states, whole := exhaust(t, &r, 1<<25)
		t.Logf("%s: %d states, %v", &r, states, time.Since(began).Round(time.Second))
		if !whole {
			t.Fatal("not exhausted")
		}
	}
	for i, r := range walks() {
		steps, story := walk(&r, uint64(i), *modelWalks)
		if story != nil {
			t.Fatalf("%s: after %d steps:\n%s", &r, steps, strings.Join(story, "\n"))
		}
		t.Logf("%s: %d steps at random, %v", &r, steps, *modelWalks)
	}
}

func (r *rules) String() string {
	s := fmt.Sprintf("%d nodes, %d offers, %d crashes, %d deaths", r.nodes, r.offers, r.crashes, r.deaths)
	if r.late {
		s += ", the last joins late"
	}
	if r.known {
		s += ", all have stored all"
	}
	return s
}
