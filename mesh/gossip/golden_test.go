package gossip

import (
	"encoding/hex"
	"reflect"
	"testing"

	"meshnet/crdt"
)

// TestGolden holds every kind of message to the bytes that the first version wrote. They never change: a
// later version adds kinds, or fields behind those that are there.
func TestGolden(t *testing.T) {
	heads := []crdt.Head{{Node: 0xa1, Epoch: 1, Seq: 9}, {Node: 0xb2, Epoch: 700, Seq: 1 << 20}, {Node: 0xc3}}
	bm := bucketsMsg{shared: 0x0102030405060708}
	for i := range bm.nodes {
		bm.nodes[i] = uint64(i) << 56
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"push", encodePush(0xa1, []byte{1, 2, 3}), "010100000000000000a1010203"},
		{"digest", digestMsg{flagReply, [16]byte{0xd1, 15: 0xd2}}.encode(), "010201d10000000000000000000000000000d2"},
		{"buckets", bm.encode(), "010300000000000000000100000000000000020000000000000003000000000000000400000000000000050000000000000006000000000000000700000000000000080000000000000009000000000000000a000000000000000b000000000000000c000000000000000d000000000000000e000000000000000f0000000000000010000000000000001100000000000000120000000000000013000000000000001400000000000000150000000000000016000000000000001700000000000000180000000000000019000000000000001a000000000000001b000000000000001c000000000000001d000000000000001e000000000000001f000000000000000102030405060708"},
		{"heads", headsMsg{0x80000001, 0x0102030405060708, heads}.encode(), "01048000000101020304050607080300000000000000a1010900000000000000b2bc0580804000000000000000c30000"},
		{"want", wantMsg{flagShared, heads}.encode(), "0105020300000000000000a1010900000000000000b2bc0580804000000000000000c30000"},
		{"answer", encodeAnswer(flagMore, []byte{1, 2, 3}), "010604010203"},
	} {
		if got := hex.EncodeToString(tt.b); got != tt.want {
			t.Errorf("%s is written as\n%s\nwant\n%s", tt.name, got, tt.want)
		}
		b, err := hex.DecodeString(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, err := open(b)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		switch tt.name {
		case "heads":
			m, err := decodeHeadsMsg(rest)
			if err != nil || !reflect.DeepEqual(m.heads, heads) || m.mask != 0x80000001 {
				t.Errorf("heads are read as %+v, %v", m, err)
			}
		case "want":
			m, err := decodeWant(rest)
			if err != nil || !reflect.DeepEqual(m.heads, heads) || m.flags != flagShared {
				t.Errorf("want is read as %+v, %v", m, err)
			}
		case "buckets":
			if m, err := decodeBuckets(rest); err != nil || m != bm {
				t.Errorf("buckets are read as %+v, %v", m, err)
			}
		case "digest":
			if m, err := decodeDigest(append(rest, 9, 9)); err != nil || m.flags != flagReply || m.digest[15] != 0xd2 {
				t.Errorf("digest is read as %+v, %v", m, err)
			}
		}
	}
}
