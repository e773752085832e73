package crdt

import (
	"cmp"
	"iter"
	"maps"
	"slices"
)

// journalMax bounds how many removals of one replica are remembered. Who asks from before them gets
// the list of what lives instead.
const journalMax = 4096

// Owned is every node's own map, as far as this node knows it. The zero value is not usable.
type Owned struct {
	self  Node
	epoch Epoch // in which self writes
	doubt Epoch // highest epoch of own ops that others hold and self does not
	nodes map[Node]*replica
	// buckets spreads the nodes for the comparison of digests.
	buckets [Buckets]bucket
	digest  digest
	gapped  map[Node]struct{}
	gone    map[Node]Epoch
	watch   func(Node, string)
	journal int // journalMax
	ignored uint64
}

// replica is what is known of one node. The lowest of its lives is shown if it is complete; those
// above it are incomplete and come to be shown when they are.
type replica struct {
	lives   []*life // by epoch
	visible *life   // what is shown now, nil for nothing
}

// life is a replica's map in one epoch: the image of a set of ops under "the highest seq of a key
// counts".
type life struct {
	epoch Epoch
	whole Seq
	head  Seq    // every seq up to it is known
	cloud []Span // and these beyond
	cells map[string]*Op
	order []slot // the cells by seq, and places of some that are gone
	holes int    // how many of those
	tombs []*Op  // the cells that are removals, by seq, kept while there is a gap below
	// deaths lists which seqs ceased to live and through which op, in the order they became known.
	// It is exact for all ops beyond exact.
	deaths  []death
	journal int // how many of them are kept
	exact   Seq
	hash    hash
}

// slot is the place of a cell in the order; op is nil once the cell is gone.
type slot struct {
	seq Seq
	op  *Op
}

type death struct{ by, dead Seq }

// NewOwned returns the maps of nobody yet, with self writing in epoch. watch, which may be nil, is
// called with each key whose shown value may have changed, while the call that changes it runs; it
// may read but not write.
func NewOwned(self Node, epoch Epoch, watch func(Node, string)) *Owned {
	if watch == nil {
		watch = func(Node, string) {}
	}
	return &Owned{
		self: self, epoch: epoch, watch: watch, journal: journalMax,
		nodes:  make(map[Node]*replica),
		gapped: make(map[Node]struct{}),
		gone:   make(map[Node]Epoch),
	}
}

// Put writes a key of self's map and keeps both slices. Self must not be forgotten in its epoch.
func (o *Owned) Put(key, value []byte) Op {
	if value == nil {
		value = []byte{}
	}
	return o.write(key, value)
}

// Remove removes a key of self's map; false if it has none.
func (o *Owned) Remove(key []byte) (Op, bool) {
	if _, ok := o.Get(o.self, string(key)); !ok {
		return Op{}, false
	}
	return o.write(key, nil), true
}

func (o *Owned) write(key, value []byte) Op {
	if o.epoch <= o.gone[o.self] {
		panic("crdt: write of a forgotten node")
	}
	l := o.life(o.self, o.epoch)
	op := Op{Node: o.self, Epoch: o.epoch, Seq: l.top() + 1, Whole: l.whole, Key: key, Value: value}
	if was, ok := l.cells[string(key)]; ok {
		op.Closes = []Seq{was.Seq}
	}
	o.apply(l, &op)
	return op
}

// Merge takes in ops in any order and returns those that were news. It keeps the ops' slices. Ops of
// self that it does not have are not taken in: see [Owned.Doubt].
func (o *Owned) Merge(ops []Op) []Op {
	var news []Op
	for i := range ops {
		op := &ops[i]
		if op.Node == o.self {
			o.heard(op.Epoch, op.Seq)
			continue
		}
		if o.merge(op) {
			news = append(news, *op)
		}
	}
	return news
}

