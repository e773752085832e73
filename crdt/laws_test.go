package crdt

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The laws of the lattices, a test for each, named after it:
//
//	L1  join is commutative, associative, idempotent and grows
//	L2  a write is the join with its delta
//	L3  any order, duplication and batching of the same ops gives the same
//	L4  the compact form is that of a reference that keeps everything
//	L5  a join returns what changed, nothing exactly without a change, and that is enough
//	L6  a sync from anywhere ends equal, at the cost of the difference
//	L7  digests are equal exactly when replicas are
//	I1  a removed cell does not come back
//	I2  an add that a remove had not seen survives it
//	I3  no two ops have one (node, epoch, seq)
//	I4  what is forgotten has no effect
//	I5  nothing is left of removals where there are no gaps
//
// W1, of the wire, and the laws of the whole document are in package state.

// recipe is what a replica was told: some of the ops of a history, in some order.
type recipe []Op

func drawRecipe(t *rapid.T, ops []Op, label string) recipe {
	var r recipe
	if len(ops) == 0 {
		return r
	}
	for range rapid.IntRange(0, 2*len(ops)).Draw(t, label) {
		r = append(r, ops[rapid.IntRange(0, len(ops)-1).Draw(t, label)])
	}
	return r
}

func (r recipe) replica() *Owned {
	o := NewOwned(100, 1, nil)
	o.Merge(slices.Clone(r))
	return o
}

// all is everything that a replica holds.
func all(o *Owned) []Patch {
	var zero []Head
	for b := range Buckets {
		for _, h := range o.Heads(b) {
			zero = append(zero, Head{Node: h.Node})
		}
	}
	patches, _ := o.Missing(zero, 1<<30)
	return patches
}

// join makes a the join of both.
func join(a, b *Owned) *Owned {
	for _, p := range all(b) {
		a.Patch(p)
	}
	return a
}

func TestL1OwnedJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		a, b, c := drawRecipe(t, ops, "a"), drawRecipe(t, ops, "b"), drawRecipe(t, ops, "c")
		if x, y := dump(join(a.replica(), b.replica())), dump(join(b.replica(), a.replica())); x != y {
			t.Fatalf("not commutative:\n%s\n%s", x, y)
		}
		x := dump(join(join(a.replica(), b.replica()), c.replica()))
		if y := dump(join(a.replica(), join(b.replica(), c.replica()))); x != y {
			t.Fatalf("not associative:\n%s\n%s", x, y)
		}
		if x, y := dump(join(a.replica(), a.replica())), dump(a.replica()); x != y {
			t.Fatalf("not idempotent:\n%s\n%s", x, y)
		}
		ab := join(a.replica(), b.replica())
		if x := dump(ab); dump(join(ab, a.replica())) != x {
			t.Fatalf("the join does not hold what it joins:\n%s\n%s", x, dump(ab))
		}
	})
}

func TestL2OwnedDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
		for range rapid.IntRange(1, 30).Draw(t, "writes") {
			key := []byte{byte('a' + rapid.IntRange(0, 3).Draw(t, "key"))}
			var delta []Op
			switch rapid.IntRange(0, 5).Draw(t, "write") {
			case 0:
				delta = w.Renew(w.Epoch() + 1)
			case 1, 2:
				if op, ok := w.Remove(key); ok {
					delta = []Op{op}
				}
			default:
				delta = []Op{w.Put(key, []byte{1})}
			}
			r.Merge(delta)
			if x, y := dump(w), dump(r); x != y && !(len(delta) == 0 && w.Epoch() > 1) {
				t.Fatalf("wrote\n%stold\n%s", x, y)
			}
		}
	})
}

