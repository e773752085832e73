package gossip

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"meshnet/crdt"
	"meshnet/state"
)

func heads() *rapid.Generator[[]crdt.Head] {
	return rapid.Custom(func(t *rapid.T) []crdt.Head {
		m := rapid.MapOf(rapid.Uint64Min(1), rapid.Uint64()).Draw(t, "heads")
		hs := make([]crdt.Head, 0, len(m))
		for n, s := range m {
			hs = append(hs, crdt.Head{Node: crdt.Node(n), Epoch: crdt.Epoch(s >> 32), Seq: crdt.Seq(s)})
		}
		sortHeads(hs)
		return hs
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		flags := rapid.Byte().Draw(t, "flags")
		var digest [16]byte
		copy(digest[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "digest"))

		check := func(want kind, b []byte, decode func([]byte) (any, error), value any) {
			k, rest, err := open(b)
			if err != nil || k != want {
				t.Fatalf("open: kind %d, %v", k, err)
			}
			got, err := decode(rest)
			if err != nil || !reflect.DeepEqual(got, value) {
				t.Fatalf("kind %d: got %v, %v; want %v", k, got, err, value)
			}
			for i := range rest { // no prefix panics
				decode(rest[:i])
			}
		}
		d := digestMsg{flags, digest}
		check(kindDigest, d.encode(), func(b []byte) (any, error) { return decodeDigest(b) }, d)
		h := headsMsg{rapid.Uint32().Draw(t, "mask"), rapid.Uint64().Draw(t, "shared"), heads().Draw(t, "h")}
		check(kindHeads, h.encode(), func(b []byte) (any, error) { return decodeHeadsMsg(b) }, h)
		w := wantMsg{flags, heads().Draw(t, "w")}
		check(kindWant, w.encode(), func(b []byte) (any, error) { return decodeWant(b) }, w)
		var bm bucketsMsg
		for i := range bm.nodes {
			bm.nodes[i] = rapid.Uint64().Draw(t, "bucket")
		}
		check(kindBuckets, bm.encode(), func(b []byte) (any, error) { return decodeBuckets(b) }, bm)

		_, rest, _ := open(encodePush(7, body))
		if o, b, err := decodePush(rest); o != 7 || !bytes.Equal(b, body) || err != nil {
			t.Fatal("push", o, b, err)
		}
		_, rest, _ = open(encodeAnswer(flags, body))
		if f, b, err := decodeAnswer(rest); f != flags || !bytes.Equal(b, body) || err != nil {
			t.Fatal("answer", f, b, err)
		}
	})
}

// FuzzReceive gives a machine with a document any bytes.
func FuzzReceive(f *testing.F) {
	for _, b := range [][]byte{
		nil, {version}, {version, byte(kindPush)}, {2, 1, 3}, {version, 99},
		digestMsg{flagReply, [16]byte{1}}.encode(),
		bucketsMsg{shared: 3}.encode(),
		headsMsg{allBuckets, 1, []crdt.Head{{Node: 5, Epoch: 1, Seq: 9}}}.encode(),
		wantMsg{flagShared, []crdt.Head{{Node: 1}}}.encode(),
		encodePush(9, state.Encode(state.Out{Ops: []crdt.Op{{Node: 9, Epoch: 1, Seq: 1, Key: []byte("k"), Value: []byte("v")}}}, 1000)[0]),
		encodeAnswer(flagMore, []byte{1}),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := newNode(1, 1)
		n.m.Step(0, Members{[]state.NodeID{2, 3}})
		for _, a := range n.m.Step(1, Packet{2, b}) {
			if s, ok := a.(Send); ok && len(s.Body) > PacketMax {
				t.Fatalf("packet of %d bytes", len(s.Body))
			}
		}
		n.m.Step(2e9, Tick{})
	})
}

func TestUnknownIsCounted(t *testing.T) {
	n := newNode(1, 1)
	n.m.Step(0, Packet{2, []byte{version + 1, 1, 2, 3}})
	n.m.Step(0, Packet{2, []byte{version, 200}})
	n.m.Step(0, Packet{2, []byte{version, byte(kindDigest), 1}})
	n.m.Step(0, Packet{1, digestMsg{}.encode()})
	if c := n.m.Counters(); c.Unknown != 2 || c.Malformed != 2 {
		t.Errorf("unknown %d, malformed %d, want 2 and 2", c.Unknown, c.Malformed)
	}
}