// Restore is [Owned.Merge] of what self itself has kept, own ops included; it may move self to a
// later epoch.
func (o *Owned) Restore(ops []Op) []Op {
	var news []Op
	for i := range ops {
		if ops[i].Node == o.self {
			o.epoch = max(o.epoch, ops[i].Epoch)
		}
		if o.merge(&ops[i]) {
			news = append(news, ops[i])
		}
	}
	return news
}

func (o *Owned) merge(op *Op) bool {
	if op.Seq == 0 || op.Seq > numMax || op.Epoch == 0 || op.Node == 0 {
		o.ignored++
		return false
	}
	l := o.life(op.Node, op.Epoch)
	if l == nil {
		o.ignored++
		return false
	}
	kept := *op
	return o.apply(l, &kept)
}

// heard notes that others hold an own seq; zero is none of the epoch. What was forgotten raises no
// doubt: nobody will hold it.
func (o *Owned) heard(e Epoch, s Seq) {
	if e < o.epoch || e <= o.gone[o.self] || s > numMax {
		return
	}
	if e == o.epoch {
		if l := o.shown(o.self); s == 0 || l != nil && l.epoch == e && l.covered(s) {
			return
		}
	}
	o.doubt = max(o.doubt, e)
}

// Doubt returns the highest epoch of own ops that others hold and self does not, because self was
// rolled back or copied. It has to [Owned.Renew] beyond it before it writes again.
func (o *Owned) Doubt() (Epoch, bool) { return o.doubt, o.doubt >= o.epoch }

// Epoch returns the epoch in which self writes.
func (o *Owned) Epoch() Epoch { return o.epoch }

// Ignored counts the ops and patches that came too late (an epoch that is over, a forgotten node) or
// cannot be meant.
func (o *Owned) Ignored() uint64 { return o.ignored }

// Get returns the op that shows a key of a node, never a removal.
func (o *Owned) Get(n Node, key string) (Op, bool) {
	if l := o.shown(n); l != nil {
		if op, ok := l.cells[key]; ok && op.Value != nil {
			return *op, true
		}
	}
	return Op{}, false
}

// Renew begins a later epoch of self, with its map written again whole, and returns the ops.
func (o *Owned) Renew(epoch Epoch) []Op {
	if epoch <= o.epoch || epoch <= o.doubt {
		panic("crdt: renewed with an epoch that is not later")
	}
	var live []*Op
	if l := o.shown(o.self); l != nil {
		for op := range l.since(1) {
			if op.Value != nil {
				live = append(live, op)
			}
		}
	}
	o.epoch = epoch
	ops := make([]Op, len(live))
	for i, op := range live {
		ops[i] = Op{
			Node: o.self, Epoch: epoch, Seq: Seq(i + 1), Whole: Seq(len(live)),
			Key: op.Key, Value: op.Value, Ext: op.Ext,
		}
	}
	l := o.life(o.self, epoch)
	if l == nil {
		return nil // forgotten beyond the epoch
	}
	l.whole = Seq(len(live))
	for i := range ops {
		kept := ops[i]
		o.apply(l, &kept)
	}
	o.settle(o.self, l, nil)
	return ops
}

// Forget drops a node's map up to an epoch, for good.
func (o *Owned) Forget(n Node, e Epoch) {
	if e <= o.gone[n] {
		return
	}
	o.gone[n] = e
	r := o.nodes[n]
	if r == nil {
		return
	}
	b := o.bucketOf(n)
	b.heads = nil
	r.lives = slices.DeleteFunc(r.lives, func(l *life) bool {
		if l.epoch <= e {
			b.sum.mix(l.hash)
		}
		return l.epoch <= e
	})
	o.tidy(n, r)
	o.show(n, r)
}

