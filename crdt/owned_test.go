package crdt

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// dump is all that a replica holds, as text in a fixed order.
func dump(o *Owned) string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(o.nodes)) {
		for _, l := range o.nodes[n].lives {
			fmt.Fprintf(&b, "%d/%d whole %d head %d cloud %v", n, l.epoch, l.whole, l.head, l.cloud)
			for op := range l.since(1) {
				fmt.Fprintf(&b, " %d:%s=%s", op.Seq, op.Key, text(op.Value))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func text(v []byte) string {
	if v == nil {
		return "-"
	}
	return string(v)
}

// reference is a replica that keeps every op it was ever told of, and thinks only when asked.
type reference struct {
	lives map[Node]map[Epoch]*refLife
	gone  map[Node]Epoch
}

type refLife struct {
	whole Seq
	ops   map[Seq]Op
	known map[Seq]bool
}

func newReference() *reference {
	return &reference{lives: map[Node]map[Epoch]*refLife{}, gone: map[Node]Epoch{}}
}

func (r *reference) life(n Node, e Epoch) *refLife {
	if r.lives[n] == nil {
		r.lives[n] = map[Epoch]*refLife{}
	}
	if r.lives[n][e] == nil {
		r.lives[n][e] = &refLife{ops: map[Seq]Op{}, known: map[Seq]bool{}}
	}
	return r.lives[n][e]
}

func (r *reference) add(op Op) {
	l := r.life(op.Node, op.Epoch)
	l.whole = max(l.whole, op.Whole)
	l.ops[op.Seq] = op
	l.known[op.Seq] = true
	for _, c := range op.Closes {
		l.known[c] = true
	}
}

func (r *reference) join(n Node, e Epoch, other *refLife) {
	l := r.life(n, e)
	l.whole = max(l.whole, other.whole)
	maps.Copy(l.ops, other.ops)
	maps.Copy(l.known, other.known)
}

func (l *refLife) clone() *refLife {
	return &refLife{l.whole, maps.Clone(l.ops), maps.Clone(l.known)}
}

func (l *refLife) head() (h Seq) {
	for l.known[h+1] {
		h++
	}
	return h
}

func (r *reference) dump() string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(r.lives)) {
		epochs := slices.Sorted(maps.Keys(r.lives[n]))
		first := 0
		for i, e := range epochs {
			if e <= r.gone[n] {
				first = i + 1
			} else if l := r.lives[n][e]; l.head() >= l.whole {
				first = i
			}
		}
		for _, e := range epochs[first:] {
			l := r.lives[n][e]
			head := l.head()
			var cloud []Span
			for _, s := range slices.Sorted(maps.Keys(l.known)) {
				if s > head {
					cloud = spansAdd(cloud, Span{uint64(s), uint64(s)})
				}
			}
			fmt.Fprintf(&b, "%d/%d whole %d head %d cloud %v", n, e, l.whole, head, cloud)
			cells := map[string]Op{}
			for _, op := range l.ops {
				if op.Seq >= cells[string(op.Key)].Seq {
					cells[string(op.Key)] = op
				}
			}
			var order []Op
			for _, op := range cells {
				if op.Value != nil || op.Seq > head {
					order = append(order, op)
				}
			}
			slices.SortFunc(order, func(a, b Op) int { return int(a.Seq) - int(b.Seq) })
			for _, op := range order {
				fmt.Fprintf(&b, " %d:%s=%s", op.Seq, op.Key, text(op.Value))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// history is ops of a few writers, with new epochs and coalescing.
func history(t *rapid.T) []Op {
	var ops []Op
	for n := Node(1); n <= 2; n++ {
		o := NewOwned(n, 1, nil)
		var unsent []Op
		for range rapid.IntRange(0, 14).Draw(t, "writes") {
			key := []byte{byte('a' + rapid.IntRange(0, 3).Draw(t, "key"))}
			switch rapid.IntRange(0, 9).Draw(t, "write") {
			case 0:
				ops, unsent = append(ops, Coalesce(unsent)...), nil
				ops = append(ops, o.Renew(o.Epoch()+1)...)
			case 1, 2, 3:
				if op, ok := o.Remove(key); ok {
					unsent = append(unsent, op)
				}
			case 4:
				ops, unsent = append(ops, unsent...), nil
			case 5:
				ops, unsent = append(ops, Coalesce(unsent)...), nil
			default:
				unsent = append(unsent, o.Put(key, []byte{byte('0' + len(ops)%10)}))
			}
		}
		ops = append(ops, Coalesce(unsent)...)
	}
	return ops
}

// delayed is a patch on its way and what its sender knew when it made it.
type delayed struct {
	patch Patch
	life  *refLife
}

type ownedWorld struct {
	ops      []Op
	replicas []*Owned
	twins    []*Owned // told the news only
	refs     []*reference
	patches  []delayed
}

// TestL4OwnedReference compares replicas under any delivery of ops and patches with one that keeps all ops:
// merge is union (L1, L3, L4), removed cells stay removed (I1), the forgotten stay so (I4), nothing
// is left of removals without gaps (I5), news are the change and empty exactly without one (L5),
// digests are equal exactly when replicas are (L7). Replicas forget nodes and drop what they hold of
// others on the way.
func TestL4OwnedReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := ownedWorld{ops: history(t)}
		if len(w.ops) == 0 {
			return
		}
		for i := range 3 {
			for _, list := range []*[]*Owned{&w.replicas, &w.twins} {
				o := NewOwned(Node(100+i), 1, nil)
				o.journal = rapid.SampledFrom([]int{1, 3, journalMax}).Draw(t, "journal")
				*list = append(*list, o)
			}
			w.refs = append(w.refs, newReference())
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w.step(t)
			w.check(t)
		}
		w.converge(t)
	})
}

func (w *ownedWorld) step(t *rapid.T) {
	i := rapid.IntRange(0, len(w.replicas)-1).Draw(t, "replica")
	o, ref := w.replicas[i], w.refs[i]
	before := dump(o)
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0:
		n, e := Node(rapid.IntRange(1, 2).Draw(t, "node")), Epoch(1)
		if rapid.IntRange(0, 5).Draw(t, "forget") == 0 {
			o.Forget(n, e)
			w.twins[i].Forget(n, e)
			ref.gone[n] = max(ref.gone[n], e)
		} else if rapid.IntRange(0, 5).Draw(t, "alone") == 0 {
			if some := before != ""; o.Alone() != some {
				t.Fatalf("drops others: %v, of\n%s", !some, before)
			}
			w.twins[i].Alone()
			ref.lives = map[Node]map[Epoch]*refLife{}
		}
	case 1, 2:
		j := rapid.IntRange(0, len(w.replicas)-1).Draw(t, "from")
		w.ask(t, i, j)
	case 3, 4:
		if len(w.patches) > 0 {
			w.deliver(t, i, w.patches[rapid.IntRange(0, len(w.patches)-1).Draw(t, "patch")])
		}
	default:
		k := rapid.IntRange(0, len(w.ops)-1).Draw(t, "op")
		batch := w.ops[k:min(len(w.ops), k+rapid.IntRange(1, 4).Draw(t, "batch"))]
		batch = slices.Clone(batch)
		rand.New(rand.NewPCG(uint64(k), 1)).Shuffle(len(batch), func(a, b int) { batch[a], batch[b] = batch[b], batch[a] })
		news := o.Merge(batch)
		for _, op := range batch {
			ref.add(op)
		}
		w.twins[i].Merge(news)
		if (len(news) > 0) != (dump(o) != before) {
			t.Fatalf("news %v, from\n%sto\n%s", news, before, dump(o))
		}
	}
}

// ask makes j answer what i lacks; the answer may come late, twice, or to another.
func (w *ownedWorld) ask(t *rapid.T, i, j int) {
	heads := allHeads(w.replicas[i], w.replicas[j])
	patches, _ := w.replicas[j].Missing(heads, rapid.SampledFrom([]int{1, 1 << 20}).Draw(t, "limit"))
	for _, p := range patches {
		d := delayed{p, w.refs[j].life(p.Node, p.Epoch).clone()}
		w.patches = append(w.patches, d)
		if rapid.Bool().Draw(t, "now") {
			w.deliver(t, i, d)
		}
	}
}

func (w *ownedWorld) deliver(t *rapid.T, i int, d delayed) {
	o, ref, p := w.replicas[i], w.refs[i], d.patch
	if apart := rapid.IntRange(0, 3).Draw(t, "apart"); apart == 0 && len(p.Ops) > 0 {
		lost := rapid.IntRange(0, len(p.Ops)-1).Draw(t, "lost")
		for k, op := range p.Ops {
			if k != lost || rapid.Bool().Draw(t, "kept") {
				w.twins[i].Merge(o.Merge([]Op{op}))
				ref.add(op)
			}
		}
		p = p.Apart()
	}
	l := ref.life(p.Node, p.Epoch)
	l.whole = max(l.whole, p.Whole)
	for _, op := range p.Ops {
		ref.add(op)
	}
	takes := l.head() >= p.From
	for _, s := range p.Needs {
		takes = takes && l.known[s]
	}
	if takes {
		ref.join(p.Node, p.Epoch, d.life)
	}
	before := dump(o)
	news, more := o.Patch(p)
	if (len(news) > 0 || more) != (dump(o) != before) {
		t.Fatalf("news %v %v of %+v, from\n%sto\n%s", news, more, p, before, dump(o))
	}
	w.twins[i].Merge(news)
	if more {
		w.twins[i].Patch(p.Apart())
	}
}

func (w *ownedWorld) check(t *rapid.T) {
	for i, o := range w.replicas {
		if got, want := dump(o), w.refs[i].dump(); got != want {
			t.Fatalf("replica %d:\n%swant\n%s", i, got, want)
		}
		if got, want := dump(w.twins[i]), dump(o); got != want {
			t.Fatalf("told the news of %d:\n%swant\n%s", i, got, want)
		}
		for _, p := range w.replicas[:i] {
			if (p.Digest() == o.Digest()) != (dump(o) == dump(p)) {
				t.Fatalf("digests equal %v, but\n%s\n%s", p.Digest() == o.Digest(), dump(o), dump(p))
			}
		}
		for _, h := range o.Gaps() {
			if len(o.nodes[h.Node].lives) == 1 && len(o.nodes[h.Node].lives[0].cloud) == 0 && o.shown(h.Node) != nil {
				t.Fatalf("gap at %v in\n%s", h, dump(o))
			}
		}
	}
}

// converge lets all ask all twice: then all are equal (L6).
func (w *ownedWorld) converge(t *rapid.T) {
	for _, o := range w.replicas {
		for n := Node(1); n <= 2; n++ {
			for _, p := range w.replicas {
				o.Forget(n, p.gone[n])
			}
		}
	}
	for range 2 {
		for _, o := range w.replicas {
			for _, p := range w.replicas {
				limit := 1
				for more := true; more || limit == 1; {
					if !more {
						limit = 1 << 20
					}
					var patches []Patch
					patches, more = p.Missing(allHeads(o, p), limit)
					for _, patch := range patches {
						o.Patch(patch)
					}
				}
			}
		}
	}
	for _, o := range w.replicas[1:] {
		if dump(o) != dump(w.replicas[0]) || o.Digest() != w.replicas[0].Digest() {
			t.Fatalf("after asking all:\n%s\n%s", dump(o), dump(w.replicas[0]))
		}
	}
}

// allHeads is what asker says to who answers: its heads, and a zero head for nodes it does not know.
func allHeads(asker, answers *Owned) (out []Head) {
	for b := range Buckets {
		out = append(out, asker.Heads(b)...)
		for _, h := range answers.Heads(b) {
			if !slices.ContainsFunc(out, func(x Head) bool { return x.Node == h.Node }) {
				out = append(out, Head{Node: h.Node})
			}
		}
	}
	return out
}

func TestMissingIsTheDifference(t *testing.T) {
	o := NewOwned(1, 1, nil)
	for i := range 5000 {
		o.Put(fmt.Appendf(nil, "k%d", i), make([]byte, 60))
	}
	h := o.Heads(1)[0]
	o.Put([]byte("k7"), []byte("x"))
	o.Remove([]byte("k8"))
	p, _ := o.Missing([]Head{h}, 1<<20)
	if len(p) != 1 || p[0].Listed || p[0].size() > 100 {
		t.Fatalf("%d bytes for two changes: %+v", p[0].size(), p)
	}
	if p, _ := o.Missing(o.Heads(1), 1<<20); len(p) != 0 {
		t.Fatalf("equal, but sends %+v", p)
	}
}

// TestWatch sees that who reads a key again when told so always knows the map.
func TestWatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		if len(ops) == 0 {
			return
		}
		var o *Owned
		seen := map[Node]map[string]string{1: {}, 2: {}}
		o = NewOwned(9, 1, func(n Node, key string) {
			if op, ok := o.Get(n, key); ok {
				seen[n][key] = string(op.Value)
			} else {
				delete(seen[n], key)
			}
		})
		full := NewOwned(8, 1, nil)
		for range 25 {
			op := ops[rapid.IntRange(0, len(ops)-1).Draw(t, "op")]
			switch rapid.IntRange(0, 12).Draw(t, "step") {
			case 0:
				o.Forget(op.Node, op.Epoch-1)
			case 1:
				patches, _ := full.Missing(allHeads(o, full), 1<<20)
				for _, p := range patches {
					o.Patch(p)
				}
			case 2, 3, 4:
				full.Merge([]Op{op})
			default:
				o.Merge([]Op{op})
			}
			for n := Node(1); n <= 2; n++ {
				want := map[string]string{}
				if l := o.shown(n); l != nil {
					for c := range l.since(1) {
						if c.Value != nil {
							want[string(c.Key)] = string(c.Value)
						}
					}
				}
				if !maps.Equal(want, seen[n]) {
					t.Fatalf("node %d: told %v, holds %v", n, seen[n], want)
				}
			}
		}
	})
}