func TestL3OwnedOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		r := drawRecipe(t, ops, "told")
		want := r.replica()
		other := NewOwned(100, 1, nil)
		told := append(slices.Clone(r), drawRecipe(t, r, "again")...)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 1))
		rng.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
		for len(told) > 0 {
			n := 1 + rng.IntN(len(told))
			other.Merge(told[:n])
			told = told[n:]
		}
		if dump(other) != dump(want) || fmt.Sprint(all(other)) != fmt.Sprint(all(want)) {
			t.Fatalf("in another order\n%s%v\nwant\n%s%v", dump(other), all(other), dump(want), all(want))
		}
	})
}

func TestL5OwnedNews(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		r, more := drawRecipe(t, ops, "told"), drawRecipe(t, ops, "more")
		o, old := r.replica(), r.replica()
		if news := o.Merge(slices.Clone(more)); (len(news) == 0) != (dump(o) == dump(old)) {
			t.Fatalf("news %v, from\n%sto\n%s", news, dump(old), dump(o))
		} else if old.Merge(news); dump(o) != dump(old) {
			t.Fatalf("the news lead to\n%swant\n%s", dump(old), dump(o))
		}
		o, old = r.replica(), r.replica()
		for _, p := range all(more.replica()) {
			before := dump(o)
			news, rest := o.Patch(p)
			if (len(news) == 0 && !rest) != (dump(o) == before) {
				t.Fatalf("news %v, %v of %+v, from\n%sto\n%s", news, rest, p, before, dump(o))
			}
			old.Merge(news)
			if rest {
				old.Patch(p.Apart())
			}
		}
		if dump(o) != dump(old) {
			t.Fatalf("the news of patches lead to\n%swant\n%s", dump(old), dump(o))
		}
	})
}

// TestL6OwnedSync asks from every point of a history, and counts bytes: as many as the difference has
// and, where the journal does not reach back, as the node has keys.
func TestL6OwnedSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := NewOwned(1, 1, nil)
		w.journal = rapid.SampledFrom([]int{1, 4, 64, journalMax}).Draw(t, "journal")
		asker := NewOwned(2, 1, nil)
		writes := rapid.IntRange(1, 120).Draw(t, "writes")
		at := rapid.IntRange(0, writes).Draw(t, "at")
		keys := rapid.SampledFrom([]int{2, 10, 60}).Draw(t, "keys")
		for i := range writes {
			key := fmt.Appendf(nil, "%d", rapid.IntRange(0, keys).Draw(t, "key"))
			op, ok := w.Remove(key)
			if !ok || rapid.Bool().Draw(t, "put") {
				op2 := w.Put(key, []byte("value"))
				if i < at && ok {
					asker.Merge([]Op{op})
				}
				op = op2
			}
			if i < at {
				asker.Merge([]Op{op})
			}
		}
		head := asker.shown(1)
		var from Seq
		if head != nil {
			from = head.head
		}
		patches, more := w.Missing([]Head{{1, 1, from}}, 1<<20)
		if from == 0 {
			patches, more = w.Missing([]Head{{Node: 1}}, 1<<20)
		}
		difference, live := int(w.shown(1).head-from), len(w.shown(1).cells)
		size := 0
		for _, p := range patches {
			size += p.size()
			if p.Listed {
				size -= 2 * live
			}
			asker.Patch(p)
		}
		if dump(asker) != dump(w) || asker.Digest() != w.Digest() || more {
			t.Fatalf("asked from %d, is\n%swant\n%s", from, dump(asker), dump(w))
		}
		if limit := 40 + 30*difference; size > limit {
			t.Fatalf("%d bytes for a difference of %d ops among %d keys; limit %d", size, difference, live, limit)
		}
		if difference == 0 && len(patches) > 0 {
			t.Fatalf("equal, but sends %+v", patches)
		}
	})
}

