package crdt

import (
	"strings"
	"testing"
)

// FuzzParseNode: the text of an id is read in one form only.
func FuzzParseNode(f *testing.F) {
	for _, s := range []string{"", "0", "00000000000000ff", "ffffffffffffffff", "+000000000000001", "0x00000000000001", "00000000000000FF"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNode(s)
		if err == nil && n.String() != strings.ToLower(s) {
			t.Fatalf("%q is read as %s", s, n)
		}
	})
}

// FuzzShared gives a shared map entries and removals that nobody ever made: it stays equal with one that
// is told its news, and with one that is told everything.
func FuzzShared(f *testing.F) {
	f.Add([]byte{1, 1, 1, 5, 2, 1, 1, 9, 0, 1, 3, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, twin := NewShared(9, nil), NewShared(9, nil)
		for ; len(b) >= 4; b = b[4:] {
			actor, n := Actor(b[1]%3+1), uint64(b[2])<<(b[0]&0x30)
			d := Delta{Seen: []Seen{{actor, []Span{{n, n + uint64(b[3]%5)}}}}}
			if b[0]&3 != 0 {
				d = Delta{Entries: []Entry{{Dot: Dot{actor, n}, Key: []byte{b[3] % 3}, Value: b[3:4], Lamport: uint64(b[3])}}}
			}
			if b[0]&4 != 0 {
				d.Seen = append(d.Seen, Seen{actor, []Span{{1, n}}})
			}
			if news := s.Merge(d); !news.Empty() {
				twin.Merge(news)
			}
		}
		whole := NewShared(9, nil)
		whole.Merge(s.Full())
		for _, o := range []*Shared{twin, whole} {
			if dumpShared(o) != dumpShared(s) || o.Digest() != s.Digest() {
				t.Fatalf("%s\n%s", dumpShared(o), dumpShared(s))
			}
		}
	})
}