func TestRenewShowsNothingHalf(t *testing.T) {
	w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
	r.Merge([]Op{w.Put([]byte("a"), []byte("1")), w.Put([]byte("b"), []byte("2"))})
	ops := w.Renew(2)
	if len(ops) != 2 || ops[0].Whole != 2 {
		t.Fatalf("renewed as %+v", ops)
	}
	r.Merge(ops[1:])
	if op, ok := r.Get(1, "a"); !ok || op.Epoch != 1 {
		t.Fatalf("half an epoch is shown: %+v", op)
	}
	r.Merge(ops[:1])
	if op, ok := r.Get(1, "a"); !ok || op.Epoch != 2 {
		t.Fatalf("a complete epoch is not shown: %+v", op)
	}
}

func TestRenewOfAnEmptyMap(t *testing.T) {
	w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
	r.Merge([]Op{w.Put([]byte("a"), []byte("1"))})
	again := NewOwned(1, 1, nil) // it lost its disk
	again.Renew(2)
	patches, _ := again.Missing(allHeads(r, again), 1<<20)
	for _, p := range patches {
		r.Patch(p)
	}
	if _, ok := r.Get(1, "a"); ok || r.Digest() != again.Digest() {
		t.Fatalf("still there:\n%s", dump(r))
	}
}

