package crdt

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// sharedHistory is deltas of three actors that heard some of each other's.
func sharedHistory(t *rapid.T) (deltas []Delta) {
	var all []*Shared
	for i := range 3 {
		all = append(all, NewShared(Actor(i+1), nil))
	}
	for range rapid.IntRange(1, 20).Draw(t, "writes") {
		s := all[rapid.IntRange(0, 2).Draw(t, "actor")]
		key := []byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}
		switch rapid.IntRange(0, 5).Draw(t, "write") {
		case 0, 1:
			deltas = append(deltas, s.Add(key, []byte{byte('0' + len(deltas)%10)}, s.Clock()+1, 0))
		case 2:
			if d, ok := s.Remove(key); ok {
				deltas = append(deltas, d)
			}
		case 3:
			s.Renew(Actor(10 + len(deltas)))
		default:
			if len(deltas) > 0 {
				s.Merge(deltas[rapid.IntRange(0, len(deltas)-1).Draw(t, "heard")])
			}
		}
	}
	return deltas
}

func drawDeltas(t *rapid.T, from []Delta, label string) (out []Delta) {
	if len(from) == 0 {
		return nil
	}
	for range rapid.IntRange(0, 2*len(from)).Draw(t, label) {
		out = append(out, from[rapid.IntRange(0, len(from)-1).Draw(t, label)])
	}
	return out
}

func sharedOf(deltas []Delta) *Shared {
	s := NewShared(99, nil)
	for _, d := range deltas {
		s.Merge(d)
	}
	return s
}

func joinShared(a, b *Shared) *Shared {
	a.Merge(b.Full())
	return a
}

func TestL1SharedJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := sharedHistory(t)
		a, b, c := drawDeltas(t, ds, "a"), drawDeltas(t, ds, "b"), drawDeltas(t, ds, "c")
		if x, y := dumpShared(joinShared(sharedOf(a), sharedOf(b))), dumpShared(joinShared(sharedOf(b), sharedOf(a))); x != y {
			t.Fatalf("not commutative:\n%s\n%s", x, y)
		}
		x := dumpShared(joinShared(joinShared(sharedOf(a), sharedOf(b)), sharedOf(c)))
		if y := dumpShared(joinShared(sharedOf(a), joinShared(sharedOf(b), sharedOf(c)))); x != y {
			t.Fatalf("not associative:\n%s\n%s", x, y)
		}
		if x, y := dumpShared(joinShared(sharedOf(a), sharedOf(a))), dumpShared(sharedOf(a)); x != y {
			t.Fatalf("not idempotent:\n%s\n%s", x, y)
		}
		ab := joinShared(sharedOf(a), sharedOf(b))
		if x := dumpShared(ab); dumpShared(joinShared(ab, sharedOf(a))) != x {
			t.Fatalf("the join does not hold what it joins:\n%s", x)
		}
	})
}

func TestL2SharedDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		told := drawDeltas(t, sharedHistory(t), "told")
		w, r := sharedOf(told), sharedOf(told)
		w.Renew(7)
		key := []byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}
		if rapid.Bool().Draw(t, "add") {
			r.Merge(w.Add(key, []byte("x"), 1, 1))
		} else if d, ok := w.Remove(key); ok {
			r.Merge(d)
		}
		if dumpShared(w) != dumpShared(r) {
			t.Fatalf("wrote\n%stold\n%s", dumpShared(w), dumpShared(r))
		}
	})
}

func TestL3SharedOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		told := drawDeltas(t, sharedHistory(t), "told")
		want := sharedOf(told)
		var parts []Delta
		for _, d := range told {
			if rapid.Bool().Draw(t, "split") {
				parts = append(parts, d.Split()...)
			}
			parts = append(parts, d)
		}
		got := sharedOf(rapid.Permutation(parts).Draw(t, "order"))
		if fmt.Sprint(got.Full()) != fmt.Sprint(want.Full()) || got.Digest() != want.Digest() {
			t.Fatalf("in another order\n%swant\n%s", dumpShared(got), dumpShared(want))
		}
	})
}

func TestL5SharedNews(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := sharedHistory(t)
		told, more := drawDeltas(t, ds, "told"), drawDeltas(t, ds, "more")
		s, old := sharedOf(told), sharedOf(told)
		for _, d := range append(more, sharedOf(more).Full()) {
			before := dumpShared(s)
			news := s.Merge(d)
			if news.Empty() != (dumpShared(s) == before) {
				t.Fatalf("news %v, from\n%sto\n%s", news, before, dumpShared(s))
			}
			if !news.Empty() {
				old.Merge(news)
			}
			if dumpShared(old) != dumpShared(s) {
				t.Fatalf("the news lead to\n%swant\n%s", dumpShared(old), dumpShared(s))
			}
		}
	})
}

func TestL7SharedDigest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := sharedHistory(t)
		a, b := sharedOf(drawDeltas(t, ds, "a")), sharedOf(drawDeltas(t, ds, "b"))
		if (a.Digest() == b.Digest()) != (dumpShared(a) == dumpShared(b)) {
			t.Fatalf("digests equal %v of\n%s\n%s", a.Digest() == b.Digest(), dumpShared(a), dumpShared(b))
		}
	})
}

// TestI2AddSurvives removes a key where some of its adds are known: exactly the others live, wherever
// the delta arrives and in whatever order.
func TestI2AddSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := sharedHistory(t)
		told := drawDeltas(t, ds, "told")
		remover := sharedOf(told)
		key := string(byte('a' + rapid.IntRange(0, 2).Draw(t, "key")))
		knew := slices.Clone(remover.Values(key))
		gone, ok := remover.Remove([]byte(key))
		if !ok {
			return
		}
		everybody := sharedOf(rapid.Permutation(append(slices.Clone(ds), gone)).Draw(t, "order"))
		for _, e := range sharedOf(ds).Full().Entries {
			seen := slices.ContainsFunc(knew, func(k Entry) bool { return k.Dot == e.Dot })
			lives := slices.ContainsFunc(everybody.Values(string(e.Key)), func(k Entry) bool { return k.Dot == e.Dot })
			if lives == seen {
				t.Fatalf("add %v of %s: seen by the remove %v, lives %v", e.Dot, key, seen, lives)
			}
		}
	})
}