// Alone drops the maps of all nodes but self, as if they had never been heard. What was forgotten stays
// so. It reports whether there were any.
func (o *Owned) Alone() bool {
	others := slices.DeleteFunc(slices.Sorted(maps.Keys(o.nodes)), func(n Node) bool { return n == o.self })
	for _, n := range others {
		r, b := o.nodes[n], o.bucketOf(n)
		b.heads = nil
		for _, l := range r.lives {
			b.sum.mix(l.hash)
		}
		r.lives = nil
		o.tidy(n, r)
		o.show(n, r)
	}
	return len(others) > 0
}

// life returns the map of a node in an epoch, made if need be; nil if that epoch is over.
func (o *Owned) life(n Node, e Epoch) *life {
	if e <= o.gone[n] {
		return nil
	}
	r := o.nodes[n]
	if r == nil {
		r = &replica{}
		o.nodes[n] = r
		o.bucketOf(n).insert(n)
	}
	i, found := slices.BinarySearchFunc(r.lives, e, func(l *life, e Epoch) int { return cmp.Compare(l.epoch, e) })
	if found {
		return r.lives[i]
	}
	if i == 0 && r.visible != nil {
		return nil
	}
	l := &life{epoch: e, cells: make(map[string]*Op), journal: o.journal}
	o.bucketOf(n).heads = nil
	r.lives = slices.Insert(r.lives, i, l)
	return l
}

// apply takes one op into a life and reports whether it was news. It keeps the op. An op that a later
// one closed before it came may still close what that one does not.
func (o *Owned) apply(l *life, op *Op) bool {
	fresh := !l.covered(op.Seq)
	news := fresh
	l.cover(Span{uint64(op.Seq), uint64(op.Seq)})
	for _, c := range op.Closes {
		if c > 0 && c < op.Seq && !l.covered(c) {
			l.cover(Span{uint64(c), uint64(c)})
			news = true
		}
	}
	if !news {
		return false
	}
	l.whole = max(l.whole, op.Whole)
	for _, c := range op.Closes {
		if c > 0 && c < op.Seq {
			l.died(op.Seq, c)
		}
	}
	if fresh {
		l.set(op)
	}
	o.settle(op.Node, l, op)
	return true
}

// settle restores what holds between calls after a life has learnt something: at most one complete
// life, no removals without a gap, hashes. op, which may be nil, is the op it learnt.
func (o *Owned) settle(n Node, l *life, op *Op) {
	l.sweep()
	r := o.nodes[n]
	b := o.bucketOf(n)
	b.heads = nil
	b.sum.mix(l.hash)
	l.hash = hashLife(n, l)
	b.sum.mix(l.hash)
	for i := len(r.lives) - 1; i > 0; i-- {
		if r.lives[i].complete() {
			for _, old := range r.lives[:i] {
				b.sum.mix(old.hash)
			}
			r.lives = slices.Delete(r.lives, 0, i)
			break
		}
	}
	o.tidy(n, r)
	if !o.show(n, r) && r.visible == l && op != nil {
		o.watch(n, string(op.Key))
	}
}

// show makes visible what is complete, and reports whether that is another life than before.
func (o *Owned) show(n Node, r *replica) bool {
	was := r.visible
	r.visible = nil
	if len(r.lives) > 0 && r.lives[0].complete() {
		r.visible = r.lives[0]
	}
	if r.visible == was {
		return false
	}
	for _, l := range []*life{was, r.visible} {
		if l == nil {
			continue
		}
		for op := range l.since(1) {
			o.watch(n, string(op.Key))
		}
	}
	return true
}

// tidy notes whether a node has gaps, and drops a replica of which nothing is known.
func (o *Owned) tidy(n Node, r *replica) {
	if len(r.lives) == 0 {
		delete(o.nodes, n)
		o.bucketOf(n).remove(n)
	}
	for _, l := range r.lives {
		if len(l.cloud) > 0 || !l.complete() {
			o.gapped[n] = struct{}{}
			return
		}
	}
	delete(o.gapped, n)
}

func (o *Owned) shown(n Node) *life {
	if r := o.nodes[n]; r != nil {
		return r.visible
	}
	return nil
}

