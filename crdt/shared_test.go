package crdt

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func dumpShared(s *Shared) string {
	var b strings.Builder
	d := s.Full()
	for _, e := range d.Entries {
		fmt.Fprintf(&b, "%d.%d %s=%s\n", e.Dot.Actor, e.Dot.N, e.Key, e.Value)
	}
	fmt.Fprintln(&b, d.Seen)
	return b.String()
}

// refShared is the set of all adds and all removals ever heard of, by dot.
type refShared struct {
	adds    map[Dot]Entry
	removed map[Dot]bool
}

func (r *refShared) take(d Delta) {
	held := map[Dot]bool{}
	for _, e := range d.Entries {
		r.adds[e.Dot] = e
		held[e.Dot] = true
	}
	for _, s := range d.Seen {
		for _, sp := range s.Spans {
			for n := sp.From; n <= sp.To; n++ {
				if dot := (Dot{s.Actor, n}); !held[dot] {
					r.removed[dot] = true
				}
			}
		}
	}
}

func (r *refShared) dump() string {
	var live []Entry
	var seen []Seen
	for _, dot := range append(slices.Collect(maps.Keys(r.adds)), slices.Collect(maps.Keys(r.removed))...) {
		seen = seenAdd(seen, dot)
	}
	for dot, e := range r.adds {
		if !r.removed[dot] {
			live = append(live, e)
		}
	}
	slices.SortFunc(live, compareEntries)
	var b strings.Builder
	for _, e := range live {
		fmt.Fprintf(&b, "%d.%d %s=%s\n", e.Dot.Actor, e.Dot.N, e.Key, e.Value)
	}
	fmt.Fprintln(&b, seen)
	return b.String()
}

// TestL4SharedReference compares replicas under any delivery of deltas, whole or in parts, with the sets of all
// adds and removals: L1 to L5, L7 and I2.
func TestL4SharedReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all, twins []*Shared
		var refs []*refShared
		for i := range 3 {
			all, twins = append(all, NewShared(Actor(i+1), nil)), append(twins, NewShared(Actor(i+1), nil))
			refs = append(refs, &refShared{map[Dot]Entry{}, map[Dot]bool{}})
		}
		var sent []Delta
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			i := rapid.IntRange(0, 2).Draw(t, "replica")
			s, key := all[i], []byte{byte('a' + rapid.IntRange(0, 2).Draw(t, "key"))}
			var d Delta
			step := rapid.IntRange(0, 9).Draw(t, "step")
			switch {
			case step < 3:
				d = s.Add(key, []byte{byte('0' + len(sent)%10)}, s.Clock()+1, 0)
				twins[i].Merge(d)
				sent = append(sent, d)
			case step < 5:
				d, _ = s.Remove(key)
				twins[i].Merge(d)
				sent = append(sent, d)
			case step < 6:
				sent = append(sent, s.Full())
			case step < 7 && len(sent) > 0:
				d = sent[rapid.IntRange(0, len(sent)-1).Draw(t, "split")]
				parts := d.Split()
				sent = append(sent, parts...)
				var joined Delta
				j := NewShared(99, nil)
				for _, k := range rapid.Permutation(parts).Draw(t, "parts") {
					j.Merge(k)
				}
				whole := NewShared(99, nil)
				whole.Merge(d)
				if dumpShared(j) != dumpShared(whole) {
					t.Fatalf("%v splits into %v", d, joined)
				}
				continue
			case len(sent) > 0:
				d = sent[rapid.IntRange(0, len(sent)-1).Draw(t, "delta")]
				before := dumpShared(s)
				news := s.Merge(d)
				if news.Empty() != (before == dumpShared(s)) {
					t.Fatalf("news %v, from\n%sto\n%s", news, before, dumpShared(s))
				}
				twins[i].Merge(news)
			}
			refs[i].take(d)
			for i, s := range all {
				if dumpShared(s) != refs[i].dump() || dumpShared(s) != dumpShared(twins[i]) {
					t.Fatalf("replica %d:\n%swant\n%stold the news\n%s", i, dumpShared(s), refs[i].dump(), dumpShared(twins[i]))
				}
				for _, o := range all[:i] {
					if (o.Digest() == s.Digest()) != (dumpShared(o) == dumpShared(s)) {
						t.Fatalf("digests say %v of\n%s%s", o.Digest() == s.Digest(), dumpShared(o), dumpShared(s))
					}
				}
			}
		}
	})
}

func TestI2AddWins(t *testing.T) {
	a, b := NewShared(1, nil), NewShared(2, nil)
	b.Merge(a.Add([]byte("k"), []byte("old"), 1, 0))
	del, _ := b.Remove([]byte("k"))
	add := a.Add([]byte("k"), []byte("new"), 2, 0)
	a.Merge(del)
	b.Merge(add)
	for _, s := range []*Shared{a, b} {
		if e, ok := s.Value("k"); !ok || !bytes.Equal(e.Value, []byte("new")) {
			t.Fatalf("an add that the remove had not seen is gone: %v", e)
		}
	}
}

func TestLowestIsRead(t *testing.T) {
	a, b := NewShared(1, nil), NewShared(2, nil)
	x := a.Add([]byte("k"), []byte("later"), 5, 10)
	y := b.Add([]byte("k"), []byte("earlier"), 5, 9)
	a.Merge(y)
	b.Merge(x)
	for _, s := range []*Shared{a, b} {
		if e, _ := s.Value("k"); string(e.Value) != "earlier" || len(s.Values("k")) != 2 {
			t.Fatalf("reads %s of %d", e.Value, len(s.Values("k")))
		}
	}
}

// TestOneDotTwice: two hosts with one identity wrote different entries with one dot; all still agree.
func TestOneDotTwice(t *testing.T) {
	a, b := NewShared(1, nil), NewShared(1, nil)
	x, y := a.Add([]byte("k"), []byte("1"), 1, 0), b.Add([]byte("m"), []byte("2"), 1, 0)
	a.Merge(y)
	b.Merge(x)
	if dumpShared(a) != dumpShared(b) || a.Digest() != b.Digest() {
		t.Fatalf("%s\n%s", dumpShared(a), dumpShared(b))
	}
}
