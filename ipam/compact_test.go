package ipam

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"meshnet/crdt"
	"meshnet/state"
)

// TestCompact: a machine made of compacted records is the machine that all of them make, and a log
// with much coming and going gets shorter.
func TestCompact(t *testing.T) {
	all, kept := 0, 0
	for seed := range uint64(20) {
		w := newWorld(t, seed+1, 3)
		w.loss, w.crash = 0.05, 0.005
		w.after(0, w.gossip)
		w.run(2 * time.Second)
		w.create(w.hosts[0], "blue", "10.7.0.0/28", true)
		for _, h := range w.hosts {
			w.after(0, func() { w.step(h, Settled{int64(w.now / time.Second)}) })
		}
		w.playing = true
		w.after(time.Second, w.play)
		w.run(w.now + 3*time.Minute)
		for _, h := range w.hosts {
			var recs []Record
			for _, k := range h.log {
				if k.rec != nil {
					recs = append(recs, slices.Clone(k.rec))
				}
			}
			before := slices.Clone(recs)
			compact := Compact(recs)
			if !reflect.DeepEqual(before, recs) {
				t.Fatal("records were written to")
			}
			c := Config{Self: h.id, Epoch: h.doc.Epoch()}
			c.Records = recs
			want := New(c)
			c.Records = compact
			if got := New(c); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, %s: another machine after compaction of %d to %d records", seed+1, w.name(h.id), len(recs), len(compact))
			}
			if again := Compact(compact); len(again) != len(compact) {
				t.Errorf("seed %d: %d records compacted twice are %d", seed+1, len(compact), len(again))
			}
			all, kept = all+len(recs), kept+len(compact)
		}
	}
	t.Logf("of %d records %d are left", all, kept)
	if kept == all {
		t.Error("nothing was ever left out")
	}
}

// TestCompactChurn: what is left of much coming and going is what is there.
func TestCompactChurn(t *testing.T) {
	var recs []Record
	for i := range uint64(3000) {
		e := state.Endpoint{ID: state.EndpointID(i + 1), Network: 1, Container: "c", Addr: netip.AddrFrom4([4]byte{10, 7, 0, byte(i % 14)}), Alloc: i + 1}
		recs = append(recs, encodeRecord([]entry{{kind: entAlloc, endpoint: e}}))
		if i < 2995 {
			recs = append(recs, encodeRecord([]entry{{kind: entFree, network: 1, id: e.ID, alloc: e.Alloc}}))
		}
	}
	compact := Compact(recs)
	got, want := New(Config{Self: 1, Epoch: 1, Records: compact}), New(Config{Self: 1, Epoch: 1, Records: recs})
	if len(compact) > 2*14 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d records left of %d", len(compact), len(recs))
	}
}

// TestCompactKeepsUnknown: entries and records of a later version stay, in their places.
func TestCompactKeepsUnknown(t *testing.T) {
	endpoint := func(alloc uint64) state.Endpoint {
		return state.Endpoint{ID: state.EndpointID(alloc), Network: 1, Container: "c", Addr: netip.MustParseAddr("10.7.0.3"), Alloc: alloc}
	}
	alloc := func(n uint64) []byte { return (&entry{kind: entAlloc, endpoint: endpoint(n)}).encode() }
	free := func(n uint64) []byte {
		return (&entry{kind: entFree, network: 1, id: state.EndpointID(n), alloc: n}).encode()
	}
	rec := func(parts ...[]byte) Record {
		w := writer{version}
		for _, p := range parts {
			w.uvar(uint64(len(p)))
			w = append(w, p...)
		}
		return Record(w)
	}
	later, broken := []byte{200, 1, 2, 3}, Record{version, 9, 1}
	got := Compact([]Record{
		rec((&entry{kind: entBorn, epoch: crdt.Epoch(1)}).encode()),
		rec(alloc(1), later), broken, rec(free(1)), rec(alloc(2)), rec(free(2)), rec(later, alloc(3)),
	})
	want := []Record{rec((&entry{kind: entBorn, epoch: 1}).encode()), rec(later), broken, rec(later, alloc(3))}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func FuzzCompact(f *testing.F) {
	f.Add([]byte(encodeRecord([]entry{{kind: entBorn, epoch: 1}})), []byte{version, 200})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		recs := []Record{a, b, a, b}
		c := Config{Self: 1, Epoch: 1, Records: recs}
		want := New(c)
		c.Records = Compact(recs)
		if got := New(c); !reflect.DeepEqual(got, want) {
			t.Errorf("another machine after compaction")
		}
	})
}