func TestDoubt(t *testing.T) {
	w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
	first, second := w.Put([]byte("a"), []byte("1")), w.Put([]byte("a"), []byte("2"))
	r.Merge([]Op{first, second})
	if w.Merge([]Op{first, second}); w.doubt != 0 {
		t.Fatal("doubts what it wrote itself")
	}
	back := NewOwned(1, 1, nil)
	back.Restore([]Op{first})
	patches, _ := r.Missing([]Head{{1, 1, 1}}, 1<<20)
	back.Patch(patches[0])
	if e, ok := back.Doubt(); !ok || e != 1 {
		t.Fatalf("rolled back and sees nothing: %d %v", e, ok)
	}
	r.Merge(back.Renew(2))
	if _, ok := back.Doubt(); ok {
		t.Fatal("still in doubt")
	}
	if op, _ := r.Get(1, "a"); !bytes.Equal(op.Value, []byte("1")) {
		t.Fatalf("shows %+v", op)
	}
}

func TestHostile(t *testing.T) {
	o := NewOwned(9, 1, nil)
	huge := Seq(1<<64 - 1)
	o.Merge([]Op{
		{}, {Node: 1, Epoch: 1, Seq: huge, Key: []byte("a")}, {Node: 1, Seq: 1}, {Epoch: 1, Seq: 1},
		{Node: 1, Epoch: 1, Seq: 3, Whole: huge, Closes: []Seq{0, 3, 4, huge}, Key: []byte("a"), Value: []byte{}},
	})
	for _, p := range []Patch{
		{}, {Node: 1, Epoch: 1, Head: huge}, {Node: 1, Epoch: 1, From: huge},
		{Node: 1, Epoch: 1, Cloud: []Span{{5, 2}}}, {Node: 1, Epoch: 1, Head: 4, Cloud: []Span{{2, 3}}},
		{Node: 1, Epoch: 1, Ops: []Op{{Node: 2, Epoch: 1, Seq: 1}, {Seq: 2}, {Node: 1, Epoch: 1}}},
		{Node: 1, Epoch: 1, Dead: []Seq{9, 1}}, {Node: 2, Epoch: 1, Whole: 1 << 60},
	} {
		o.Patch(p)
	}
	o.Missing([]Head{{}, {1, 1, huge}, {1, 9, 9}, {7, 1, 1}}, -1)
	if o.Ignored() == 0 {
		t.Fatal("nothing ignored")
	}
}

