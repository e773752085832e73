package crdt

import (
	"fmt"
	"testing"
)

// BenchmarkPut is one write among many own keys, its merge elsewhere and the removal of another key: it
// should cost nearly the same however many there are.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{500, 5_000, 50_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w, r := NewOwned(1, 1, nil), NewOwned(2, 1, nil)
			keys := make([][]byte, size)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "ep/%016x", i)
				r.Merge([]Op{w.Put(keys[i], make([]byte, 75))})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				k := keys[i*7919%size]
				gone, _ := w.Remove(k)
				r.Merge([]Op{gone})
				r.Merge([]Op{w.Put(k, make([]byte, 75))})
			}
		})
	}
}

// BenchmarkSharedMerge is one add among many: it should cost nearly the same however many there are.
func BenchmarkSharedMerge(b *testing.B) {
	for _, size := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w, r := NewShared(1, nil), NewShared(2, nil)
			for i := range size {
				r.Merge(w.Add(fmt.Appendf(nil, "net/%016x", i), make([]byte, 75), 1, 1))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.Merge(w.Add(fmt.Appendf(nil, "net/%016x", i*7919%size), make([]byte, 75), 1, 1))
			}
		})
	}
}
