package crdt

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Buckets is in how many parts the nodes are compared when digests differ.
const Buckets = 32

type bucket struct {
	nodes []Node // ascending
	sum   hash
	heads []Head // of nodes; nil: to be worked out
}

// hash is a sum of hashes that does not depend on their order.
type hash [2]uint64

func (h *hash) mix(x hash) { h[0], h[1] = h[0]^x[0], h[1]^x[1] }

func hashOf(b []byte) hash {
	s := sha256.Sum256(b)
	return hash{binary.BigEndian.Uint64(s[:]), binary.BigEndian.Uint64(s[8:])}
}

func hashLife(n Node, l *life) hash {
	b := make([]byte, 0, 64)
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	b = binary.BigEndian.AppendUint32(b, uint32(l.epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(l.head))
	for _, s := range l.cloud {
		b = binary.BigEndian.AppendUint64(b, s.From)
		b = binary.BigEndian.AppendUint64(b, s.To)
	}
	return hashOf(b)
}

// BucketOf returns the bucket of a node, from 0.
func BucketOf(n Node) int { return int(n % Buckets) }

func (o *Owned) bucketOf(n Node) *bucket { return &o.buckets[BucketOf(n)] }

func (b *bucket) insert(n Node) {
	if i, found := slices.BinarySearch(b.nodes, n); !found {
		b.nodes = slices.Insert(b.nodes, i, n)
	}
}

func (b *bucket) remove(n Node) {
	if i, found := slices.BinarySearch(b.nodes, n); found {
		b.nodes = slices.Delete(b.nodes, i, i+1)
	}
}

// Digest is equal on two replicas exactly when they hold the same ops of every node.
func (o *Owned) Digest() [16]byte {
	var b [Buckets * 16]byte
	for i := range o.buckets {
		binary.BigEndian.PutUint64(b[i*16:], o.buckets[i].sum[0])
		binary.BigEndian.PutUint64(b[i*16+8:], o.buckets[i].sum[1])
	}
	return o.digest.of(b[:])
}

// digest is the hash of some bytes, worked out again when they change: it is asked for many times as
// often.
type digest struct {
	bytes []byte
	sum   [16]byte
}

func (d *digest) of(b []byte) [16]byte {
	if d.bytes == nil || !bytes.Equal(d.bytes, b) {
		d.bytes = append(d.bytes[:0], b...)
		s := sha256.Sum256(b)
		d.sum = [16]byte(s[:16])
	}
	return d.sum
}

// Buckets hashes what is known of the nodes of each bucket.
func (o *Owned) Buckets() (sums [Buckets]uint64) {
	for i := range o.buckets {
		sums[i] = o.buckets[i].sum[0]
	}
	return sums
}

// Heads returns how far the maps of one bucket are known, by (node, epoch). The first of a node is of
// the epoch that is shown, or zero while none is complete; those after it are of epochs to come.
// Nobody writes to the slice.
func (o *Owned) Heads(bucket int) []Head {
	b := &o.buckets[bucket]
	if b.heads == nil && len(b.nodes) > 0 {
		heads := make([]Head, 0, len(b.nodes))
		for _, n := range b.nodes {
			heads = o.heads(heads, n)
		}
		b.heads = slices.Clip(heads)
	}
	return b.heads
}

func (o *Owned) heads(out []Head, n Node) []Head {
	r := o.nodes[n]
	if r.visible == nil {
		out = append(out, Head{Node: n})
	}
	for _, l := range r.lives {
		out = append(out, Head{n, l.epoch, l.head})
	}
	return out
}

// Gaps returns the heads of the nodes of which ops are known beyond a gap, or a part only of a new
// epoch, by (node, epoch).
func (o *Owned) Gaps() []Head {
	if len(o.gapped) == 0 {
		return nil
	}
	nodes := make([]Node, 0, len(o.gapped))
	for n := range o.gapped {
		nodes = append(nodes, n)
	}
	slices.Sort(nodes)
	var out []Head
	for _, n := range nodes {
		out = o.heads(out, n)
	}
	return out
}

// Missing returns what a holder of these heads lacks of the nodes they name, in patches of at most
// about limit bytes in all but at least one, and whether there is more. A node that the holder does
// not know is named by a zero head, as in [Owned.Heads].
func (o *Owned) Missing(heads []Head, limit int) (out []Patch, more bool) {
	have := make(map[Node][]Head, len(heads))
	var names []Node
	for _, h := range heads {
		if have[h.Node] == nil {
			names = append(names, h.Node)
		}
		have[h.Node] = append(have[h.Node], h)
	}
	// What lies beyond gaps moves no head, so it comes last and is never what there is more of.
	size := 0
	for _, beyond := range []bool{false, true} {
		for _, n := range names {
			r := o.nodes[n]
			if r == nil {
				continue
			}
			for _, l := range r.lives {
				from, lacks := l.lacks(have[n], beyond)
				if !lacks {
					continue
				}
				p := l.patch(n, from)
				if size += p.size(); size > limit && len(out) > 0 {
					return out, !beyond
				}
				out = append(out, p)
			}
		}
	}
	return out, false
}

// lacks returns from where a holder of these heads of one node needs a life, if it does: for its
// head, or only for what is known beyond that.
func (l *life) lacks(heads []Head, beyond bool) (from Seq, lacks bool) {
	shown := heads[0].Epoch
	for _, h := range heads {
		shown = min(shown, h.Epoch)
		if h.Epoch == l.epoch {
			if beyond {
				return h.Seq, l.head <= h.Seq && l.top() > h.Seq
			}
			return h.Seq, l.head > h.Seq
		}
	}
	return 0, !beyond && l.epoch > shown
}

// patch returns what a holder of head from lacks.
func (l *life) patch(n Node, from Seq) Patch {
	p := Patch{
		Node: n, Epoch: l.epoch, Whole: l.whole, From: from, Head: l.head,
		Cloud: slices.Clone(l.cloud), Listed: from > 0 && from < l.exact,
	}
	for op := range l.since(from + 1) {
		sent := *op
		sent.Closes, sent.Whole = nil, l.whole // the patch says what it closes
		p.Ops = append(p.Ops, sent)
	}
	if p.Listed {
		for op := range l.since(1) {
			if op.Seq > from {
				break
			}
			p.Live = append(p.Live, op.Seq)
		}
		return p
	}
	for _, d := range l.deaths {
		if d.by > from && d.dead <= from {
			p.Dead = append(p.Dead, d.dead)
		}
	}
	slices.Sort(p.Dead)
	p.Dead = slices.Compact(p.Dead)
	return p
}

// size is about how many bytes the patch takes on the wire.
func (p *Patch) size() int {
	n := 32 + 2*(len(p.Dead)+len(p.Live)+len(p.Needs)) + 4*len(p.Cloud)
	for i := range p.Ops {
		n += 12 + len(p.Ops[i].Key) + len(p.Ops[i].Value) + len(p.Ops[i].Ext)
	}
	return n
}

// Patch takes in a patch. It returns the ops that were news and whether the patch did more than
// them: covered or dropped what they do not.
func (o *Owned) Patch(p Patch) (news []Op, more bool) {
	if !p.valid() {
		o.ignored++
		return nil, false
	}
	if p.Node == o.self {
		o.heard(p.Epoch, p.top())
		return nil, false
	}
	return o.patch(p)
}

// RestorePatch is [Owned.Patch] of what self itself has kept, own ops included; it may move self to
// a later epoch.
func (o *Owned) RestorePatch(p Patch) (news []Op, more bool) {
	if !p.valid() {
		o.ignored++
		return nil, false
	}
	if p.Node == o.self {
		o.epoch = max(o.epoch, p.Epoch)
	}
	return o.patch(p)
}

func (o *Owned) patch(p Patch) (news []Op, more bool) {
	l := o.life(p.Node, p.Epoch)
	if l == nil {
		o.ignored++
		return nil, false
	}
	born := l.hash == hash{}
	if born {
		l.whole = p.Whole
	}
	for i := range p.Ops {
		op := &p.Ops[i]
		if op.Node == p.Node && op.Epoch == p.Epoch && op.Seq > 0 {
			kept := *op
			if o.apply(l, &kept) {
				news = append(news, *op)
			}
		}
	}
	dead, more := l.take(p)
	if more || born {
		o.settle(p.Node, l, nil)
	}
	if o.shown(p.Node) == l {
		for _, op := range dead {
			o.watch(p.Node, string(op.Key))
		}
	}
	return news, more || born && len(news) == 0
}

// take makes known what a patch says beyond its ops. It returns the cells that this ended and
// whether anything changed.
func (l *life) take(p Patch) (dead []*Op, changed bool) {
	if l.head < p.From {
		return nil, false
	}
	for _, s := range p.Needs {
		if !l.covered(s) {
			return nil, false
		}
	}
	theirs := make([]Span, 0, len(p.Cloud)+1)
	if p.Head > 0 {
		theirs = append(theirs, Span{1, uint64(p.Head)})
	}
	for _, s := range p.Cloud {
		theirs = spansAdd(theirs, s)
	}
	mine := l.known()
	for _, s := range theirs {
		changed = changed || len(spansMinus(s, mine)) > 0
	}
	if !changed {
		return nil, false
	}
	dead = l.bury(p, theirs)
	for _, s := range theirs {
		l.cover(s)
	}
	l.exact = max(l.exact, p.top())
	l.deaths = slices.DeleteFunc(l.deaths, func(d death) bool { return d.by <= l.exact })
	return dead, true
}

// known lists the seqs that are known.
func (l *life) known() []Span {
	out := make([]Span, 0, len(l.cloud)+1)
	if l.head > 0 {
		out = append(out, Span{1, uint64(l.head)})
	}
	return append(out, l.cloud...)
}

// bury drops and returns the cells that the sender of a patch knows and no longer holds.
func (l *life) bury(p Patch, theirs []Span) (dead []*Op) {
	first := p.From + 1
	if p.Listed {
		first = 1
	} else {
		for _, s := range p.Dead {
			if i, found := l.find(s); found && l.order[i].op != nil && s <= p.From {
				dead = append(dead, l.order[i].op)
			}
		}
	}
	for op := range l.since(first) {
		if !spansHave(theirs, uint64(op.Seq)) {
			continue
		}
		lives := p.sends(op.Seq)
		if op.Seq <= p.From {
			_, lives = slices.BinarySearch(p.Live, op.Seq)
		}
		if !lives {
			dead = append(dead, op)
		}
	}
	for _, op := range dead {
		l.drop(op)
	}
	return dead
}

// top is the highest seq that the sender knows.
func (p *Patch) top() Seq {
	if n := len(p.Cloud); n > 0 {
		return Seq(p.Cloud[n-1].To)
	}
	return p.Head
}

// sends reports whether an op beyond From lives with the sender.
func (p *Patch) sends(s Seq) bool {
	if _, ok := slices.BinarySearch(p.Needs, s); ok {
		return true
	}
	_, ok := slices.BinarySearchFunc(p.Ops, s, func(op Op, s Seq) int { return cmp.Compare(op.Seq, s) })
	return ok
}

// valid reports whether a patch can be counted with; one that was decoded may say anything.
func (p *Patch) valid() bool {
	if p.Node == 0 || p.Epoch == 0 || p.Head > numMax || p.From > numMax || p.Whole > numMax {
		return false
	}
	last := uint64(p.Head)
	for _, s := range p.Cloud {
		if !s.valid() || s.From <= last {
			return false
		}
		last = s.To
	}
	return slices.IsSorted(p.Needs) && slices.IsSorted(p.Dead) && slices.IsSorted(p.Live) &&
		slices.IsSortedFunc(p.Ops, func(a, b Op) int { return cmp.Compare(a.Seq, b.Seq) }) &&
		(len(p.Ops) == 0 || p.Ops[len(p.Ops)-1].Seq <= numMax)
}

// Coalesce returns the ops without those that a later op of the same key and epoch overwrites; that
// one then closes what they closed. For ops not sent yet, in the order they were made.
func Coalesce(ops []Op) []Op {
	last := make(map[string]int, len(ops))
	out := make([]Op, 0, len(ops))
	for _, op := range ops {
		if i, ok := last[string(op.Key)]; ok && out[i].Node == op.Node && out[i].Epoch == op.Epoch {
			op.Closes = slices.Concat(out[i].Closes, []Seq{out[i].Seq}, op.Closes)
			slices.Sort(op.Closes)
			op.Closes = slices.Compact(op.Closes)
			out[i].Seq = 0
		}
		last[string(op.Key)] = len(out)
		out = append(out, op)
	}
	return slices.DeleteFunc(out, func(op Op) bool { return op.Seq == 0 })
}

// Apart returns the patch without its ops, to be sent beside them: it needs them.
func (p Patch) Apart() Patch {
	needs := slices.Clone(p.Needs)
	for i := range p.Ops {
		needs = append(needs, p.Ops[i].Seq)
	}
	slices.Sort(needs)
	p.Needs, p.Ops = needs, nil
	return p
}