func TestL7OwnedDigest(t *testing.T) {
	// What is known beyond a gap counts as well.
	w := NewOwned(1, 1, nil)
	ops := []Op{w.Put([]byte("a"), []byte("1")), w.Put([]byte("b"), []byte("2")), w.Put([]byte("c"), []byte("3")), w.Put([]byte("d"), []byte("4"))}
	digests := map[[16]byte]bool{}
	for _, r := range []recipe{ops[:1], {ops[0], ops[2]}, {ops[0], ops[3]}, {ops[0], ops[2], ops[3]}, ops} {
		digests[r.replica().Digest()] = true
	}
	if len(digests) != 5 {
		t.Fatalf("%d digests of 5 replicas", len(digests))
	}
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		told := drawRecipe(t, ops, "told")
		a, b := told.replica(), told.replica()
		b.Merge(slices.Clone(drawRecipe(t, ops[:min(len(ops), 2)], "a little more")))
		if (a.Digest() == b.Digest()) != (dump(a) == dump(b)) || (a.Buckets() == b.Buckets()) != (dump(a) == dump(b)) {
			t.Fatalf("digests equal %v of\n%s\n%s", a.Digest() == b.Digest(), dump(a), dump(b))
		}
		join(a, b)
		join(b, a)
		if a.Digest() != b.Digest() || dump(a) != dump(b) {
			t.Fatalf("after quiet\n%s\n%s", dump(a), dump(b))
		}
	})
}

// TestI1NoResurrection tells a replica that knows of a removal everything from before it again, in
// every order, with gaps, and after a restart from its log.
func TestI1NoResurrection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := NewOwned(1, 1, nil)
		var ops []Op
		for i := range rapid.IntRange(1, 8).Draw(t, "writes") {
			ops = append(ops, w.Put([]byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}, []byte{byte(i)}))
		}
		key := ops[rapid.IntRange(0, len(ops)-1).Draw(t, "gone")].Key
		gone, _ := w.Remove(key)
		told := rapid.Permutation(append(slices.Clone(ops), ops...)).Draw(t, "told")
		cut := rapid.IntRange(0, len(told)).Draw(t, "cut")
		r := NewOwned(2, 1, nil)
		var log []Op
		tell := func(op Op) { log = append(log, r.Merge([]Op{op})...) }
		for _, op := range told[:cut] {
			tell(op)
		}
		tell(gone)
		for i, op := range told[cut:] {
			if _, back := r.Get(1, string(key)); back {
				t.Fatalf("%s is back after %d ops:\n%s", key, i, dump(r))
			}
			if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
				r = NewOwned(2, 1, nil)
				r.Restore(log)
			}
			tell(op)
		}
		if _, back := r.Get(1, string(key)); back {
			t.Fatalf("%s is back:\n%s", key, dump(r))
		}
	})
}

// TestI3OneOpASeq has a writer that is killed, whose host loses what was not synced, whose disk is
// rolled back, and that speaks to others only after it heard what they hold. Nobody ever sees two ops
// under one number.
func TestI3OneOpASeq(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
		seen := map[Head]Op{}
		var log []Op // what is on the disk
		synced := 0
		type disk struct {
			log   []Op
			epoch Epoch
		}
		epoch := Epoch(1) // on the disk before the first write in it
		var snapshots []disk
		say := func(ops []Op) {
			log = append(log, ops...)
			for _, op := range ops {
				at := Head{op.Node, op.Epoch, op.Seq}
				if was, ok := seen[at]; ok && (!bytes.Equal(was.Key, op.Key) || !bytes.Equal(was.Value, op.Value) || (was.Value == nil) != (op.Value == nil)) {
					t.Fatalf("%v says %s=%s and %s=%s", at, was.Key, text(was.Value), op.Key, text(op.Value))
				}
				seen[at] = op
			}
			r.Merge(ops)
		}
		renew := func() {
			doubt, _ := w.Doubt()
			epoch = max(epoch, doubt, w.Epoch()).Next(rapid.Uint16().Draw(t, "chance"))
			say(w.Renew(epoch))
			say([]Op{w.Put([]byte("node"), []byte{byte(len(seen))})}) // its record, as every node does
		}
		start := func() {
			w = NewOwned(1, epoch, nil)
			w.Restore(log)
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0: // killed
				start()
			case 1: // the host died
				log = slices.Clone(log[:rapid.IntRange(synced, len(log)).Draw(t, "kept")])
				start()
				renew()
			case 2:
				synced = len(log)
			case 3:
				snapshots = append(snapshots, disk{slices.Clone(log), epoch})
			case 4: // rolled back; it hears others before it speaks
				if len(snapshots) > 0 {
					s := snapshots[rapid.IntRange(0, len(snapshots)-1).Draw(t, "snapshot")]
					log, epoch = slices.Clone(s.log), s.epoch
					synced = len(log)
					start()
					patches, _ := r.Missing(allHeads(w, r), 1<<20)
					for _, p := range patches {
						w.Patch(p)
					}
					if _, doubts := w.Doubt(); doubts {
						renew()
						break
					}
					for _, p := range all(w) {
						r.Patch(p)
					}
					if dump(w) != dump(r) && dump(w) != "" { // a node that never wrote says nothing
						t.Fatalf("rolled back and no doubt: has\n%sothers\n%s", dump(w), dump(r))
					}
				}
			case 5:
				if op, ok := w.Remove([]byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}); ok {
					say([]Op{op})
				}
			default:
				say([]Op{w.Put([]byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}, []byte{byte(len(seen))})})
			}
		}
	})
}

