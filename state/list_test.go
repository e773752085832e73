package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestList compares a list with a slice that is sorted anew at each change, and what it was before
// with what it was.
func TestList(t *testing.T) {
	type item struct{ n, of int }
	compare := func(a, b *item) int { return cmp.Compare(a.n, b.n) }
	rapid.Check(t, func(t *rapid.T) {
		var l list[item]
		model := map[int]*item{}
		minted := 0
		for range rapid.IntRange(1, 20).Draw(t, "edits") {
			wide := rapid.SampledFrom([]int{5, 300, 3000}).Draw(t, "wide")
			changes := map[int]change[item]{}
			for range rapid.IntRange(0, wide/2).Draw(t, "changes") {
				k := rapid.IntRange(0, wide).Draw(t, "key")
				c, again := changes[k]
				var now *item
				if rapid.IntRange(0, 2).Draw(t, "put") > 0 {
					minted++
					now = &item{k, minted}
				}
				changes[k] = c.noted(again, model[k], now)
				if model[k] = now; now == nil {
					delete(model, k)
				}
			}
			was, before := l, slices.Collect(l.all())
			out, in := sides(changes, compare)
			l = l.edit(out, in, compare)
			var want []*item
			for _, e := range model {
				want = append(want, e)
			}
			slices.SortFunc(want, compare)
			if got := slices.Collect(l.all()); !slices.Equal(got, want) || l.n != len(want) {
				t.Fatalf("%d elements, says %d, want %d", len(got), l.n, len(want))
			}
			if !slices.Equal(slices.Collect(was.all()), before) {
				t.Fatal("the list before changed")
			}
			lacks := func(in []*item) func(*item) bool { return func(e *item) bool { return slices.Contains(in, e) } }
			now := slices.Collect(l.all())
			if gone, came := l.since(was, compare); wide <= 300 &&
				(!slices.Equal(gone, slices.DeleteFunc(slices.Clone(before), lacks(now))) ||
					!slices.Equal(came, slices.DeleteFunc(slices.Clone(now), lacks(before)))) {
				t.Fatalf("since: %d gone, %d came", len(gone), len(came))
			}
			for i, c := range l.chunks {
				if len(c.items) == 0 || len(c.items) > chunkMax {
					t.Fatalf("chunk %d of %d has %d elements", i, len(l.chunks), len(c.items))
				}
			}
			k := rapid.IntRange(-1, wide+1).Draw(t, "from")
			i, _ := slices.BinarySearchFunc(want, k, func(e *item, k int) int { return cmp.Compare(e.n, k) })
			if got := slices.Collect(l.from(func(e *item) int { return cmp.Compare(e.n, k) })); !slices.Equal(got, want[i:]) {
				t.Fatalf("from %d: %d elements, want %d", k, len(got), len(want)-i)
			}
			replayed := map[int]*item{}
			for _, e := range before {
				replayed[e.n] = e
			}
			last := -1
			for x, y := range differ(was, l, compare) {
				e := cmp.Or(y, x)
				if x == y || x != nil && replayed[e.n] != x || e.n <= last {
					t.Fatalf("difference %v, %v after %d", x, y, last)
				}
				last = e.n
				if delete(replayed, e.n); y != nil {
					replayed[e.n] = y
				}
			}
			if fmt.Sprint(len(replayed)) != fmt.Sprint(len(model)) {
				t.Fatalf("the difference leads to %d elements, want %d", len(replayed), len(model))
			}
			for k, e := range replayed {
				if model[k] != e {
					t.Fatalf("the difference leads to %v, want %v", e, model[k])
				}
			}
		}
	})
}

// TestShares: an edit of one element leaves all chunks but one or two shared, and the difference looks
// at no others.
func TestShares(t *testing.T) {
	compare := func(a, b *int) int { return cmp.Compare(*a, *b) }
	var in []*int
	for i := range 100_000 {
		n := 2 * i
		in = append(in, &n)
	}
	l := list[int]{}.edit(nil, in, compare)
	one := 100_001
	m := l.edit(nil, []*int{&one}, compare)
	shared := 0
	for _, c := range l.chunks {
		if slices.Contains(m.chunks, c) {
			shared++
		}
	}
	if shared < len(l.chunks)-1 {
		t.Fatalf("%d of %d chunks are shared", shared, len(l.chunks))
	}
	looked := 0
	for range differ(l, m, func(a, b *int) int { looked++; return compare(a, b) }) {
	}
	if looked > 2*chunkMax {
		t.Fatalf("looked at %d elements", looked)
	}
}

// TestChanges: what changed between two views of a network is what their endpoints differ by.
func TestChanges(t *testing.T) {
	d := NewDoc(1, 1, 1)
	must(t, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.2.0.0/16")}})
	v := d.View()
	put := func(id EndpointID, a, name string) Change {
		return PutEndpoint{Endpoint: Endpoint{ID: id, Network: v.Networks()[0].ID, Container: name, Addr: addr(a)}}
	}
	must(t, d, put(1, "10.2.0.1", "a"), put(2, "10.2.0.2", "b"), put(3, "10.2.0.3", "c"))
	was := d.View().Networks()[0]
	must(t, d, put(4, "10.2.0.4", "d"), RemoveEndpoint{1}, put(2, "10.2.0.2", "bb"))
	var got []string
	for x, y := range d.View().Networks()[0].Changes(was) {
		s := ""
		if x != nil {
			s += x.Container
		}
		if s += ">"; y != nil {
			s += y.Container
		}
		got = append(got, s)
	}
	if fmt.Sprint(got) != "[a> b>bb >d]" {
		t.Fatalf("%v", got)
	}
}

// BenchmarkChange is one endpoint that changes on a network of many: the op is made, merged elsewhere,
// and the view made anew. It should cost nearly the same whatever the network holds.
func BenchmarkChange(b *testing.B) {
	for _, size := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d, other := NewDoc(1, 1, 1), NewDoc(2, 1, 2)
			other.Merge(must(b, d, CreateNetwork{Def: Definition{Name: "web", Subnet: prefix("10.0.0.0/8")}}))
			net := d.View().Networks()[0].ID
			put := func(i, at int) Change {
				return PutEndpoint{Endpoint: Endpoint{
					ID: EndpointID(uint64(i) * 0x9e3779b97f4a7c15), Network: net, Container: "c", At: int64(at),
					Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
				}}
			}
			var all []Change
			for i := 1; i <= size; i++ {
				all = append(all, put(i, 1))
			}
			for c := range slices.Chunk(all, 1000) {
				other.Merge(must(b, d, c...))
			}
			d.View()
			other.View()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				other.Merge(must(b, d, put(i*7919%size+1, i+2)))
				d.View()
				other.View()
			}
		})
	}
}