// TestJournalOfLateOps: an op that came after one that overwrites it is as dead for who asks as if it
// had come before.
func TestJournalOfLateOps(t *testing.T) {
	w, a, b := NewOwned(1, 1, nil), NewOwned(2, 1, nil), NewOwned(3, 1, nil)
	k := []byte("k")
	first, _, third := w.Put(k, []byte("1")), w.Put(k, []byte("2")), w.Put(k, []byte("3"))
	fourth, _ := w.Remove(k)
	b.Merge([]Op{first})
	a.Merge([]Op{third})
	a.Merge([]Op{first})
	a.Merge([]Op{fourth})
	patches, _ := a.Missing(b.Heads(1), 1<<20)
	for _, p := range patches {
		b.Patch(p)
	}
	if dump(a) != dump(b) {
		t.Fatalf("%s%s", dump(a), dump(b))
	}
}

// TestHeadsForget: heads that were asked for before do not outlive what was given up, whole or in part.
func TestHeadsForget(t *testing.T) {
	o := NewOwned(1, 1, nil)
	op := func(e Epoch, s, whole Seq) Op {
		return Op{Node: 33, Epoch: e, Seq: s, Whole: whole, Key: []byte("k"), Value: []byte("v")}
	}
	o.Merge([]Op{op(1, 1, 0), op(2, 1, 2)}) // the second epoch is not complete
	if hs := o.Heads(1); len(hs) != 2 || hs[0] != (Head{33, 1, 1}) || hs[1] != (Head{33, 2, 1}) {
		t.Fatalf("heads %v", hs)
	}
	o.Forget(33, 1)
	if hs := o.Heads(1); len(hs) != 2 || hs[0] != (Head{Node: 33}) || hs[1] != (Head{33, 2, 1}) {
		t.Errorf("heads %v after the first epoch was given up", hs)
	}
	o.Forget(33, 2)
	if hs := o.Heads(1); len(hs) != 0 {
		t.Errorf("heads %v of a node that was given up", hs)
	}
}