// TestI3TwoLives: of a disk that was rolled back and whose host was started again, the two lives write
// in epochs of their own, so that whoever holds the one hears of the other.
func TestI3TwoLives(t *testing.T) {
	first, second := Epoch(7).Next(513), Epoch(7).Next(2)
	if first <= 7 || second <= 7 || first == second {
		t.Fatalf("after 7 come %d and %d", first, second)
	}
	if e := Epoch(1<<32 - 1).Next(9); e != 1<<32-1 {
		t.Fatalf("after the last comes %d", e)
	}
	one, r := NewOwned(1, 7, nil), NewOwned(2, 1, nil)
	r.Merge(one.Renew(first))
	for i := range 9 {
		r.Merge([]Op{one.Put([]byte("a"), []byte{byte(i)})})
	}
	two := NewOwned(1, 7, nil)
	two.Renew(second)
	for i := range 20 { // more than the other life ever wrote
		two.Put([]byte("b"), []byte{byte(i)})
	}
	for _, p := range all(r) {
		two.Patch(p)
	}
	if e, doubts := two.Doubt(); !doubts || e != first {
		t.Fatalf("no doubt of another life: %d %v", e, doubts)
	}
	r.Merge(two.Renew(first.Next(0)))
	if dump(r) != dump(two) || r.Digest() != two.Digest() {
		t.Fatalf("others\n%shas\n%s", dump(r), dump(two))
	}
}

// TestI3EmptyEpoch: a node that began an epoch and has written nothing in it yet doubts when others hold
// ops of that epoch, though it has as many of the epoch before.
func TestI3EmptyEpoch(t *testing.T) {
	w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
	a := w.Put([]byte("a"), []byte("1"))
	gone, _ := w.Remove([]byte("a"))
	w.Renew(2)
	r.Merge([]Op{w.Put([]byte("b"), []byte("2"))})
	back := NewOwned(1, 2, nil) // rolled back to before it wrote b
	back.Restore([]Op{a, gone})
	for _, p := range all(r) {
		back.Patch(p)
	}
	if e, doubts := back.Doubt(); !doubts || e != 2 {
		t.Fatalf("no doubt: %d %v", e, doubts)
	}
}