func (l *life) complete() bool { return l.head >= l.whole }

func (l *life) covered(s Seq) bool { return s <= l.head || spansHave(l.cloud, uint64(s)) }

// top is the highest seq known.
func (l *life) top() Seq {
	if n := len(l.cloud); n > 0 {
		return Seq(l.cloud[n-1].To)
	}
	return l.head
}

// cover adds seqs to those known.
func (l *life) cover(s Span) {
	if s.To <= uint64(l.head) {
		return
	}
	if s.From > uint64(l.head)+1 || len(l.cloud) > 0 {
		s.From = max(s.From, uint64(l.head)+1)
		l.cloud = spansAdd(l.cloud, s)
		if l.cloud[0].From > uint64(l.head)+1 {
			return
		}
		s = l.cloud[0]
		l.cloud = slices.Delete(l.cloud, 0, 1)
	}
	l.head = Seq(s.To)
}

// set makes op the cell of its key if no later op is.
func (l *life) set(op *Op) {
	was, ok := l.cells[string(op.Key)]
	if ok && was.Seq > op.Seq {
		l.died(was.Seq, op.Seq)
		return
	}
	if ok {
		l.died(op.Seq, was.Seq)
		l.drop(was)
	}
	l.cells[string(op.Key)] = op
	i, _ := l.find(op.Seq)
	l.order = slices.Insert(l.order, i, slot{op.Seq, op})
	if op.Value == nil {
		i, _ := slices.BinarySearchFunc(l.tombs, op.Seq, compareSeq)
		l.tombs = slices.Insert(l.tombs, i, op)
	}
}

func compareSeq(op *Op, s Seq) int { return cmp.Compare(op.Seq, s) }

// since yields the cells from a seq on, by seq.
func (l *life) since(s Seq) iter.Seq[*Op] {
	return func(yield func(*Op) bool) {
		i, _ := l.find(s)
		for _, c := range l.order[i:] {
			if c.op != nil && !yield(c.op) {
				return
			}
		}
	}
}

// find returns where in the order a seq is or would be.
func (l *life) find(s Seq) (int, bool) {
	if n := len(l.order); n == 0 || l.order[n-1].seq < s {
		return n, false
	}
	return slices.BinarySearchFunc(l.order, s, func(c slot, s Seq) int { return cmp.Compare(c.seq, s) })
}

// drop ends a cell. Its place in the order goes once most places are empty, so that dropping one among
// many costs a search.
func (l *life) drop(op *Op) {
	i, _ := l.find(op.Seq)
	l.order[i].op = nil
	if l.holes++; l.holes > len(l.order)/2 {
		l.order = slices.DeleteFunc(l.order, func(c slot) bool { return c.op == nil })
		l.holes = 0
	}
	delete(l.cells, string(op.Key))
	if op.Value == nil {
		if i, found := slices.BinarySearchFunc(l.tombs, op.Seq, compareSeq); found {
			l.tombs = slices.Delete(l.tombs, i, i+1)
		}
	}
}

// sweep drops the removals that have no gap below them: nothing older of their key can come.
func (l *life) sweep() {
	for len(l.tombs) > 0 && l.tombs[0].Seq <= l.head {
		t := l.tombs[0]
		l.tombs = l.tombs[1:]
		l.drop(t)
	}
}

// died notes that the seq dead ceased to live through the op by, or through one before it.
func (l *life) died(by, dead Seq) {
	if by <= l.exact {
		return
	}
	if n := len(l.deaths); n > 0 && l.deaths[n-1] == (death{by, dead}) {
		return
	}
	l.deaths = append(l.deaths, death{by, dead})
	if len(l.deaths) > l.journal {
		half := l.deaths[:(len(l.deaths)+1)/2]
		for _, d := range half {
			l.exact = max(l.exact, d.by)
		}
		l.deaths = slices.Clone(l.deaths[len(half):])
	}
}