// TestI4Forgotten tells a replica all ops and patches of a history before and after it forgot a node up
// to an epoch, itself included.
func TestI4Forgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		gone := Epoch(rapid.IntRange(1, 3).Draw(t, "gone"))
		o := drawRecipe(t, ops, "before").replica()
		o.Forget(1, gone)
		after := slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return op.Node == 1 && op.Epoch <= gone })
		before := dump(o)
		var old []Op
		for _, op := range drawRecipe(t, ops, "old") {
			if op.Node == 1 && op.Epoch <= gone {
				old = append(old, op)
			}
		}
		if news := o.Merge(old); len(news) > 0 || dump(o) != before {
			t.Fatalf("forgotten up to %d, news %v:\n%s", gone, news, dump(o))
		}
		full := recipe(ops).replica()
		for _, p := range all(full) {
			if p.Node != 1 || p.Epoch > gone {
				continue
			}
			if news, more := o.Patch(p); len(news) > 0 || more || dump(o) != before {
				t.Fatalf("forgotten up to %d, a patch did %v %v", gone, news, more)
			}
		}
		o.Merge(slices.Clone(after))
		want := NewOwned(100, 1, nil)
		want.Forget(1, gone)
		want.Merge(slices.Clone(after))
		if got := dump(join(o, want)); got != dump(want) && len(after) == len(ops) {
			t.Fatalf("has\n%swant\n%s", got, dump(want))
		}
		for _, h := range slices.Concat(o.Heads(1), o.Gaps()) {
			if h.Node == 1 && h.Epoch != 0 && h.Epoch <= gone {
				t.Fatalf("still says %v", h)
			}
		}
	})
}

// TestI4ForgottenSelf: a node that hears that it was given up has nothing, cannot write, doubts nothing,
// and begins again beyond.
func TestI4ForgottenSelf(t *testing.T) {
	w, r := NewOwned(1, 3, nil), NewOwned(2, 1, nil)
	r.Merge([]Op{w.Put([]byte("a"), []byte("1")), w.Put([]byte("b"), []byte("2"))})
	held := all(r)
	for _, o := range []*Owned{w, r} {
		o.Forget(1, 4)
		if _, ok := o.Get(1, "a"); ok || dump(o) != "" {
			t.Fatalf("still there:\n%s", dump(o))
		}
	}
	for _, p := range held { // somebody who has not heard of it yet
		w.Patch(p)
		r.Patch(p)
	}
	if _, doubts := w.Doubt(); doubts || dump(r) != "" {
		t.Fatalf("doubts %v what was given up:\n%s", doubts, dump(r))
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a forgotten node wrote")
			}
		}()
		w.Put([]byte("a"), []byte("3"))
	}()
	r.Merge(w.Renew(5))
	r.Merge([]Op{w.Put([]byte("a"), []byte("4"))})
	if op, ok := r.Get(1, "a"); !ok || op.Epoch != 5 || r.Digest() != w.Digest() {
		t.Fatalf("begun again as\n%s", dump(r))
	}
}

func TestI5NothingIsLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := history(t)
		o := NewOwned(100, 1, nil)
		for _, op := range rapid.Permutation(slices.Clone(ops)).Draw(t, "order") {
			o.Merge([]Op{op})
			for n, r := range o.nodes {
				for _, l := range r.lives {
					for op := range l.since(1) {
						if op.Value == nil && op.Seq <= l.head {
							t.Fatalf("node %d keeps removal %d with head %d", n, op.Seq, l.head)
						}
					}
				}
			}
		}
		if gaps := o.Gaps(); len(gaps) > 0 {
			t.Fatalf("told all, and has gaps %v:\n%s", gaps, dump(o))
		}
		for n, r := range o.nodes {
			for _, l := range r.lives {
				if len(r.lives) != 1 || len(l.cloud) > 0 || len(l.tombs) > 0 || len(l.order)-l.holes != len(l.cells) {
					t.Fatalf("node %d keeps %d lives, cloud %v, %d removals", n, len(r.lives), l.cloud, len(l.tombs))
				}
				for op := range l.since(1) {
					if op.Value == nil {
						t.Fatalf("node %d keeps a removal of %s", n, op.Key)
					}
				}
			}
		}
	})
}
